"""`hydra/sweeper=ghm`: Hydra's face of the sweep engine."""
