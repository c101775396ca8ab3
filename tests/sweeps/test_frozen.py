"""What is edited while a sweep runs, and what it makes of that: code is a copy, all else is checked."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from ghm.tracking import Spool
from sweeps.record import Record

ROOT = Path(__file__).resolve().parents[2]
# A loss whose first run edits a file and loses its process, so that the next attempt begins in another one.
MINE = """
import os
from pathlib import Path
from torch import nn


class Editing(nn.Module):
    def __init__(self, marker, file, text):
        super().__init__()
        self.marker, self.file, self.text = Path(marker), Path(file), text

    def forward(self, input, target, valid=None, sizes=None):
        if not self.marker.exists():
            self.marker.touch()
            self.file.write_text(f"{self.file.read_text()}\\n{self.text}\\n")
            os._exit(1)
        return input.float().mean() * 0
"""


def test_edited_code_reaches_no_trial_and_an_edited_module_of_ones_own_is_refused(tmp_path):
    """Trial 0 edits ghm and goes on with what ghm was; trial 1 edits its own module, which is not copied."""
    source = tmp_path / "source"
    for name in ("ghm", "sweeps", "conf"):
        shutil.copytree(ROOT / name, source / name)
    for module in ("mine", "other"):
        (tmp_path / f"{module}.py").write_text(MINE)
    edits = {"ghm": (source / "ghm" / "worker.py", "raise SystemError"), "mine": (tmp_path / "mine.py", "EDITED = 1")}
    for name, (file, text) in edits.items():
        place = tmp_path / "conf" / "loss" / "cls" / f"edits_{name}.yaml"
        place.parent.mkdir(parents=True, exist_ok=True)
        module = "other" if name == "ghm" else "mine"
        keys = {"_target_": f"{module}.Editing", "marker": str(tmp_path / name), "file": str(file), "text": text}
        place.write_text(json.dumps(keys))
    small = ["epochs=1", "data.train_images=4", "data.val_images=2", "data.image_size=64", "batch_size=2"]
    words = ["train", "-m", "--config-dir", str(tmp_path / "conf"), *small, "figures=false"]
    words += ["loss/cls=edits_ghm,edits_mine", "loss.prior=null"]
    words += ["hydra.sweeper.study_name=s", "hydra.sweeper.backoff=0", "hydra.sweeper.max_failure_rate=0.5"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (source, source / "sweeps", tmp_path)))}
    ended = subprocess.run(
        [sys.executable, "-m", "ghm", *words], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    told = ended.stdout + ended.stderr
    assert (tmp_path / "ghm").exists(), told
    assert "raise SystemError" in (source / "ghm" / "worker.py").read_text()
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/runs/optuna.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"], told
    assert [trial.user_attrs["attempt"] for trial in trials] == [2, 2]
    assert "mine: not what it was when the sweep was started" in trials[1].user_attrs["error"]
    assert ended.returncode == 1, told


def begun(inputs: dict[str, list[str]]) -> Record:
    record = Record("s", "k", Path("s"))
    Spool(record.folder).start("s", {"inputs": json.dumps(inputs)}, key="k")
    return record


def test_a_sweep_that_goes_on_refuses_other_data_and_warns_of_other_code(caplog):
    before = {"the code of ghm": ["1"], "torch": ["2.13.0"], "shapes train": ["a", "b"]}
    record = begun(before)
    with caplog.at_level(logging.WARNING):
        record.compare_inputs({name: set(told) for name, told in before.items()})
        assert not caplog.messages
        record.compare_inputs({"the code of ghm": {"2"}, "torch": {"2.13.0"}, "shapes train": {"b", "a"}})
    [said] = caplog.messages
    assert said.startswith("the code of ghm: not what it was when this sweep was begun; trials from now on may not")
    with pytest.raises(ValueError, match=r"study_name=s: shapes train is not what it was when this sweep was begun"):
        record.compare_inputs(before | {"shapes train": {"a", "c"}})
    Record("old", "k", Path("old")).compare_inputs({"torch": {"1"}})  # begun by nobody, or before this was kept
