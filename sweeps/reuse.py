"""What other runs have come to, or are coming to, that are the same as one of this sweep's: nothing is run twice."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ghm.tracking import Away, Record, Tracker, waiting_at_most
from sweeps.goal import Goal, Values
from sweeps.space import Params
from sweeps.states import State

ALIVE = 300.0  # seconds without a metric, and two epochs of it more, after which a run is not waited for
AGAIN = 60.0  # seconds for which a server that was away is not asked

log = logging.getLogger(__name__)

# Makes what a run is the same by, for each device that it may get, of what was drawn and of its seed; none where
# nobody can tell.
Keys = Callable[[Params, int | None], list[str]]


@dataclass(frozen=True)
class Found:
    """A run that is the same: `values` of all objectives once it is done, `curve` of the first; else it still runs."""

    record: Record
    objective: str
    values: Values = ()
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def metrics(self) -> Mapping[str, float]:
        metrics: dict[str, float] = self.record.data.metrics
        return metrics

    def __str__(self) -> str:
        tags = self.record.data.tags
        of = f" of sweep {tags['sweep.name']}" if "sweep.name" in tags else ""
        return f"{self.record.info.run_name}{of}"


@dataclass
class Reuse:
    """Asks MLflow for the runs that are the same, by the `keys` of a run of this sweep."""

    tracker: Tracker | None
    goal: Goal
    keys: Keys
    _away: float = field(default=float("-inf"))  # when the server did not answer

    def find(self, params: Params, seed: int | None, own: str = "") -> Found | None:
        """The run to take the place of one, whose own record has the key `own`; one that is done before one that runs.

        None where there is none, or the server does not answer.
        """
        timed = any(name.startswith("time/") for name in self.goal.metrics)  # which is of its machine and its moment
        if self.tracker is None or timed or time.monotonic() - self._away < AGAIN:
            return None
        try:
            with waiting_at_most(5):
                records = [one for key in self.keys(params, seed) for one in self.tracker.same(key)]
                others = [one for one in records if one.data.tags.get("ghm.key") != own]
                ended = (one for one in others if one.data.tags.get("sweep.state") == State.DONE)
                done = next(filter(self._valued, ended), None)
                if done is not None:
                    return self._done(done)
        except Away as error:
            log.warning("Nobody knows which trainings are done already (%s); running them", error)
            self._away = time.monotonic()
            return None
        return next((Found(one, self.goal.objectives[0]) for one in others if _runs(one, time.time())), None)

    def _valued(self, record: Record) -> bool:
        """Whether it has all that this sweep asks for, as a number."""
        known = record.data.metrics
        return all(known.get(name, float("nan")) == known.get(name) for name in self.goal.metrics)

    def _done(self, record: Record) -> Found:
        assert self.tracker is not None
        first, values = self.goal.objectives[0], tuple(record.data.metrics[name] for name in self.goal.objectives)
        return Found(record, first, values, tuple(self.tracker.history(record.info.run_id, first)))


def _runs(record: Record, now: float) -> bool:
    """Whether a run that did not end is alive: a machine that dies says nothing more."""
    if record.data.tags.get("sweep.state") != State.RUNNING:
        return False
    metrics = record.data.to_proto().metrics
    begun = record.info.start_time
    last = max((one.timestamp for one in metrics), default=begun)
    epochs = max((one.step for one in metrics), default=0)
    epoch = (last - begun) / epochs if epochs else 0.0
    return now - max(last, begun) / 1000 < ALIVE + 2 * epoch / 1000
