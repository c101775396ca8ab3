"""The front door: `ghm <verb> [hydra overrides]`."""

import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ghm import arguments
from ghm.paths import expanded
from ghm.provenance import record
from ghm.secrets import hidden

CONF = Path(__file__).resolve().parents[1] / "conf"
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

USAGE = """usage: ghm <verb> [overrides]

  ghm train [overrides]           one training run             ghm train loss=focal epochs=20
  ghm train -m [overrides]        a sweep                      ghm train -m +sweep=demo
  ghm report [overrides]          a sweep's table and page     ghm report +sweep=demo
  ghm evaluate checkpoint=PATH    numbers and figures          ghm evaluate checkpoint=runs/single/RUN/best.pt
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
    verbs: dict[str, Callable[[], None]] = {
        "train": _train,
        "report": _report,
        "evaluate": _evaluate,
        "data check": _check_data,
        "data fetch": _fetch_data,
    }
    asks = {"-h", "--help"} & {verb, *rest}
    if verb == "help" or (asks and verb != "train"):
        print(USAGE)
        return
    if verb not in verbs:
        _stop(BAD_INPUT, f"unknown verb {verb!r}: use one of {', '.join(verbs)}")
    for name in ("ray.train", "mlflow.store", "alembic", "urllib3"):  # a run says it better
        logging.getLogger(name).setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as orderly as Ctrl-C
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra would print and exit 1 by itself; here it has to raise, so that each kind gets its own line and code.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        flags, overrides = ([], rest) if verb == "data fetch" else arguments.read(rest)
        sys.argv = [f"ghm {verb}", *flags, *overrides]
        verbs[verb]()
    except (KeyboardInterrupt, Exception) as error:
        _end(error, traced=bool(full_error))
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _end(error: BaseException, traced: bool = False) -> NoReturn:
    """Leave with one line and the code that fits; a traceback where asked for, or where nobody foresaw it."""
    from ghm.run import TrainingError
    from sweeps.controller import SweepFailed

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
    if isinstance(error, SweepFailed | TrainingError):  # they have recorded their tracebacks
        _stop(FAILED, _one_line(error))
    _stop(FAILED, f"{type(error).__name__}: {_one_line(error)}; HYDRA_FULL_ERROR=1 shows where")


def _train() -> None:
    from ghm.run import train

    _hydra(train, "train")


def _hydra(task: Callable[[DictConfig], Any], config: str) -> Any:
    """Run a task with the config of the command line, and return what it returns, or raise what it raises."""
    errors: list[BaseException] = []
    results: list[Any] = []

    # Hydra announces an exception of its task in a line of its own before passing it on. A sweep
    # unwraps this and runs the task itself.
    @functools.wraps(task)
    def quiet(cfg: DictConfig) -> Any:
        try:
            record(Path(cfg.cwd) / cfg.dir, cfg, HydraConfig.get().overrides.task)
            results.append(task(cfg))
        except BaseException as error:
            errors.append(error)
            return None
        return results[-1]

    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(quiet)()
    if errors:
        raise errors[0]
    return results[-1] if results else None


def _evaluate() -> None:
    from ghm import evaluation

    outcome = _hydra(evaluation.run, "evaluate")
    if outcome is None:  # --cfg, --info
        return
    numbers, folder = outcome
    if numbers:
        _table("COCO's numbers", ["", "of 1"], [[name, f"{value:.4f}"] for name, value in numbers.items()])
    else:
        print("There are no true boxes to score against; detections.json is what the COCO server takes.")
    print(f"Written to {folder}")


def _check_data() -> None:
    from ghm import inspection

    outcome = _hydra(inspection.run, "check")
    if outcome is None:
        return
    splits, sheet = outcome
    rows = [
        [name.replace("_", " "), *(str(getattr(s, name)) for s in splits.values())]
        for name in ("images", "empty", "boxes", "crowds")
    ]
    for kind in ("small", "medium", "large"):
        rows.append([f"{kind} boxes", *(str(s.sizes[kind]) for s in splits.values())])
    rows.append(["sides, 5 / 50 / 95 %", *(" / ".join(f"{side:.0f}" for side in s.sides) for s in splits.values())])
    for classes in zip(*(s.per_class for s in splits.values()), strict=True):
        rows.append([f"  {classes[0][0]}", *(str(count) for _, count in classes)])
    _table("Every image and annotation is sound", ["", *splits], rows)
    for name, split in splits.items():
        if (origin := split.origin) is not None:
            print(f"{name}: {origin.annotations} with the images in {origin.images}/ ({origin.layout})")
    print(f"Look at {sheet}")


def _fetch_data() -> None:
    from omegaconf import OmegaConf

    from ghm import fetch

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


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _report() -> None:
    # The sweep's own command line is understood: what it sweeps over does not matter here.
    given = [word for word in sys.argv[1:] if word not in ("-m", "--multirun")]
    overrides = OverridesParser.create().parse_overrides(given)
    plain = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", plain, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    report(config)


def report(config: DictConfig) -> None:
    """Write and show the report of the sweep that a composed config names; exit 1 if nothing was learned."""
    from rich.console import Console

    from ghm.report import page, sweep
    from ghm.tracking import Tracker

    tracker = Tracker.open(config.tracking.uri, config.tracking.experiment, config.runs)
    settings = config.hydra.sweeper
    result = sweep.load(tracker, settings.study_name, maximize=settings.direction == "maximize")
    path = page.write(result, tracker, Path(config.hydra.sweep.dir).resolve() / "report")
    console = Console()
    console.print(page.terminal_table(result))
    for line in (page.verdict(result), f"Page:      {path}", f"MLflow UI: {page.ui_command(tracker)}"):
        console.print(line, soft_wrap=True, highlight=False)
    if not len(result.done):
        _stop(FAILED, "no trial finished; the page lists what they failed of")
    if not result.learned:
        _stop(FAILED, "no trial beats boxes placed without looking at the image; train longer or check the data")


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


class SweepReport(Callback):
    """After a sweep: the ranked table, the page, where to look further, and whether anything was learned."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        try:
            report(config)
        except Exception as error:  # Hydra would turn it into a warning
            _end(error)


if __name__ == "__main__":
    main()
