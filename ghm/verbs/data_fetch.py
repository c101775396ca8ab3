"""`ghm data fetch`: public data sets, downloaded and unpacked."""

import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from ghm import fetch
from ghm.settings.paths import expanded


def main() -> None:
    name, *given = sys.argv[1:] or [""]
    if name != "coco2017":
        raise ValueError(f"data={name}: must be coco2017, as in ghm data fetch coco2017 root=PATH")
    options = OmegaConf.merge(
        {"root": os.environ.get("GHM_DATA", "data/coco2017"), "test": False, "keep": False},
        OmegaConf.from_dotlist(given),
    )
    if unknown := options.keys() - {"root", "test", "keep"}:
        raise ValueError(f"{min(unknown)}={options[min(unknown)]}: is not an option; there are root, test and keep")
    for key in ("test", "keep"):
        if not isinstance(options[key], bool):
            raise ValueError(f"{key}={options[key]}: must be true or false")
    fetch.coco2017(Path(expanded(str(options.root))), test=options.test, keep=options.keep)
    print(f"Ready: ghm train data=coco2017 data.root={options.root}")
