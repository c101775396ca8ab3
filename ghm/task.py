"""What a slot of a sweep runs of ours. On its own, as whatever this imports each slot imports at its start."""

from dataclasses import dataclass
from typing import Any

from hydra.types import TaskFunction
from omegaconf import OmegaConf


@dataclass(frozen=True)
class Task:
    """`function` on a config that is sent as plain values, in less time than OmegaConf's."""

    function: TaskFunction

    def __call__(self, config: dict[str, Any]) -> Any:
        return self.function(OmegaConf.create(config))
