"""The configs of a sweep's trials, as Hydra composes them."""

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ghm.settings import own_ranges


class Composer:
    """Composes each combination of config groups once, and sets values in a copy of it, as Hydra itself does then.

    Hydra would read and merge all files for each trial: most of what a short one takes. Reading them once also means
    that a file which is edited while the sweep runs changes no later trial.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._loader.repository = CachingConfigRepository(loader.repository)
        self._parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._known: dict[str, Override] = {}
        self._split: dict[tuple[str, ...], tuple[DictConfig, DictConfig]] = {}

    def compose(self, overrides: list[str]) -> DictConfig:
        """A job's config without Hydra's own node, which is that of the sweep, but for the job's overrides."""
        parsed = self._parsed(overrides)
        own, hydra = self._apart(parsed)
        cfg = copy.deepcopy(own)
        ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if not self._chooses(one)], cfg)
        with read_write(hydra.hydra):
            hydra.hydra.overrides.task = overrides
        hydra.hydra._set_parent(cfg)  # as Hydra does it: so that its node refers to this config
        HydraConfig.instance().cfg = hydra  # what `${hydra:...}` looks at
        return cfg

    def _parsed(self, overrides: list[str]) -> list[Override]:
        """Once each: of a thousand trials most say the same, and Hydra takes milliseconds."""
        for override in overrides:
            if override not in self._known:
                [self._known[override]] = self._parser.parse_overrides([override])
        return [self._known[override] for override in overrides]

    def _apart(self, parsed: list[Override]) -> tuple[DictConfig, DictConfig]:
        """The config with the files that are chosen, without what they say of their own search; and Hydra's node."""
        choices = self._choices(parsed)
        if choices not in self._split:
            own = copy.deepcopy(self._of_files(parsed))
            HydraConfig.instance().set_config(own)
            hydra = HydraConfig.instance().cfg
            assert hydra is not None
            OmegaConf.set_struct(own, False)
            own.pop("hydra")
            OmegaConf.set_struct(own, True)
            own_ranges.take(own)
            self._split[choices] = own, hydra
        return self._split[choices]

    def whole(self, overrides: list[str]) -> DictConfig:
        """A job's config with Hydra's own node, as `run_job` takes it."""
        cfg = self._set(overrides)
        if not OmegaConf.is_interpolation(cfg.hydra.job, "override_dirname"):  # before Hydra 1.4
            named = cfg.hydra.job.config.override_dirname
            kept = sorted(one for one in overrides if one.split("=")[0] not in named.exclude_keys)
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.job.override_dirname = named.item_sep.join(kept).replace("=", named.kv_sep)
        return cfg

    def searched(self, overrides: list[str]) -> dict[str, str]:
        """What the files that these overrides choose say of their own search, by full key."""
        return own_ranges.take(copy.deepcopy(self._of_files(self._parsed(overrides))))

    def is_group(self, key: str) -> bool:
        """Whether a key chooses a file."""
        exists: bool = self._loader.repository.group_exists(key)
        return exists

    def _set(self, overrides: list[str]) -> DictConfig:
        """A copy in which they are set, which is also what `${hydra:...}` looks at."""
        parsed = self._parsed(overrides)
        cfg = copy.deepcopy(self._of_files(parsed))
        ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if not self._chooses(one)], cfg)
        cfg.hydra.overrides.task = overrides
        HydraConfig.instance().set_config(cfg)
        own_ranges.take(cfg)
        return cfg

    def _of_files(self, parsed: list[Override]) -> DictConfig:
        """With the files that overrides choose, and nothing else that they say."""
        choices = self._choices(parsed)
        if choices not in self._composed:
            self._composed[choices] = self._loader.load_sweep_config(self._master, list(choices))
        return self._composed[choices]

    def _choices(self, parsed: list[Override]) -> tuple[str, ...]:
        return tuple(str(one.input_line) for one in parsed if self._chooses(one))

    def _chooses(self, override: Override) -> bool:
        """Whether it chooses a file of a group, and sets no value."""
        value: Any = override.value()
        return self._loader.repository.group_exists(override.key_or_group) and not isinstance(value, dict)
