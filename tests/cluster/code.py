"""Commands submitted to a Ray of two CPUs that asks for its token."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from ghm.tracking import Spool
from tests.cluster.rig import BIN, ROOT

PORT, DASHBOARD = 6411, "http://127.0.0.1:8411"
SMALL = ["epochs=1", "data.train_images=4", "data.val_images=4", "data.image_size=64", "batch_size=4", "device=cpu"]
PASSWORD = "hunter2"


def main(folder: Path) -> dict[str, object]:
    """What came of them."""
    home = folder / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    environment |= {"RAY_API_SERVER_ADDRESS": DASHBOARD, "OMP_NUM_THREADS": "1", "MLFLOW_SECRET": PASSWORD}
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    start = [BIN / "ray", "start", "--head", f"--port={PORT}", "--dashboard-port=8411", "--num-cpus=2"]
    subprocess.run([*start, f"--temp-dir={folder / 'ray'}"], env=environment, check=True, capture_output=True)
    code, work = folder / "code", folder / "work"
    work.mkdir()
    for name in ("ghm", "sweeps", "conf"):
        shutil.copytree(ROOT / name, code / name)

    def ghm(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        # As from a checkout of its own, which the installed code must not come before.
        paths = environment | {"PYTHONPATH": f"{code}:{code}/sweeps"} | changes
        command = [sys.executable, "-m", "ghm", *words]
        return subprocess.run(command, cwd=work, env=paths, capture_output=True, text=True)

    sweep = ["train", "-m", *SMALL, "figures=false", "loss=focal", "hydra.sweeper.reuse=false"]
    deadline = time.monotonic() + 60
    while ghm("submit", "--list").returncode and time.monotonic() < deadline:
        time.sleep(1)
    first = ghm("submit", "--name", "first", "--", *sweep, "hydra.sweeper.study_name=first")
    _change(code / "sweeps" / "view.py", " started{", " BEGUN{")  # in the controller
    _change(code / "sweeps/hydra_plugins/ghm_sweeper/sweeper.py", '"""Check, then', 'print("OWN"); """Check, then')
    _change(code / "ghm" / "provenance.py", '"numpy")', '"numpy", "pip")')  # in the slot
    second = ghm("submit", "--name", "second", "--", *sweep, "hydra.sweeper.study_name=second")
    stranger = ghm("submit", "--list", HOME=str(folder))
    plain = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "ghm", *sweep]
    by_ray = subprocess.run(
        [*plain, "hydra.sweeper.study_name=third", f"runs={work}/runs"],
        cwd=code,
        env=environment | {"RAY_AUTH_MODE": "token"},  # or Ray's command does not show the token
        capture_output=True,
        text=True,
    )
    wrong = ghm("submit", "--name", "wrong", "--", "train", "nonsense=1")
    listed = ghm("submit", "--list").stdout
    public = json.dumps([vars(about) | {"info": str(about)} for about in _jobs(environment)], default=str)
    return {
        "codes": [ended.returncode for ended in (first, second, by_ray, wrong, stranger)],
        "begun": ["BEGUN" in ended.stdout and "OWN" in ended.stdout for ended in (first, second, by_ray)],
        "packages": [_packages(work, name) for name in ("first", "second", "third")],
        "stranger": stranger.stderr[-500:],
        "said": wrong.stdout[-300:],
        "listed": sorted(re.findall(r"(first|second|wrong) *│ (\w+)", listed)),
        "leaked": PASSWORD in public + first.stdout + listed,
        "tail": (first.stdout + first.stderr + by_ray.stdout + by_ray.stderr)[-3000:],
    }


def _change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _packages(work: Path, name: str) -> bool:
    """Whether the trial recorded the version of a package that only the changed code asks for."""
    entries = Spool(work / "runs" / "sweeps" / name / "0000").entries()
    return any("pip" in json.loads(entry["text"]) for entry in entries if entry.get("path") == "config/packages.json")


def _jobs(environment: dict[str, str]) -> list[object]:
    token = (Path(environment["HOME"]) / ".ray" / "auth_token").read_text()
    jobs: list[object] = JobSubmissionClient(DASHBOARD, headers={"Authorization": f"Bearer {token}"}).list_jobs()
    return jobs
