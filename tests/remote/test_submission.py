"""What goes to a cluster with a command, and what others see of it."""

import json
import stat
from pathlib import Path

import pytest

from ghm import provenance
from ghm.remote import submission
from ghm.remote.carried import carried

SECRET = "hydra.sweeper.storage=postgresql+psycopg2://me:hunter2@host/db"


def test_a_package_holds_code_configuration_and_the_command_and_nothing_else(tmp_path):
    submission.pack(tmp_path, ["train", "-m", SECRET], {"MLFLOW_TRACKING_PASSWORD": "hunter2"}, Path("/work"))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        "ghm/cli.py",
        "ghm/reports/page.html.j2",
        "sweeps/controller.py",
        "hydra_plugins/ghm_sweeper/sweeper.py",
        "conf/train.yaml",
    } <= files
    assert {path.split("/")[0] for path in files} == {"ghm", "sweeps", "hydra_plugins", "conf"}
    order = tmp_path / "ghm" / submission.ORDER
    assert json.loads(order.read_text()) == {
        "words": ["train", "-m", SECRET],
        "environment": {"MLFLOW_TRACKING_PASSWORD": "hunter2"},
        "cwd": "/work",
    }
    assert stat.S_IMODE(order.stat().st_mode) == 0o600
    assert json.loads((tmp_path / "ghm" / provenance.SOURCE).read_text()) == provenance.source()


def test_code_that_was_packed_up_knows_what_it_is(tmp_path, monkeypatch):
    (tmp_path / provenance.SOURCE).write_text(json.dumps({"commit": "abc-dirty", "diff": "+ a line"}))
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    assert provenance.source() == {"commit": "abc-dirty", "diff": "+ a line"}


def test_a_package_that_no_cluster_takes_is_refused_with_its_largest_files(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"more than the 100 MiB a cluster takes; move away [\w/.]+ \(0 MiB\)"):
        submission.pack(tmp_path, ["train"], {}, Path("/work"))


def test_what_others_see_of_a_command_holds_no_secret():
    assert submission.shown(["train", "-m", SECRET]) == (
        "ghm train -m 'hydra.sweeper.storage=postgresql+psycopg2://***@host/db'"
    )


def test_the_variables_of_mlflow_and_those_that_are_named_go_along(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("OTHER", "2")
    taken = carried(["MINE"])
    assert (taken["MLFLOW_TRACKING_URI"], taken["MINE"], "OTHER" in taken) == ("http://host", "1", False)
    with pytest.raises(ValueError, match="--env NONE: is not set here"):
        carried(["NONE"])
    monkeypatch.setenv("GHM_ENV", taken["GHM_ENV"])  # as where they were carried to
    assert carried() == taken


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command; write ghm submit [options] -- train"),
        (["--nonsense", "--", "train"], "unrecognized arguments: --nonsense"),
        (["--address", "http://127.0.0.1:9", "--", "train"], "--address http://127.0.0.1:9: no Ray dashboard answers"),
        (["--list", "--stop", "x"], "not allowed with argument"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(ghm, capsys, words, said):
    assert ghm("submit", *words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert said in line
