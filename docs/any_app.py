"""A Hydra program like any other: `python any_app.py -m hydra/sweeper=ghm 'x=interval(-5,5)' 'y=choice(0,1)'`."""

from dataclasses import dataclass

import hydra
from hydra.core.config_store import ConfigStore

import ghm


@dataclass
class Config:
    x: float = 0.0
    y: int = 0
    steps: int = 9


ConfigStore.instance().store("config", Config)


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def task(cfg: Config) -> float:
    for step in range(1, cfg.steps + 1):
        value = (cfg.x - 2) ** 2 + cfg.y + 1 / step
        ghm.report(step, value)  # heard where a sweep runs this: for curves, pruners and budgets
    return value


if __name__ == "__main__":
    task()
