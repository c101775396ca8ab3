"""One trained run for the verbs that look at one."""

from pathlib import Path

import pytest

SMALL = ("epochs=2", "data.train_images=16", "data.val_images=8", "data.image_size=64", "batch_size=8")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run's folder, with a moving average of the weights."""
    from ghm.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Without a prior, by which so young a detector would find nothing.
        main(["train", *SMALL, "ema=0.9", "loss.prior=null", "dir=run"])
    return folder / "run"
