"""A command packed up with the code that it would run here, for a Ray cluster to run as a job."""

import importlib.util
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ghm import provenance
from ghm.secrets import hidden
from ghm.settings.paths import CONF

LIMIT = 100 * 2**20  # bytes: Ray's dashboard takes no larger package
ORDER = "order.json"  # in the package's folder where it is packed up: what to run there
PACKED = ("*.py", "*.yaml", "*.j2")


def pack(folder: Path, words: Sequence[str], variables: Mapping[str, str], cwd: Path) -> None:
    """Fill an empty folder with code, configuration and the command that is to run there in `cwd`.

    ValueError where that is more than a cluster takes, with the largest files.
    """
    pack_code(folder)
    order = folder / "ghm" / ORDER
    order.touch(mode=0o600)
    order.write_text(json.dumps({"words": list(words), "environment": dict(variables), "cwd": str(cwd)}))
    _refuse_large(folder)


def pack_code(folder: Path) -> None:
    """Fill an empty folder with code and configuration as they are now, and with the commit that this is."""
    source = provenance.source()  # before anything is read: what follows is what it says
    for package in ("ghm", "sweeps", "hydra_plugins.ghm_sweeper"):
        found = importlib.util.find_spec(package)
        assert found is not None, f"{package} is imported"
        assert found.origin is not None, f"{package} is a package of files"
        _copy(Path(found.origin).parent, folder / package.replace(".", "/"))
    _copy(CONF, folder / "conf")
    (folder / "ghm" / provenance.SOURCE).write_text(json.dumps(source))


def shown(words: Sequence[str]) -> str:
    """A command as it may be read by all who see the cluster's jobs: without secrets."""
    return f"ghm {shlex.join([hidden(word) for word in words])}"


def _copy(source: Path, target: Path) -> None:
    for pattern in PACKED:
        for file in source.rglob(pattern):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _refuse_large(folder: Path) -> None:
    files = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(files.values()) <= LIMIT:
        return
    largest = sorted(files, key=lambda path: -files[path])[:5]
    listed = ", ".join(f"{path.relative_to(folder)} ({files[path] / 2**20:.0f} MiB)" for path in largest)
    total = sum(files.values()) / 2**20
    raise ValueError(f"ghm submit: {total:.0f} MiB are more than the 100 MiB a cluster takes; move away {listed}")
