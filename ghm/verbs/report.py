"""`ghm report`: a sweep's table and page; a sweep ends with it."""

import re
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ghm.failure import Failed
from ghm.record import best, recorded
from ghm.reports import page, published, sweep
from ghm.tracking import SPOOL, Away, Spool, Tracker, link, run_link, shared_view, waiting
from ghm.verbs import composed, table


def main() -> None:
    # The sweep's own command line is understood: what it sweeps over does not matter here.
    given = [word for word in sys.argv[1:] if word not in ("-m", "--multirun")]
    # table=4 is short for +sweep=table4.
    given = [re.sub(r"^table=(\w+)$", r"+sweep=table\1", word) for word in given]
    overrides = OverridesParser.create().parse_overrides(given)
    plain = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    report(composed.of_sweep(plain))


def report(config: DictConfig) -> None:
    """Write and show the report of the sweep that a composed config names; exit 1 if nothing was learned."""
    tracker = Tracker.open(config.tracking.uri, config.tracking.experiment, config.runs)
    settings = config.hydra.sweeper
    folder = Path(config.hydra.sweep.dir).resolve()
    result = sweep.load(tracker, settings.study_name, Spool(folder).key)
    path = page.write(result, tracker, folder / "report")
    console = Console()
    for one in page.terminal_tables(result):
        console.print(one)
    number = OmegaConf.select(config, "table")
    if number is not None:
        _beside_the_paper(published.table(number, result), result, tracker, folder / "report")
    goal = result.goal
    view = (result.key, result.name, goal.objectives, result.keys, result.group, goal.ascending, bool(result.seeds))
    tracker.share(result.key, shared_view(*view))
    where = [f"Page:      {path}", f"MLflow UI: {link(tracker.uri, tracker.experiment_id, result.key)}"]
    if tracker.local:
        where.insert(1, f"Serve it:  {page.ui_command(tracker)}")
    if (kept := _keep_best(result, tracker, Path(config.runs) / "conf")) is not None:
        where.append(f"Settings:  {kept}")
    for line in (page.verdict(result), *where):
        console.print(line, soft_wrap=True, highlight=False)
    if not len(result.done):
        raise Failed("no trial finished; the page lists what they failed of")
    if not result.learned:
        raise Failed("no trial beats boxes placed without looking at the image; train longer or check the data")


def _keep_best(result: sweep.SweepResult, tracker: Tracker, folder: Path) -> str | None:
    """Write the best configuration as a file of the group `best` in `folder`. Where it is and how it is used."""
    if result.goal.several or not result.arms:
        return None
    arm = result.arms[0]
    try:
        made = recorded.config_of(tracker, result.recorded[arm.trials[0]])
    except ValueError:  # no training of ours
        return None
    told = f"The best of the sweep {result.name}, {arm.label}: {result.objective} {arm.shown}."
    path = folder / best.GROUP / f"{result.name}.yaml"
    best.write(made, result.keys, composed.training, told, path)
    return f"{path}; ghm train --config-dir {folder} +{best.GROUP}={result.name} has them"


def _beside_the_paper(beside: published.Table, result: sweep.SweepResult, tracker: Tracker, folder: Path) -> None:
    """Show the paper's table with our numbers, and keep it with the report."""
    table.show(f"Table {beside.number}: {beside.title}", beside.header, beside.lines())
    print(f"Paper: {beside.source}.\nOurs:  mean ± 95 % interval over seeds; {result.about.get('data', '')}")
    told = beside.markdown(run_link(tracker.uri, tracker.experiment_id))
    for suffix, text in (("md", told), ("csv", beside.csv())):
        path = folder / f"table{beside.number}.{suffix}"
        path.write_text(text)
        tracker.run(result.run_id).log_file(path, "report")


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
