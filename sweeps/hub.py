"""Where running trials report their epochs and are answered: one small Ray actor a sweep, beside its controller."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from sweeps.states import Answer

NONE: Mapping[str, float] = {}


@dataclass(frozen=True)
class Report:
    """One epoch of one attempt of a trial: `value` is the first objective after `epoch` of `epochs` (0: who knows).

    `metrics`: those that bounds are on, at least.
    """

    trial: int
    attempt: int
    epoch: int
    epochs: int
    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Attempt:
    number: int
    heard: float | None = None  # when its process last gave a sign of life; None before the first
    group: str | None = None  # id of the placement group of its workers
    question: "asyncio.Future[Answer] | None" = None


class Hub:
    """Passes each report to the controller and its answer back; holds nothing that is not also on disk elsewhere.

    A trial waits for its answer, as the next epoch depends on it; when none comes for `patience` seconds its
    controller is gone, and the trial is told that it is lost.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.attempts: dict[int, Attempt] = {}
        self.reports: list[Report] = []
        self.news = asyncio.Event()
        self.asked = time.monotonic()  # when the controller last asked for news

    async def expect(self, trial: int, attempt: int) -> None:
        """The controller starts an attempt; all others of this trial are lost from now on."""
        self.attempts[trial] = Attempt(attempt)

    async def forget(self, trial: int) -> str | None:
        """An attempt is over; the placement group it may have left behind."""
        gone = self.attempts.pop(trial, None)
        return None if gone is None else gone.group

    async def beat(self, trial: int, attempt: int) -> bool:
        """A sign of life; False when nobody is there to hear it."""
        if (known := self._known(trial, attempt)) is not None:
            known.heard = time.monotonic()
        return time.monotonic() - self.asked < self.patience

    async def group(self, trial: int, attempt: int, placement_group: str) -> None:
        """The workers of an attempt hold this placement group."""
        if (known := self._known(trial, attempt)) is not None:
            known.group = placement_group

    async def report(
        self,
        trial: int,
        attempt: int,
        epoch: int,
        epochs: int,
        value: float,
        metrics: Mapping[str, float] = NONE,
    ) -> Answer:
        """The answer to an epoch."""
        known = self._known(trial, attempt)
        if known is None:
            return Answer.LOST
        known.heard = time.monotonic()
        known.question = asyncio.get_running_loop().create_future()
        self.reports.append(Report(trial, attempt, epoch, epochs, value, metrics))
        self.news.set()
        try:
            return await asyncio.wait_for(known.question, self.patience)
        except TimeoutError:
            return Answer.LOST

    async def answer(self, trial: int, answer: Answer) -> None:
        """The controller's, to the trial's last report."""
        known = self.attempts.get(trial)
        if known is not None and known.question is not None and not known.question.done():
            known.question.set_result(answer)

    async def take(self, seconds: float) -> tuple[list[Report], dict[int, float]]:
        """The reports since the last call, as soon as there are any or `seconds` are over.

        And for how long the processes of trials gave no sign of life, of those that ever did.
        """
        self.asked = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), seconds)
        self.news.clear()
        reports, self.reports = self.reports, []
        now = time.monotonic()
        silent = {trial: now - known.heard for trial, known in self.attempts.items() if known.heard is not None}
        return reports, silent

    def _known(self, trial: int, attempt: int) -> Attempt | None:
        known = self.attempts.get(trial)
        return known if known is not None and known.number == attempt else None
