"""The life of a trial: the states it can be in, and what a running one is told at each epoch."""

from enum import StrEnum


class State(StrEnum):
    """Of a trial, in the study, on its MLflow run (`sweep.state`), on the screen and in the report.

    QUEUED -> RUNNING -> DONE | PRUNED | FAILED | CANCELLED; RUNNING -> QUEUED when its process is lost or its
    sweep ends before it, and FAILED -> QUEUED by `ghm retry`. A run without a sweep begins as RUNNING.
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    PRUNED = "pruned"  # stopped as hopeless: that is a result
    FAILED = "failed"
    CANCELLED = "cancelled"  # ended by hand, without a result


class Answer(StrEnum):
    """To a report of an epoch. After all but GO_ON the run ends, its last checkpoint being kept."""

    GO_ON = "go on"
    PRUNE = "prune"
    DRAIN = "drain"  # the sweep is to end: later this trial goes on from here
    LOST = "lost"  # somebody else runs this trial by now: what this process does no longer counts


# What a run that ends by itself is, by the last answer that it had.
ENDS = {Answer.GO_ON: State.DONE, Answer.PRUNE: State.PRUNED, Answer.DRAIN: State.QUEUED}
