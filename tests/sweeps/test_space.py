import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.grammar import parse
from sweeps.space import Space
from tests.sweeps.toy import LOADER

CONDITIONAL = {"loss=ghm": {"loss.cls.bins": "range(10,41,15)"}, "loss=focal": {"loss.cls.gamma": "interval(1,3)"}}


def space(*arguments: str, params=None, when=None) -> Space:
    return parse(list(arguments), params or {}, when or {}, LOADER)


@pytest.mark.parametrize(
    ("sweep", "distribution"),
    [
        ("choice(1,2)", CategoricalDistribution([1, 2])),
        ("1,2", CategoricalDistribution([1, 2])),
        ("a,b", CategoricalDistribution(["a", "b"])),
        ("true,false", CategoricalDistribution([True, False])),
        ("range(0,3)", IntDistribution(0, 2)),
        ("range(0,10,4)", IntDistribution(0, 8, step=4)),
        ("range(1,4)", IntDistribution(1, 3)),
        ("range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,interval(0.001,1))", FloatDistribution(0.001, 1.0, log=True)),
        ("tag(log,int(interval(1,100)))", IntDistribution(1, 100, log=True)),
    ],
)
def test_hydra_syntax_becomes_the_distribution_it_means(sweep, distribution):
    assert space(f"seed={sweep}").dimensions[0].distribution == distribution


@pytest.mark.parametrize("sweep", ["interval(3,1)", "range(3,1)", "tag(log,interval(0,1))"])
def test_a_sweep_without_a_point_names_its_key_and_value(sweep):
    with pytest.raises(ValueError, match=r"loss\.cls\.gamma=.*cannot be swept"):
        space(f"loss.cls.gamma={sweep}")


def test_what_is_typed_overrules_what_is_configured():
    swept = space("loss=focal", "seed=5", params={"loss": "choice(ghm,focal)", "seed": "range(3)", "epochs": "1,2"})
    assert swept.fixed == {"loss": "focal", "seed": "5"}
    assert [dimension.key for dimension in swept.dimensions] == ["epochs"]


def test_a_conditional_key_is_sampled_only_with_its_choice():
    swept = space(params={"loss": "choice(ghm,focal,cross_entropy)"}, when=CONDITIONAL)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        params = swept.suggest(study.ask())
        seen.add((params["loss"], tuple(sorted(params))))
    assert seen == {
        ("ghm", ("loss", "loss.cls.bins")),
        ("focal", ("loss", "loss.cls.gamma")),
        ("cross_entropy", ("loss",)),
    }


def test_a_condition_may_hold_by_a_fixed_choice():
    swept = space("loss=focal", params={"loss": "choice(ghm,focal)"}, when=CONDITIONAL)
    assert set(swept.suggest(optuna.create_study().ask())) == {"loss.cls.gamma"}


def test_a_condition_on_what_nobody_chooses_is_refused():
    with pytest.raises(ValueError, match="nothing chooses loss"):
        space(when=CONDITIONAL)


def test_a_condition_that_sweeps_nothing_is_refused():
    with pytest.raises(ValueError, match=r"when=loss=focal: loss\.cls\.gamma=2\.0 sweeps nothing"):
        space(params={"loss": "choice(ghm,focal)"}, when={"loss=focal": {"loss.cls.gamma": 2.0}})


def test_configured_nulls_and_booleans_arrive_as_hydra_reads_them():
    assert space(params={"clip_grad": None, "flag": True}).fixed == {"clip_grad": "null", "flag": "True"}


def test_a_key_removed_on_the_command_line_stays_removed():
    assert space("~clip_grad", "seed=1,2").overrides({"seed": 1}) == ["~clip_grad", "seed=1"]


def test_a_trial_becomes_ordinary_hydra_overrides():
    swept = space("epochs=3", "+extra=[1,2]", "loss=ghm,focal", "loss.cls.weight=interval(1,2)")
    overrides = swept.overrides({"loss": "focal", "loss.cls.weight": 1.5})
    assert overrides == ["epochs=3", "+extra=[1,2]", "loss=focal", "loss.cls.weight=1.5"]


def test_null_is_a_choice_that_can_be_tried_first():
    made = space("prior=null,0.01", "weight=interval(1,10)")
    assert made.given({"prior": None, "weight": 2}) == {"prior": "null", "weight": 2}
    assert made.known({"prior": None}) == {"prior": "null"}
    assert made.overrides({"prior": "null", "weight": 2.0}) == ["prior=null", "weight=2.0"]
    assert space("prior=null", "weight=interval(1,10)").given({"prior": None, "weight": 2}) == {"weight": 2}


def test_a_key_that_is_added_is_called_by_its_name():
    swept = space("+best=one,two", "+few=interval(0,1)", "+all=1", when={"+best=one": {"+much": "range(1,3)"}})
    assert swept.keys == ["best", "few", "much"]
    assert swept.group == "best"
    drawn = swept.suggest(optuna.create_study().ask())
    assert ("much" in drawn) == (drawn["best"] == "one")
    assert swept.overrides({"best": "one", "few": 0.5, "much": 1}) == ["+all=1", "+best=one", "+few=0.5", "+much=1"]
    for given in ({"+best": "two", "+all": 1}, {"best": "two", "all": 1}):
        assert swept.given(given) == {"best": "two"}
    assert swept.given({"all": 2}) is None


def test_quoted_choices_keep_their_quotes():
    swept = space("device='a b','c,d'")
    assert swept.dimensions[0].override("c,d") == "device='c,d'"


def test_a_finite_space_lists_each_point_once_and_only_active_keys():
    swept = space("seed=range(2)", "loss=ghm,cross_entropy", when={"loss=ghm": {"loss.cls.bins": "10,30"}})
    points = swept.points(most=6)
    assert len(points) == 6
    assert {"seed": 1, "loss": "cross_entropy"} in points
    assert {"seed": 0, "loss": "ghm", "loss.cls.bins": 30} in points
    assert swept.points(most=5) is None
    assert space("loss.cls.gamma=interval(1,2)").points(most=100) is None
    assert space("epochs=1").points(most=1) == [{}]


def test_probes_try_every_choice_and_both_ends_where_they_are_active():
    swept = space(params={"loss": "choice(ghm,focal)"}, when=CONDITIONAL)
    probes = swept.probes()
    for wanted in (
        {"loss": "ghm", "loss.cls.bins": 10},
        {"loss": "ghm", "loss.cls.bins": 40},
        {"loss": "focal", "loss.cls.gamma": 1.0},
        {"loss": "focal", "loss.cls.gamma": 3.0},
    ):
        assert wanted in probes


def test_the_fingerprint_tells_spaces_apart():
    assert space("seed=1,2").fingerprint() == space("seed=1,2").fingerprint()
    assert space("seed=1,2").fingerprint() != space("seed=1,3").fingerprint()
    assert space("seed=1,2").fingerprint() != space("seed=1,2", "epochs=3").fingerprint()


def test_a_long_range_is_not_written_out():
    swept = space("seed=range(0,5000000000000)", "loss.cls.gamma=range(0,1,0.0000001)")
    assert swept.points(most=1000) is None
    assert swept.probes()[0]["seed"] == 0
    assert [dimension.distribution.high for dimension in swept.dimensions] == [4999999999999, pytest.approx(1 - 1e-7)]


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("range(5)", [0, 1, 2, 3, 4]),
        ("range(10,41,10)", [10, 20, 30, 40]),
        ("range(10,40,10)", [10, 20, 30]),
        ("range(5,0,-2)", [1, 3, 5]),
        ("range(0,1,0.25)", [0, 0.25, 0.5, 0.75]),
        ("range(0,0.3,0.1)", [0, 0.1, 0.2]),
        ("range(0,0.35,0.1)", [0, 0.1, 0.2, 0.3]),
    ],
)
def test_a_range_is_half_open_as_hydras(sweep, values):
    points = space(f"seed={sweep}").points(most=10)
    assert [point["seed"] for point in points] == pytest.approx(values)


@pytest.mark.parametrize("sweep", ["range(5,5)", "range(5,1)", "range(1,5,-1)"])
def test_a_range_without_a_value_is_refused(sweep):
    with pytest.raises(ValueError, match="cannot be swept"):
        space(f"seed={sweep}")


@pytest.mark.parametrize(
    ("arguments", "when", "said"),
    [
        (["loss=ghm,focal"], {"loss=gmh": {"loss.cls.bins": "1,2"}}, "loss=gmh: loss is never gmh, only .*focal.*ghm"),
        (["loss=ghm"], {"loss=gmh": {"loss.cls.bins": "1,2"}}, "loss=gmh: loss is never gmh"),
        (["optimizer.lr=0.1,0.2"], {"optimizer.lr=0.3": {"seed": "1,2"}}, "is never 0.3, only 0.1, 0.2"),
        (["optimizer.lr=interval(0,1)"], {"optimizer.lr=0.3": {"seed": "1,2"}}, "is a range, and a condition is on a"),
        (["seed=range(3)"], {"seed=1": {"loss.cls.bins": "1,2"}}, "is a range, and a condition is on a choice"),
        (["loss=ghm", "seed=1"], {"loss=ghm": {"x": "1,2"}, "seed=1": {"x": "1,2"}}, "x is swept twice, .* loss=ghm"),
    ],
)
def test_a_condition_that_never_holds_is_refused(arguments, when, said):
    with pytest.raises(ValueError, match=f"^hydra.sweeper.when=.*{said}"):
        space(*arguments, when=when)


def test_a_key_swept_in_two_places_is_refused():
    with pytest.raises(
        ValueError, match=r"seed is swept twice, here and in hydra.sweeper.params; sweep it in one place"
    ):
        space("loss=ghm,focal", params={"seed": "1,2"}, when={"loss=ghm": {"seed": "1,2"}})


def test_a_condition_may_name_what_the_command_line_excludes():
    swept = space("loss=ghm", params={"loss": "choice(ghm,focal)"}, when=CONDITIONAL)
    assert [dimension.key for dimension in swept.dimensions] == ["loss.cls.bins", "loss.cls.gamma"]
    assert set(swept.probes()[0]) == {"loss.cls.bins"}


def test_a_key_may_be_swept_under_two_values_of_a_choice():
    when = {"loss=ghm": {"loss.cls.bins": "1,2"}, "loss=ghm_c": {"loss.cls.bins": "1,2"}}
    assert len(space("loss=ghm,ghm_c", when=when).points(most=10)) == 4


PAPER = {"loss": "ghm", "loss.cls.bins": 25, "loss.cls.momentum": 0.75}


@pytest.mark.parametrize(
    ("arguments", "when", "expected"),
    [
        (["loss=ghm,focal"], CONDITIONAL, {"loss": "ghm", "loss.cls.bins": 25}),
        (["loss=ghm", "loss.cls.bins=range(10,41,15)"], {}, {"loss.cls.bins": 25}),
        (["loss.cls.momentum=interval(0,0.9)"], {}, {"loss.cls.momentum": 0.75}),
        (["loss.cls.bins=range(10,41,10)"], {}, None),  # 25 is not among them
        (["loss=focal", "loss.cls.gamma=interval(1,3)"], {}, None),
        (["optimizer.lr=interval(0.001,0.1)"], {}, None),
    ],
)
def test_of_known_settings_a_space_takes_those_that_it_goes_through(arguments, when, expected):
    assert space(*arguments, when=when).known(PAPER) == expected
