"""Makes the record of a sweep's trials agree with its study, which alone knows how they ended."""

from collections.abc import Mapping
from pathlib import Path

from ghm.tracking.spool import Spool
from sweeps.states import State


def agree(folders: Mapping[Path, State]) -> int:
    """Record for each trial's folder that it is in the state given; how many said something else.

    A run that was never begun stays so.
    """
    corrected = 0
    for folder, state in folders.items():
        recorded = Spool(folder).state()
        if recorded is not None and recorded != state:
            Spool(folder, Spool(folder).attempts()).finish(state)
            corrected += 1
    return corrected
