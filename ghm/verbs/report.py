"""`ghm report`: a sweep's table and page; a sweep ends with it."""

import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from rich.console import Console

from ghm.failure import Failed
from ghm.report import page, sweep
from ghm.tracking import SPOOL, Away, Spool, Tracker, link, shared_view, waiting
from ghm.verbs import composed


def main() -> None:
    # The sweep's own command line is understood: what it sweeps over does not matter here.
    given = [word for word in sys.argv[1:] if word not in ("-m", "--multirun")]
    overrides = OverridesParser.create().parse_overrides(given)
    plain = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    report(composed.of_sweep(plain))


def report(config: DictConfig) -> None:
    """Write and show the report of the sweep that a composed config names; exit 1 if nothing was learned."""
    tracker = Tracker.open(config.tracking.uri, config.tracking.experiment, config.runs)
    settings = config.hydra.sweeper
    folder = Path(config.hydra.sweep.dir).resolve()
    result = sweep.load(tracker, settings.study_name, Spool(folder).key, settings.direction == "maximize")
    path = page.write(result, tracker, folder / "report")
    console = Console()
    console.print(page.terminal_table(result))
    maximize = settings.direction == "maximize"
    tracker.share(
        result.key, shared_view(result.key, result.name, result.objective, result.keys, result.group, maximize)
    )
    where = [f"Page:      {path}", f"MLflow UI: {link(tracker.uri, tracker.experiment_id, result.key)}"]
    if tracker.local:
        where.insert(1, f"Serve it:  {page.ui_command(tracker)}")
    for line in (page.verdict(result), *where):
        console.print(line, soft_wrap=True, highlight=False)
    if not len(result.done):
        raise Failed("no trial finished; the page lists what they failed of")
    if not result.learned:
        raise Failed("no trial beats boxes placed without looking at the image; train longer or check the data")


def after_sweep(config: DictConfig, gaps: Failed | None) -> None:
    """The report of a sweep that has just ended. Failed where it lacks points, as `gaps` says, or learned nothing."""
    folder = Path(config.hydra.sweep.dir).resolve()
    late = [path.parent for path in folder.rglob(SPOOL) if waiting(path.parent)]
    try:
        if late:  # a report would be of a part
            raise Away(f"the records of {len(late)} runs wait on disk")
        report(config)
    except Away as error:  # the sweep is done, whoever is away
        said = f"ghm: no report yet, MLflow has not taken all ({error}); ghm sync sends it, and ghm report makes one"
        print(said, file=sys.stderr)
    except (Failed, ValueError):
        if gaps is None:
            raise
    if gaps is not None:
        raise gaps
