"""`ghm figures RUN`: the paper's Figures 1 to 5 of a finished run, from its checkpoint and its data."""

from pathlib import Path

from omegaconf import DictConfig

from ghm import gradients
from ghm.data import Data, some_loader
from ghm.settings.parts import build, from_recipe
from ghm.settings.paths import absolute
from ghm.training import checkpoint
from ghm.verbs import composed
from ghm.verbs.evaluate import chosen_device, load_model


def main() -> None:
    composed.name_run()
    written = composed.run(run, "figures")
    for path in written or ():
        print(path)


def run(cfg: DictConfig) -> list[Path]:
    """Draw; the files' paths. ValueError for a folder without a checkpoint, or a detector with losses of its own."""
    cfg = absolute(cfg)
    if cfg.run is None:
        raise ValueError("run=null: names no run; give the folder of a finished one, as in ghm figures runs/single/RUN")
    if cfg.split not in ("train", "val"):
        raise ValueError(f"split={cfg.split}: must be train or val")
    for key in ("images", "bins", "batch_size"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]}: must be a whole number of at least 1")
    path = _checkpoint(Path(cfg.run))
    content = checkpoint.read(path)
    made = from_recipe(content["recipe"], str(path))
    data: Data = build(made, "data")
    device = chosen_device(cfg.device)
    model = load_model(made, content).to(device)
    if not hasattr(model, "losses"):
        raise ValueError(f"run={cfg.run}: was trained with torchvision's own losses, which have no such figures")
    dataset = data.train if cfg.split == "train" else data.val
    batches = some_loader(dataset, cfg.images, cfg.batch_size, cfg.loader_processes)
    seen = gradients.collect(model, batches, device, cfg.bins, cfg.mu)

    from ghm.reports import harmonizing  # plotting takes a second to import

    return harmonizing.write(seen, list(made.class_names), Path(cfg.dir))


def _checkpoint(given: Path) -> Path:
    """The best one of a run's folder, or the file itself."""
    if given.is_dir():
        found = next((given / name for name in (checkpoint.BEST, checkpoint.LAST) if (given / name).exists()), None)
        if found is None:
            raise ValueError(f"run={given}: holds no checkpoint; give the folder of a finished run, or a checkpoint")
        return found
    return given
