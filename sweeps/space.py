"""The search space: Optuna's distributions inside, Hydra overrides out. `grammar` reads one from Hydra's syntax."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from ghm.secrets import without_secrets

Params = dict[str, Any]
MANY = 100_000  # values of a range, above which it counts as endless


@dataclass(frozen=True)
class Condition:
    """Choices that must be made for a key to be swept: all of one of the `cases`, as `{"loss": "focal"}`."""

    cases: tuple[Mapping[str, str], ...]

    def holds(self, chosen: Mapping[str, str]) -> bool:
        return any(all(chosen.get(key) == value for key, value in case.items()) for case in self.cases)

    def __str__(self) -> str:
        return " or ".join(" and ".join(f"{key}={value}" for key, value in case.items()) for case in self.cases)


@dataclass(frozen=True)
class Dimension:
    """One swept key, which is sampled where its condition holds."""

    key: str
    distribution: BaseDistribution
    condition: Condition | None = None
    texts: dict[Any, str] = field(default_factory=dict)  # of choices: how Hydra writes them
    prefix: str = ""  # of the key in an override: + where the config has no such key yet

    def suggest(self, trial: Trial) -> Any:
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return trial.suggest_categorical(self.key, choices)
            case IntDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_int(self.key, low, high, step=step, log=log)
            case FloatDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_float(self.key, low, high, step=step, log=log)
        raise AssertionError(self.distribution)

    def override(self, value: Any) -> str:
        return f"{self.prefix}{self.key}={self.texts.get(value, value)}"

    def holds(self, value: Any) -> bool:
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return value in choices
            case IntDistribution(low=low, high=high, step=step) | FloatDistribution(low=low, high=high, step=step):
                steps = (value - low) / step if step and isinstance(value, int | float) else 0
                return isinstance(value, int | float) and low <= value <= high and abs(steps - round(steps)) < 1e-8
        raise AssertionError(self.distribution)

    @property
    def listed(self) -> bool:
        """Whether its values were listed one by one, and not given as a range."""
        return isinstance(self.distribution, CategoricalDistribution)

    def values(self) -> Sequence[Any] | None:
        """All values, or None if there is no end of them. A range is not written out."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return list(choices)
            case FloatDistribution(low=low, high=high) if low == high:
                return [low]
            case IntDistribution(low=low, high=high, step=step):
                return range(low, high + 1, step)
            case FloatDistribution(low=low, high=high, step=float(step)) if (high - low) / step < MANY:
                return [low + step * place for place in range(round((high - low) / step) + 1)]
        return None

    def extremes(self) -> list[Any]:
        """Values whose validity says most about all others: every choice, or both ends."""
        if isinstance(self.distribution, CategoricalDistribution):
            return list(self.distribution.choices)
        assert isinstance(self.distribution, IntDistribution | FloatDistribution)
        return [self.distribution.low, self.distribution.high]


@dataclass(frozen=True)
class Space:
    """All dimensions of a sweep, and the overrides that every trial shares."""

    dimensions: list[Dimension]
    fixed: dict[str, str]  # key with its prefix (+, ~) -> value as Hydra writes it

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(dimension.key for dimension in self.dimensions))

    @property
    def _shared(self) -> dict[str, str]:
        """What is fixed, by key without its prefix."""
        return {key.lstrip("+"): value for key, value in self.fixed.items()}

    @property
    def group(self) -> str | None:
        """The first key that chooses between several names: what is compared."""
        for dimension in self.dimensions:
            choices = getattr(dimension.distribution, "choices", ())
            if len(choices) > 1 and all(isinstance(choice, str) for choice in choices):
                return dimension.key
        return None

    def suggest(self, trial: Trial) -> Params:
        """Ask Optuna for every dimension whose condition holds; conditions see earlier choices."""
        params: Params = {}
        for dimension in self.dimensions:
            if self._active(dimension, params):
                params[dimension.key] = dimension.suggest(trial)
        return params

    def _active(self, dimension: Dimension, params: Params) -> bool:
        if dimension.condition is None:
            return True
        chosen = {d.key: d.texts[params[d.key]] for d in self.dimensions if params.get(d.key) in d.texts}
        return dimension.condition.holds(self._shared | chosen)

    def overrides(self, params: Params) -> list[str]:
        """The trial as Hydra overrides: what all share first, then what was sampled."""
        shared = [key if key.startswith("~") else f"{key}={value}" for key, value in self.fixed.items()]
        swept = [d for d in self.dimensions if d.key in params and self._active(d, params)]
        return shared + [d.override(params[d.key]) for d in swept]

    def probes(self) -> list[Params]:
        """Settings that together try every choice and both ends of every range."""
        base: Params = {}
        for dimension in self.dimensions:
            if self._active(dimension, base):
                base[dimension.key] = dimension.extremes()[0]
        probes = [base]
        for dimension in self.dimensions:
            need = dict(dimension.condition.cases[0]) if dimension.condition else {}
            for value in dimension.extremes():
                wanted = need | {dimension.key: value}
                probe: Params = {}
                for other in self.dimensions:
                    if self._active(other, probe):
                        probe[other.key] = wanted.get(other.key, base.get(other.key, other.extremes()[0]))
                if probe not in probes:
                    probes.append(probe)
        return probes

    def points(self, most: int) -> list[Params] | None:
        """Every point of the space; None if there are more than `most`."""
        points: list[Params] = [{}]
        for dimension in self.dimensions:
            longer: list[Params] = []
            for point in points:
                if not self._active(dimension, point):
                    longer.append(point)
                    continue
                values = dimension.values()
                if values is None or len(longer) + len(values) > most:
                    return None
                longer += [point | {dimension.key: value} for value in values]
            points = longer
        return points if len(points) <= most else None

    def given(self, params: Params) -> Params | None:
        """Settings given by hand, without what is fixed; None if they contradict what is fixed.

        ValueError for a key that is not swept, or a value that its sweep does not hold.
        """
        params, shared = _as_swept(params), self._shared
        for key, value in params.items():
            if key in shared:
                if shared[key] != str(value):
                    return None
            elif key not in self.keys:
                raise ValueError(f"hydra.sweeper.enqueue: {key}={value}: the key is not swept; sweep it or drop it")
            elif not self._holds(key, value):
                raise ValueError(
                    f"hydra.sweeper.enqueue: {key}={value}: not among the values swept; change one of them"
                )
        return {key: value for key, value in params.items() if key in self.keys}

    def known(self, params: Params) -> Params | None:
        """Of settings that are good elsewhere, those that this space goes through; None if it holds none of them."""
        params, shared = _as_swept(params), self._shared
        if any(key in shared and shared[key] != str(value) for key, value in params.items()):
            return None
        return {key: value for key, value in params.items() if self._holds(key, value)} or None

    def _holds(self, key: str, value: Any) -> bool:
        return any(dimension.key == key and dimension.holds(value) for dimension in self.dimensions)

    def fingerprint(self) -> str:
        """Says whether two sweeps search the same: JSON of what is fixed and what is swept."""
        swept: dict[str, list[str | None]] = {}
        for d in self.dimensions:
            swept.setdefault(d.key, []).extend(
                [repr(d.distribution), None if d.condition is None else str(d.condition)]
            )
        return json.dumps({"fixed": without_secrets(self.fixed), "swept": swept}, sort_keys=True)


def _as_swept(params: Params) -> Params:
    """Keys without a prefix; and null by its name, as choices know it."""
    return {key.lstrip("+"): "null" if value is None else value for key, value in params.items()}


def label(params: Params) -> str:
    """Short and recognisable: the sampled values, keys without their path."""
    return " ".join(f"{key.split('.')[-1]}={_short(value)}" for key, value in params.items()) or "defaults"


def title(number: int, label: str) -> str:
    """Of a trial's MLflow run; what tells it from others stands first, as lists cut names off."""
    return f"{label} #{number}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
