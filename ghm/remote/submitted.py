"""What a job of `ghm submit` runs on the cluster: the command, with its variables and in its folder."""

import json
import os
from pathlib import Path

from ghm.remote.submission import ORDER


def main() -> None:
    """ValueError where the command's folder is not there."""
    order = json.loads((Path(__file__).parents[1] / ORDER).read_text())
    os.environ.update(order["environment"])
    try:
        os.chdir(order["cwd"])
    except OSError as error:
        raise SystemExit(
            f"ghm: {order['cwd']}: the cluster's head has no such folder ({error.strerror}) for its `runs`; "
            "share it with the cluster, or give one that is there: ghm submit --cwd FOLDER"
        ) from error
    from ghm import cli

    cli.main(order["words"])


if __name__ == "__main__":
    main()
