"""The part of `make chaos` that every test run has time for."""

import random
from pathlib import Path

import pytest

from tests.chaos import namespace
from tests.chaos.__main__ import main


@pytest.mark.skipif(namespace.why_not() is not None, reason=f"no process namespace: {namespace.why_not()}")
def test_nothing_is_lost_doubled_or_wrong_after_a_fault_of_each_common_kind(capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])  # from where `make chaos` runs
    monkeypatch.setattr("sys.argv", ["chaos", "each_once", "--points", "6", "--seed", str(random.randrange(10**6))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().out
