"""Makes `hydra/sweeper=ghm`, its samplers and its pruners known to every Hydra program that has this installed.

As other plugins of Hydra do, and by the same names: where one of them brings a sampler of that name, its file counts.
"""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

FOLDER = Path(__file__).parent / "conf"

for _path in sorted(FOLDER.rglob("*.yaml")):
    _group = Path("hydra/sweeper", _path.parent.relative_to(FOLDER)).as_posix()
    ConfigStore.instance().store(name=_path.stem, node=OmegaConf.load(_path), group=_group, provider="ghm")
