"""The front door: `ghm <verb> [hydra overrides]`."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parents[1] / "conf"
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

USAGE = """usage: ghm <verb> [overrides]

  ghm train [overrides]      one training run            ghm train loss=focal epochs=20
  ghm train -m [overrides]   a sweep                     ghm train -m +sweep=demo
  ghm report [overrides]     a sweep's table and page    ghm report hydra.sweeper.study_name=demo_shapes

`ghm train --help` lists the groups; `--cfg job` prints the config, `--info` Hydra's state.
HYDRA_FULL_ERROR=1 shows tracebacks.
"""


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run failed or nothing was learned, 2 bad input, 130 interrupted."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    verbs: dict[str, Callable[[], None]] = {"train": _train, "report": _report}
    if verb in ("-h", "--help", "help"):
        print(USAGE)
        return
    if verb not in verbs:
        _stop(BAD_INPUT, f"unknown verb {verb!r}: use one of {', '.join(verbs)}")
    sys.argv = [f"ghm {verb}", *rest]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra would print and exit 1 by itself; here it has to raise, so that each kind gets its own line and code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        verbs[verb]()
    except KeyboardInterrupt:
        _stop(INTERRUPTED, "interrupted; a sweep goes on where it stopped when the same command is given again")
    except Exception as error:
        if full_error:
            traceback.print_exc()
        code = BAD_INPUT if isinstance(error, ValueError | HydraException | OmegaConfBaseException) else FAILED
        if code == FAILED and not full_error:
            traceback.print_exc()
        _stop(code, _one_line(error))
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _hydra(task: Callable[[DictConfig], Any]) -> None:
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)()


def _train() -> None:
    from ghm.worker import train

    _hydra(train)


def _report() -> None:
    pass


def _stop(code: int, message: str) -> None:
    print(f"ghm: {message}", file=sys.stderr)
    raise SystemExit(code)


def _one_line(error: BaseException) -> str:
    """Hydra's messages span lines, and the cause often says more than the error."""
    causes = [error]
    while causes[-1].__cause__ is not None and isinstance(error, HydraException):
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines))


class SweepReport(Callback):
    """After a sweep: the ranked table, the page, where to look further, and whether anything was learned."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        pass
