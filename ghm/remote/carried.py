"""What goes along with work to other processes and machines: variables, MLflow's password among them, and paths."""

import os
import sys
from collections.abc import Sequence

PREFIXES = ("MLFLOW_", "GHM_")
NAMED = "GHM_ENV"  # names of further ones, with commas between


def carried(names: Sequence[str] = ()) -> dict[str, str]:
    """Those for MLflow and ghm, and `names`, which from there are carried on too. ValueError for one not set."""
    for name in names:
        if name not in os.environ:
            raise ValueError(f"--env {name}: is not set here; set it, or leave it out")
    further = {*names, *os.environ.get(NAMED, "").split(",")}
    found = {name: value for name, value in os.environ.items() if name in further or name.startswith(PREFIXES)}
    return found | ({NAMED: ",".join(sorted(names))} if names else {})


def find_also(paths: Sequence[str]) -> None:
    """Have modules found where the process that gave the work finds them, after what is found already."""
    sys.path += [path for path in paths if path and path not in sys.path]
