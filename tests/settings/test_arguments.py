"""Command lines as people type them: what reaches Hydra is what was meant."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from ghm.settings.arguments import read


def value(word: str):
    """What Hydra makes of a word after it was read here."""
    _, [override] = read([word])
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "my data",
        "a,b",
        "a#1",
        "größe",
        "画像",
        "a=b",
        "it's",
        'say "x"',
        "a(1)",
        "a[1]",
        "a{1}",
        "100 %",
        "a&b;c!",
        "2026",
        "1e5",
        "true",
        " spaced ",
        "back\\slash",
        "quote\\'",
        "end\\",
    ],
)
@pytest.mark.parametrize("key", ["data.root", "+data.root", "runs", "checkpoint"])
def test_a_path_is_what_the_shell_passed_as_one_word(name, key):
    Path(name).mkdir()
    assert value(f"{key}=./{name}") == f"./{name}"
    assert value(f"{key}={name}") == name or name == " spaced "


def test_home_and_variables_are_what_a_shell_makes_of_them(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch disk")
    assert value("data.root=~/coco") == "/home/me/coco"
    assert value("data.root=$HOME/coco") == "/home/me/coco"
    assert value("runs=${SCRATCH}/runs") == "${SCRATCH}/runs"  # Hydra's own form is Hydra's
    assert value("runs=$SCRATCH/runs") == "/scratch disk/runs"


@pytest.mark.parametrize(
    "word",
    [
        "data.root='quoted already'",
        'data.root="quoted"',
        "data.root=${oc.env:HOME}",
        "data.root=null",
        "data.root=",
        "seed=1,2",
        "loss=ghm,focal",
        "loss.cls.bins=range(1,5)",
        "~clip_grad",
        "+x=[1,2]",
        "data.root=choice(a,b)",
        "seed=(3",
    ],
)
def test_what_is_meant_for_hydra_stays_as_it_is(word):
    assert read([word]) == ([], [word])


def test_folders_are_swept_over_where_each_exists():
    for name in ("one", "zwei ü"):
        Path(name).mkdir()
    _, [override] = read(["data.root=one,zwei ü"])
    swept = OverridesParser.create().parse_override(override)
    assert [str(getattr(choice, "text", choice)) for choice in swept.sweep_iterator()] == ["one", "zwei ü"]
    assert value("data.root=one,two").list == ["one", "two"]


@pytest.mark.parametrize(
    "word", ["hydra.sweeper.study_name=größe", "hydra.sweeper.storage=postgresql://h/x?sslmode=off"]
)
def test_other_values_are_quoted_where_hydra_could_not_read_them(word):
    assert value(word) == word.split("=", 1)[1]


def test_flags_may_stand_anywhere():
    words = ["+experiment=paper", "--cfg", "job", "data.root=x", "-m", "seed=1,2", "--info"]
    flags, overrides = read(words)
    assert flags == ["--cfg", "job", "-m", "--info"]
    assert overrides == ["+experiment=paper", "data.root='x'", "seed=1,2"]
    assert read(["--info", "seed=1"]) == (["--info=all"], ["seed=1"])
    assert read([]) == ([], [])


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["seed=1", "seed=1"], "seed"),
        (["+x=1", "x=2"], "x"),
        (["a.b=1,2", "c=3", "++a.b=4"], "a.b"),
        (["loss=a", "loss=b"], "loss"),
    ],
)
def test_a_key_given_twice_is_named(words, key):
    with pytest.raises(ValueError, match=f"^{words[-1].replace('+', '.')}: {key} is given twice, as"):
        read(words)


def test_a_scale_comes_behind_what_it_makes_smaller():
    assert read(["-m", "+scale=small", "seed=1", "+sweep=table4"]) == (
        ["-m"],
        ["seed=1", "+sweep=table4", "+scale=small"],
    )


def test_a_key_may_be_removed_and_added_anew():
    assert read(["~optimizer", "+optimizer=sgd"])[1] == ["~optimizer", "+optimizer=sgd"]


@pytest.mark.parametrize("module", ["ghm", "ghm.cli"])
def test_the_modules_work_as_the_command_does(module):
    done = subprocess.run([sys.executable, "-m", module, "train", "epochs=0"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "ghm: epochs=0: must be a whole number of at least 1\n")
