"""`hydra/sweeper=ghm`: Hydra's face of the sweep engine."""

from hydra_plugins.ghm_sweeper import config  # noqa: F401  # what it is configured by has to be known to Hydra first
