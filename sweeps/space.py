"""The search space: Hydra's sweep syntax in, Optuna's distributions inside, Hydra overrides out."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from ghm.secrets import without_secrets

Params = dict[str, Any]
MANY = 100_000  # values of a range, above which it counts as endless


@dataclass(frozen=True)
class Dimension:
    """One swept key. `condition` is a choice such as "loss=focal" that must hold for it to be sampled."""

    key: str
    distribution: BaseDistribution
    condition: str | None = None
    texts: dict[Any, str] = field(default_factory=dict)  # of choices: how Hydra writes them

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
        return f"{self.key}={self.texts.get(value, value)}"

    def holds(self, value: Any) -> bool:
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return value in choices
            case IntDistribution(low=low, high=high, step=step) | FloatDistribution(low=low, high=high, step=step):
                steps = (value - low) / step if step and isinstance(value, int | float) else 0
                return isinstance(value, int | float) and low <= value <= high and abs(steps - round(steps)) < 1e-8
        raise AssertionError(self.distribution)

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
        return [dimension.key for dimension in self.dimensions]

    @property
    def group(self) -> str | None:
        """The first key that chooses between names: what is compared."""
        for dimension in self.dimensions:
            choices = getattr(dimension.distribution, "choices", ())
            if choices and all(isinstance(choice, str) for choice in choices):
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
        sampled = {d.key: d.texts.get(params[d.key]) for d in self.dimensions if d.key in params}
        key, value = dimension.condition.split("=", 1)
        return (self.fixed | sampled).get(key) == value

    def overrides(self, params: Params) -> list[str]:
        """The trial as Hydra overrides: what all share first, then what was sampled."""
        shared = [key if key.startswith("~") else f"{key}={value}" for key, value in self.fixed.items()]
        return shared + [d.override(params[d.key]) for d in self.dimensions if d.key in params]

    def probes(self) -> list[Params]:
        """Settings that together try every choice and both ends of every range."""
        base: Params = {}
        for dimension in self.dimensions:
            if self._active(dimension, base):
                base[dimension.key] = dimension.extremes()[0]
        probes = [base]
        for dimension in self.dimensions:
            need = dict([dimension.condition.split("=", 1)]) if dimension.condition else {}
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
        dimensions = {dimension.key: dimension for dimension in self.dimensions}
        for key, value in params.items():
            if key in self.fixed:
                if self.fixed[key] != str(value):
                    return None
            elif key not in dimensions:
                raise ValueError(f"hydra.sweeper.enqueue: {key}={value}: the key is not swept; sweep it or drop it")
            elif not dimensions[key].holds(value):
                raise ValueError(
                    f"hydra.sweeper.enqueue: {key}={value}: not among the values swept; change one of them"
                )
        return {key: value for key, value in params.items() if key in dimensions}

    def known(self, params: Params) -> Params | None:
        """Of settings that are good elsewhere, those that this space goes through; None if it holds none of them."""
        if any(key in self.fixed and self.fixed[key] != str(value) for key, value in params.items()):
            return None
        held = {dimension.key: dimension.holds for dimension in self.dimensions}
        return {key: value for key, value in params.items() if key in held and held[key](value)} or None

    def fingerprint(self) -> str:
        """Says whether two sweeps search the same: JSON of what is fixed and what is swept."""
        swept = {d.key: [repr(d.distribution), d.condition] for d in self.dimensions}
        return json.dumps({"fixed": without_secrets(self.fixed), "swept": swept}, sort_keys=True)


def parse(arguments: list[str], params: Mapping[str, str], when: Mapping[str, Mapping[str, str]], loader: Any) -> Space:
    """Space of a sweep from `hydra.sweeper.{params,when}` and the command line, which has the last word.

    `loader` is Hydra's config loader. ValueError names the key that cannot be swept so, or is swept twice.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(arguments)
    spoken = {override.get_key_element() for override in given}
    every = parser.parse_overrides([_written("params", key, value) for key, value in params.items()])
    overrides = [*(override for override in every if override.get_key_element() not in spoken), *given]
    fixed = {o.get_key_element(): o.get_value_element_as_str() for o in overrides if not o.is_sweep_override()}
    dimensions = [_dimension(override) for override in overrides if override.is_sweep_override()]
    conditions: dict[str, list[str]] = {override.get_key_element(): [] for override in overrides}
    for condition, conditional in when.items():
        _check_condition(condition, [*every, *given], loader)
        for override in parser.parse_overrides([_written("when", key, value) for key, value in conditional.items()]):
            key = override.get_key_element()
            if not override.is_sweep_override():
                raise ValueError(
                    f"hydra.sweeper.when={condition}: {override.input_line} sweeps nothing; fix it elsewhere"
                )
            if key in spoken:
                continue
            if key in conditions and not all(_exclude(condition, other) for other in conditions[key] or [""]):
                raise ValueError(
                    f"hydra.sweeper.when={condition}: {key} is swept twice, here and in "
                    f"{' and '.join(conditions[key]) or 'hydra.sweeper.params'}; sweep it in one place"
                )
            conditions.setdefault(key, []).append(condition)
            dimensions.append(_dimension(override, condition))
    return Space(dimensions, fixed)


def _exclude(one: str, other: str) -> bool:
    """Whether two conditions never hold together: other values of one choice."""
    return one != other and one.partition("=")[0] == other.partition("=")[0]


def _check_condition(condition: str, overrides: list[Override], loader: Any) -> None:
    """ValueError for a condition that nothing can fulfil, or that is on a range of numbers."""
    key, equals, value = condition.partition("=")
    about = [override for override in overrides if override.get_key_element() == key]
    if not equals or not about:
        raise ValueError(
            f"hydra.sweeper.when={condition}: nothing chooses {key}; sweep it or fix it, and write {key}=VALUE"
        )
    values: set[str] = set(loader.get_group_options(key))
    for override in about:
        if isinstance(override.value(), IntervalSweep | RangeSweep):
            raise ValueError(
                f"hydra.sweeper.when={condition}: {override.input_line} is a range, and a condition is on a choice; "
                f"sweep it as {key}=choice({value},...)"
            )
        if override.is_sweep_override():
            values |= {Override._get_value_element_as_str(x) for x in override.sweep_iterator()}
        else:
            values.add(override.get_value_element_as_str())
    if value not in values:
        raise ValueError(f"hydra.sweeper.when={condition}: {key} is never {value}, only {', '.join(sorted(values))}")


def _written(where: str, key: str, value: Any) -> str:
    """As Hydra writes it: YAML's null, true and false arrive here as Python's."""
    if isinstance(value, str):
        return f"{key}={value}"
    if isinstance(value, bool | int | float | None):
        return f"{key}={json.dumps(value)}"
    values = ",".join(str(one) for one in value)
    raise ValueError(
        f"hydra.sweeper.{where}.{key}={value}: must be a sweep written as a text, as 'choice({values})' or 'range(0,3)'"
    )


def _dimension(override: Override, condition: str | None = None) -> Dimension:
    key, value = override.get_key_element(), override.value()
    try:
        if isinstance(value, IntervalSweep):
            return Dimension(key, _interval(value), condition)
        if isinstance(value, RangeSweep):
            return Dimension(key, _range(value), condition)
        texts = {_plain(x): Override._get_value_element_as_str(x) for x in override.sweep_iterator()}
        if not texts:
            raise ValueError("no choice is left")
        return Dimension(key, CategoricalDistribution(list(texts)), condition, texts)
    except ValueError as error:
        raise ValueError(f"{override.input_line}: cannot be swept ({error})") from error


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    """Closed at both ends, as in Hydra's own Optuna sweeper."""
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if low is None or high is None or low > high:
        raise ValueError("its lower end must come first")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(sweep: RangeSweep) -> BaseDistribution:
    """Half open, as Hydra's `range`: the last value is the largest below `stop`."""
    if sweep.start is None or sweep.stop is None or sweep.step == 0:
        raise ValueError("it needs a start, a stop and a step other than 0")
    # As many steps as stay short of `stop`; a float's last one may reach it by rounding.
    count = math.ceil(round((sweep.stop - sweep.start) / sweep.step, 9))
    if count < 1:
        raise ValueError("it holds no value")
    ends = (sweep.start, round(sweep.start + (count - 1) * sweep.step, 12))
    low, high, log, step = min(ends), max(ends), "log" in sweep.tags, abs(sweep.step)
    if all(isinstance(value, int) for value in (sweep.start, sweep.stop, sweep.step)):
        return IntDistribution(int(low), int(high), log=log, step=int(step))
    return FloatDistribution(float(low), float(high), log=log, step=None if log else float(step))


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return value if isinstance(value, str | int | float | bool) else Override._get_value_element_as_str(value)


def label(params: Params) -> str:
    """Short and recognisable: the sampled values, keys without their path."""
    return " ".join(f"{key.split('.')[-1]}={_short(value)}" for key, value in params.items()) or "defaults"


def title(number: int, label: str) -> str:
    """Of a trial's MLflow run; what tells it from others stands first, as lists cut names off."""
    return f"{label} #{number}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
