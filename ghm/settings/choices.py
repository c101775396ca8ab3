"""Which file of each group of conf/ a config is made of, by name: what people call a loss or a model."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

GROUPS = ("data", "data/augment", "model", "loss", "loss/cls", "loss/box", "optimizer", "schedule")


def note(cfg: DictConfig) -> None:
    """Write the choices that Hydra has just composed a config of into it."""
    made_of = HydraConfig.get().runtime.choices
    with open_dict(cfg):
        cfg.choices = {group: str(made_of[group]) for group in GROUPS if made_of.get(group) is not None}
