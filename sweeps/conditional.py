"""Ranges that config files give for their own keys: searched only where the file is chosen.

conf/loss/cls/focal.yaml says `_search_: {gamma: "interval(0.5,4.0)"}`; with `hydra.sweeper.search=[loss]` gamma is
swept in the trials that choose this file, and exists in no other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import check_distribution_compatibility

from ghm.settings.own_ranges import SEARCH
from sweeps.composer import Composer
from sweeps.grammar import dimension
from sweeps.space import Condition, Dimension, Space

MOST = 1000  # combinations of files that are looked through

Case = dict[str, str]


def widen(space: Space, nodes: Sequence[str], composer: Composer) -> Space:
    """The space with the ranges that its files give for keys at or below `nodes`, as far as nobody speaks of them.

    ValueError for nodes without any range, for more than 1000 combinations of files, and for ranges of one key that
    cannot be one parameter.
    """
    choices = [one for one in space.dimensions if composer.is_group(one.key)]
    points = Space(choices, space.fixed).points(most=MOST)
    if points is None:
        raise ValueError(
            f"hydra.sweeper.search={list(nodes)}: more than {MOST} combinations of files are swept; choose fewer"
        )
    keys = list(dict.fromkeys(one.key for one in choices))
    spoken = {*space.fixed, *space.keys}
    cases: dict[tuple[str, str], list[Case]] = {}
    for point in points:
        case = {one.key: one.texts[point[one.key]] for one in choices if point.get(one.key) in one.texts}
        for key, sweep in composer.searched(space.overrides(point)).items():
            if any(key == node or key.startswith(f"{node}.") for node in nodes) and key not in spoken:
                cases.setdefault((key, sweep), []).append(case)
    found = {key for key, _ in cases}
    for node in nodes:
        if not any(key == node or key.startswith(f"{node}.") for key in {*found, *spoken}):
            raise ValueError(
                f"hydra.sweeper.search: {node}: no file that is chosen gives a range there ({SEARCH}); "
                "name a node that does, as loss or optimizer"
            )
    values = {key: {one.texts[value] for one in choices if one.key == key for value in one.texts} for key in keys}
    own = [_dimension(key, sweep, _simplest(where, values, len(points))) for (key, sweep), where in cases.items()]
    _refuse_unlike(own)
    return replace(space, dimensions=[*space.dimensions, *own])


def _dimension(key: str, sweep: str, condition: Condition | None) -> Dimension:
    try:
        [override] = OverridesParser.create().parse_overrides([f"{key}={sweep}"])
    except Exception as error:
        raise ValueError(f"{key}: {SEARCH} says {sweep}, which is no sweep; write it as interval(0,1)") from error
    if not override.is_sweep_override():
        raise ValueError(f"{key}: {SEARCH} says {sweep}, which sweeps nothing; write it as interval(0,1)")
    return dimension(override, condition)


def _simplest(cases: list[Case], values: Mapping[str, set[str]], count: int) -> Condition | None:
    """A condition that holds in these cases alone, without choices that do not matter; None if it always holds."""
    if len(cases) == count:
        return None
    for key, every in values.items():
        shorter = [{k: v for k, v in case.items() if k != key} for case in cases]
        with_any = [rest | {key: value} for rest in shorter for value in every]
        if all(case in cases for case in with_any):
            cases = [case for place, case in enumerate(shorter) if case not in shorter[:place]]
    return Condition(tuple(cases))


def _refuse_unlike(own: Sequence[Dimension]) -> None:
    """ValueError for a key whose ranges are of two kinds, which Optuna cannot take for one parameter."""
    for one, other in product(own, own):
        if one.key == other.key:
            try:
                check_distribution_compatibility(one.distribution, other.distribution)
            except ValueError as error:
                raise ValueError(
                    f"{one.key}: has other choices under {other.condition} than under {one.condition}; "
                    "give the same, or a range of numbers"
                ) from error
