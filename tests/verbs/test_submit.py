"""Commands on a real cluster, which other people use too."""

import json
import sys
from pathlib import Path

import pytest

from tests.chaos import namespace


@pytest.mark.slow  # two minutes, and Ray's dashboard has ports that other clusters of a machine may hold
@pytest.mark.skipif(namespace.why_not() is not None, reason=f"no process namespace: {namespace.why_not()}")
def test_a_submitted_command_runs_the_code_of_here_and_shows_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    ended = namespace.run([sys.executable, "-m", "tests.verbs.cluster", str(tmp_path)], seconds=400)
    assert ended.returncode == 0, ended.stdout[-3000:]
    came = json.loads(ended.stdout.strip().splitlines()[-1])
    assert came["codes"][0] in (0, 1), came["tail"]  # a training so short may have learned nothing
    assert came["codes"][1:] == [came["codes"][0], 2]
    assert came["begun"] == [False, True]
    assert came["packages"] == [False, True]
    assert "nonsense" in came["said"]
    assert came["listed"][-1] == ["wrong", "FAILED"]
    assert not came["leaked"]
