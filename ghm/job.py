"""What a run is, typed: made once at the door from its config, and read by all that is behind it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ghm.provenance import flat
from ghm.secrets import without_secrets

PARTS = ("data", "model", "loss", "optimizer", "schedule")
# Keys of a config that decide where a run happens and what is kept of it, and no number.
PLACE = (
    *("cwd", "runs", "dir", "tracking", "scaling", "loader_processes", "keep", "figures", "choices", "trial"),
    *("table", "networks"),  # of the paper's tables; what they choose stands elsewhere
)


@dataclass(frozen=True)
class Settings:
    """All that decides a run's numbers, resolved: equal settings give equal numbers."""

    parts: dict[str, Any]  # of `PARTS`, what `instantiate` makes them of
    epochs: int
    batch_size: int
    lr_batch: int | None
    accumulate: int
    seed: int
    clip_grad: float | None
    strength_warmup: int
    ema: float | None
    device: str
    amp: str | None
    channels_last: bool
    compile: bool
    threads: int  # sums in other orders differ in their last digits
    objective: str | list[str]
    others: dict[str, Any]  # added by a user with +key=value

    @property
    def objectives(self) -> list[str]:
        """The first one is reported after each epoch, and says which is the best."""
        return [self.objective] if isinstance(self.objective, str) else self.objective

    def flat(self) -> dict[str, Any]:
        """By dotted key, as the command line knows them, without secrets."""
        return without_secrets(flat(self._nested()))

    @property
    def fingerprint(self) -> str:
        """Equal for equal settings, whatever order or spelling (1 or 1.0) they were given in."""
        return hashlib.sha256(json.dumps(canonical(self.flat()), sort_keys=True).encode()).hexdigest()[:16]

    def config(self) -> DictConfig:
        """For what instantiates parts."""
        return OmegaConf.create(self._nested())

    def _nested(self) -> dict[str, Any]:
        """As in the config that they are from."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own.pop("parts") | own.pop("others") | own


@dataclass(frozen=True)
class Place:
    """Where a run happens and what is kept of it."""

    folder: Path
    runs: Path
    tracking_uri: str | None
    experiment: str
    workers: int  # at most; 0: in this process
    least_workers: int
    resize: float  # seconds between two looks at whether there could be more workers
    cpus: float  # of each worker
    gpus: float
    max_failures: int
    loader_processes: int
    keep: int  # newest checkpoints
    figures: bool
    hub: str | None  # Ray actor of the sweep that takes reports
    shared: bool = True  # whether every node of the cluster sees this folder


@dataclass(frozen=True)
class RunKey:
    """Which run of which sweep this is; a single run has no sweep."""

    sweep: str | None
    trial: int | None
    run: int | None  # of the trial's runs, in the sweep; the trial's number where it has one
    seed: int
    attempt: int  # 2 after its process was lost once
    start: int  # how often it was started, this one included
    label: str | None = None  # name of the MLflow run
    params: str | None = None  # what was sampled, as JSON
    record: str | None = None  # keys of its MLflow run and of its sweep's
    parent: str | None = None


@dataclass(frozen=True)
class Job:
    """One run. Plain values: it can be pickled."""

    settings: Settings
    place: Place
    key: RunKey

    @classmethod
    def of(cls, cfg: DictConfig, start: int = 1) -> "Job":
        """The job that a checked config with absolute paths describes."""
        return cls.of_plain(OmegaConf.to_container(cfg, resolve=True), start)

    @classmethod
    def of_plain(cls, plain: Any, start: int = 1) -> "Job":
        """`of`, for a config that is resolved already."""
        scaling, trial = plain["scaling"], plain["trial"]
        about = {key: value for key, value in plain.items() if key not in PLACE}
        named = {field.name for field in fields(Settings)} - {"parts", "others"}
        settings = Settings(
            parts={key: about[key] for key in PARTS},
            others={key: value for key, value in about.items() if key not in (*PARTS, *named)},
            **{key: about[key] for key in named},
        )
        least, most = group_sizes(scaling["num_workers"])
        place = Place(
            folder=Path(plain["dir"]),
            runs=Path(plain["runs"]),
            tracking_uri=plain["tracking"]["uri"],
            experiment=plain["tracking"]["experiment"],
            workers=most,
            least_workers=least,
            resize=scaling.get("resize", 0),
            cpus=scaling.get("cpus", 0),
            gpus=scaling.get("gpus", 0),
            max_failures=scaling.get("max_failures", 0),
            loader_processes=plain["loader_processes"],
            keep=plain["keep"],
            figures=plain["figures"],
            hub=trial["hub"],
        )
        key = RunKey(
            sweep=trial["name"],
            trial=trial["trial"],
            run=trial["run"],
            seed=settings.seed,
            attempt=trial["attempt"] or start,
            start=start,
            label=trial["label"],
            params=trial["params"],
            record=trial["record"],
            parent=trial["parent"],
        )
        return cls(settings, place, key)


def group_sizes(num_workers: Any) -> tuple[int, int]:
    """The least and the most workers that `scaling.num_workers` allows, as 2 or [1, 4] give them."""
    least, most = num_workers if isinstance(num_workers, Sequence) else (num_workers, num_workers)
    return int(least), int(most)


def canonical(value: Any) -> Any:
    """Numbers that are equal made equal in JSON: 1.0 is 1."""
    if isinstance(value, dict):
        return {key: canonical(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
