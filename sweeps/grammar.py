"""Reads a search space: Hydra's sweep syntax in, dimensions out."""

import json
import math
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.space import Condition, Dimension, Space


def parse(arguments: list[str], params: Mapping[str, str], when: Mapping[str, Mapping[str, str]], loader: Any) -> Space:
    """Space of a sweep from `hydra.sweeper.{params,when}` and the command line, which has the last word.

    `loader` is Hydra's config loader. ValueError names the key that cannot be swept so, or is swept twice.
    """
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(arguments)
    spoken = {_key(override) for override in given}
    every = parser.parse_overrides([_written("params", key, value) for key, value in params.items()])
    overrides = [*(override for override in every if _key(override) not in spoken), *given]
    fixed = {o.get_key_element(): o.get_value_element_as_str() for o in overrides if not o.is_sweep_override()}
    dimensions = [dimension(override) for override in overrides if override.is_sweep_override()]
    conditions: dict[str, list[str]] = {_key(override): [] for override in overrides}
    for condition, conditional in ((condition.lstrip("+"), swept) for condition, swept in when.items()):
        _check_condition(condition, [*every, *given], loader)
        for override in parser.parse_overrides([_written("when", key, value) for key, value in conditional.items()]):
            key = _key(override)
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
            dimensions.append(dimension(override, Condition((dict([condition.split("=", 1)]),))))
    return Space(dimensions, fixed)


def _key(override: Override) -> str:
    """What is swept, without the + of a key that the config does not have yet."""
    element: str = override.get_key_element()
    return element.lstrip("+")


def _exclude(one: str, other: str) -> bool:
    """Whether two conditions never hold together: other values of one choice."""
    return one != other and one.partition("=")[0] == other.partition("=")[0]


def _check_condition(condition: str, overrides: list[Override], loader: Any) -> None:
    """ValueError for a condition that nothing can fulfil, or that is on a range of numbers."""
    key, equals, value = condition.partition("=")
    about = [override for override in overrides if _key(override) == key]
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


def dimension(override: Override, condition: Condition | None = None) -> Dimension:
    """What an override sweeps. ValueError for one that cannot be swept so."""
    key, value = _key(override), override.value()
    prefix = override.get_key_element().removesuffix(key)
    try:
        if isinstance(value, IntervalSweep):
            return Dimension(key, _interval(value), condition, prefix=prefix)
        if isinstance(value, RangeSweep):
            return Dimension(key, _range(value), condition, prefix=prefix)
        texts = {_plain(x): Override._get_value_element_as_str(x) for x in override.sweep_iterator()}
        if not texts:
            raise ValueError("no choice is left")
        return Dimension(key, CategoricalDistribution(list(texts)), condition, texts, prefix)
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
