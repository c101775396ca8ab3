"""The next Hydra, and Hydra's own Optuna sweeper beside ours, in an environment of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
NEXT = ("hydra-core==1.4.0rc3", "omegaconf==2.4.1rc1", "hydra-optuna-sweeper==1.4.0rc3")
# What composes, sweeps and reads a command line.
CONCERNED = ("tests/sweeps/test_space.py", "tests/sweeps/test_composer.py", "tests/sweeps/test_conditional.py")
CONCERNED += ("tests/conf", "tests/test_job.py", "tests/test_cli.py", "tests/sweeps/test_any_app.py")
CONCERNED += ("tests/test_train.py::test_a_sweep_runs_reports_and_continues",)

pytestmark = pytest.mark.slow  # installs packages, and runs other tests once more


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of this one's packages, but for those of `NEXT`."""
    folder = tmp_path_factory.mktemp("next")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--pre", "--target", str(folder)]
    installed = subprocess.run([*install, *NEXT], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no packages to be had: {installed.stderr[-300:]}")
    return os.environ | {"PYTHONPATH": str(folder)}


def test_the_next_hydra_passes_the_tests_that_concern_it(environment):
    run = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *CONCERNED]
    run += ["-W", "ignore:The version_base parameter is deprecated"]  # which Hydra 1.3 asks for
    version = "import hydra; print(hydra.__version__)"
    shown = subprocess.run([sys.executable, "-c", version], env=environment, capture_output=True, text=True)
    assert shown.stdout.strip() == "1.4.0rc3"
    ended = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:]


@pytest.mark.parametrize(("sweeper", "name"), [("optuna", "optuna"), ("ghm", "ghm")])
def test_one_program_is_swept_by_hydras_own_sweeper_and_by_ours(environment, sweeper, name):
    words = ["-m", f"hydra/sweeper={sweeper}", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.seed=3"]
    words += ["x=interval(-5,5)", "y=choice(0,1)", "hydra.sweeper.direction=minimize", "hydra.sweeper.n_trials=8"]
    words += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.study_name=s", "hydra.sweep.dir=swept"]
    app = ROOT / "docs" / "any_app.py"
    ended = subprocess.run([sys.executable, str(app), *words], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    written = OmegaConf.load("swept/optimization_results.yaml")
    assert written.name == name
    x, y = written.best_params.x, written.best_params.y
    assert written.best_value == pytest.approx((x - 2) ** 2 + y + 1 / 9)
