"""The front door: `ghm <verb> [hydra overrides]`. It chooses the verb, and says in one line how it ended."""

import importlib
import logging
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

try:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
except ModuleNotFoundError as error:
    raise SystemExit(f"ghm: {error.name} is not installed; pip install 'ghm[sweep]' brings what it needs") from None

from ghm.failure import Failed
from ghm.secrets import hidden
from ghm.settings import arguments

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
# Each a file in ghm/verbs/.
VERBS = (
    *("train", "plan", "submit", "report", "retry", "evaluate", "figures", "reproduce", "sync", "doctor"),
    *("data check", "data fetch"),
)

USAGE = """usage: ghm <verb> [overrides]

  ghm train [overrides]           one training run             ghm train loss=focal epochs=20
  ghm train -m [overrides]        a sweep                      ghm train -m +sweep=demo
  ghm plan [overrides]            what a sweep would do        ghm plan +sweep=demo
  ghm submit -- train ...         the same on a Ray cluster    ghm submit -- train -m +sweep=demo
  ghm report [overrides]          a sweep's table and page     ghm report +sweep=demo
  ghm retry NAME [TRIAL...]       failed trials of a sweep, queued again for its own command
  ghm evaluate checkpoint=PATH    numbers and figures          ghm evaluate checkpoint=runs/single/RUN/best.pt
  ghm figures RUN                 the paper's figures          ghm figures runs/single/RUN
  ghm reproduce RUN               the same run again, and whether it comes to the same
  ghm doctor                      what a command would find here, and what is wrong with it
  ghm sync [folder=runs]          sends MLflow what it could not take while it was away
  ghm data check data.root=PATH   annotations and images, whole, with a contact sheet
  ghm data fetch coco2017 root=PATH [test=true] [keep=true]    download and unpack

`ghm train --help` lists the groups; `--cfg job` prints the config, `--info` Hydra's state.
HYDRA_FULL_ERROR=1 shows tracebacks.
"""


def main(words: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run failed or nothing was learned, 2 bad input, 130 interrupted."""
    verb, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if verb == "data" and rest:
        verb, rest = f"data {rest[0]}", rest[1:]
    asks = {"-h", "--help"} & {verb, *rest}
    if verb == "help" or (asks and verb not in ("train", "submit")):
        print(USAGE)
        return
    if verb not in VERBS:
        _stop(BAD_INPUT, f"unknown verb {verb!r}: use one of {', '.join(VERBS)}")
    for name in ("ray.train", "mlflow.store", "alembic", "urllib3", "fontTools"):  # a run says it better
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = _end_orderly_when_signalled()
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra would print and exit 1 by itself; here it has to raise, so that each kind gets its own line and code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        flags, overrides = ([], rest) if verb in ("data fetch", "submit") else arguments.read(rest)
        sys.argv = [f"ghm {verb}", *flags, *overrides]
        importlib.import_module(f"ghm.verbs.{verb.replace(' ', '_')}").main()
    except (KeyboardInterrupt, Exception) as error:
        _end(error, traced=bool(full_error))
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _end_orderly_when_signalled() -> dict[signal.Signals, Any]:
    """Ctrl-C, a scheduler's SIGTERM and a closed terminal interrupt the command, once; the handlers before."""
    ends = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in ends}

    def interrupt(*_: object) -> None:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)  # the end is under way, and must not be cut short
        raise KeyboardInterrupt

    for number in ends:
        if before[number] != signal.SIG_IGN:  # as nohup asks
            signal.signal(number, interrupt)
    return before


def _end(error: BaseException, traced: bool = False) -> NoReturn:
    """Leave with one line and the code that fits; a traceback where asked for."""
    if traced:
        print(hidden("".join(traceback.format_exception(error))), file=sys.stderr)
    if isinstance(error, KeyboardInterrupt):
        _stop(
            INTERRUPTED,
            "interrupted; the same command continues a sweep or a download, and a run with dir=ITS_FOLDER added",
        )
    if isinstance(error, ValueError | HydraException | OmegaConfBaseException):
        _stop(BAD_INPUT, _one_line(error))
    if isinstance(error, OSError) and error.filename is not None:  # the first file that a command touches
        _stop(BAD_INPUT, f"{error.filename}: {error.strerror}; give another path, or make this one usable")
    if isinstance(error, Failed):
        _stop(FAILED, _one_line(error))
    _stop(FAILED, f"{type(error).__name__}: {_one_line(error)}; HYDRA_FULL_ERROR=1 shows where")


def _stop(code: int, message: str) -> NoReturn:
    print(f"ghm: {hidden(message)}", file=sys.stderr)
    raise SystemExit(code)


def _one_line(error: BaseException) -> str:
    """Hydra's messages span lines, and the cause often says more than the error."""
    causes = [error]
    while causes[-1].__cause__ is not None and isinstance(error, HydraException):
        causes.append(causes[-1].__cause__)
    lines = [line.strip() for cause in causes for line in str(cause).splitlines() if line.strip()]
    listed = list(dict.fromkeys(lines))
    if "Config search path:" in listed:  # where this installation keeps its files helps nobody
        listed = listed[: listed.index("Config search path:")]
    return "; ".join(listed)


if __name__ == "__main__":
    main()
