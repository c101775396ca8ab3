"""The arrows between rooms: what each may import, read from the source and tried without the rest installed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH = {"torch", "torchvision", "numpy", "PIL", "pycocotools"}
# room -> (rooms of ours it may import, third-party packages it may import)
ARROWS: dict[str, tuple[set[str], set[str]]] = {
    "ghm/__init__.py": ({"ghm.reporting"}, set()),
    "ghm/reporting.py": (set(), set()),
    "ghm/secrets.py": (set(), set()),
    "ghm/failure.py": (set(), set()),
    "ghm/interval.py": (set(), {"scipy"}),
    "ghm/operators.py": (set(), {"torch", "torchvision"}),
    "ghm/losses": ({"ghm.losses"}, {"torch"}),
    "ghm/data": ({"ghm.data", "ghm.operators"}, TORCH),
    "ghm/models": ({"ghm.models", "ghm.operators"}, {"torch", "torchvision"}),
    "ghm/gradients.py": ({"ghm.losses", "ghm.models"}, {"torch"}),
    "ghm/training": ({"ghm.training"}, {"torch"}),
    "ghm/scoring": ({"ghm.scoring"}, {"torch", "numpy", "pycocotools"}),
    "ghm/fetch.py": (set(), {"filelock", "pooch", "requests", "tenacity", "rich"}),
    "ghm/tracking": ({"ghm.secrets", "ghm.tracking", "sweeps.states"}, {"mlflow", "filelock", "tenacity"}),
    "ghm/provenance.py": ({"ghm.secrets"}, {"omegaconf"}),
    "ghm/job.py": ({"ghm.provenance", "ghm.secrets"}, {"omegaconf"}),
    "ghm/settings": (
        {"ghm.data", "ghm.job", "ghm.scoring", "ghm.settings", "ghm.training"},
        {"torch", "hydra", "omegaconf"},
    ),
    "ghm/cluster.py": (set(), {"ray", "grpc"}),
    "ghm/remote": (
        {
            *("ghm.failure", "ghm.job", "ghm.provenance", "ghm.remote", "ghm.secrets", "ghm.settings.paths"),
            *("ghm.tracking", "ghm.training"),
        },
        {"ray", "tenacity"},
    ),
    "ghm/remote/group.py": (
        {"ghm.failure", "ghm.job", "ghm.remote", "ghm.tracking", "ghm.worker"},
        {"ray", "torch"},
    ),
    "ghm/remote/submitted.py": ({"ghm.cli", "ghm.remote"}, set()),
    "ghm/record": (
        {
            *("ghm.job", "ghm.provenance", "ghm.record", "ghm.remote.nodes", "ghm.secrets", "ghm.settings.datasets"),
            *("ghm.settings.parts", "ghm.tracking"),
        },
        {"omegaconf", "ray", "torch", "yaml"},
    ),
    "ghm/worker.py": (
        {
            *("ghm.data", "ghm.failure", "ghm.gradients", "ghm.job", "ghm.remote.moved", "ghm.reports"),
            *("ghm.scoring", "ghm.settings.parts", "ghm.tracking", "ghm.training", "sweeps.states"),
        },
        {"torch", "ray"},
    ),
    "ghm/run.py": (
        {
            *("ghm.cluster", "ghm.failure", "ghm.job", "ghm.provenance", "ghm.record", "ghm.remote"),
            *("ghm.settings.checks", "ghm.settings.paths", "ghm.tracking", "ghm.worker", "sweeps.states"),
        },
        {"ray", "omegaconf"},
    ),
    "ghm/task.py": (set(), {"hydra", "omegaconf"}),
    "ghm/plan.py": ({"ghm.tracking"}, set()),
    "ghm/swept.py": (
        {
            *("ghm.failure", "ghm.job", "ghm.plan", "ghm.provenance", "ghm.record", "ghm.remote.submission"),
            *("ghm.secrets", "ghm.settings", "ghm.task", "ghm.tracking", "ghm.verbs.report"),
            *("sweeps.composer", "sweeps.draw", "sweeps.launch", "sweeps.replicates"),
            *("sweeps.slots", "sweeps.space", "sweeps.storage", "sweeps.studies", "sweeps.trials"),
        },
        {"hydra", "omegaconf"},
    ),
    "ghm/reports": (
        {"ghm.interval", "ghm.reports", "ghm.secrets", "ghm.tracking", "sweeps.charts", "sweeps.goal", "sweeps.states"},
        {"matplotlib", "pandas", "plotly", "scipy", "numpy", "jinja2", "rich", "yaml"},
    ),
    "ghm/doctor.py": (
        {
            *("ghm.cluster", "ghm.provenance", "ghm.remote.nodes", "ghm.secrets", "ghm.settings.checks"),
            *("ghm.tracking", "sweeps.storage"),
        },
        {"mlflow", "ray", "torch"},
    ),
    "ghm/verbs": (
        {
            *("ghm.data", "ghm.doctor", "ghm.failure", "ghm.fetch", "ghm.gradients", "ghm.provenance"),
            *("ghm.record", "ghm.reports", "ghm.run", "ghm.scoring", "ghm.secrets", "ghm.settings", "ghm.tracking"),
            *("ghm.training", "ghm.verbs", "sweeps.retry"),
        },
        {"hydra", "numpy", "omegaconf", "rich", "torch"},
    ),
    "ghm/verbs/submit.py": ({"ghm.failure", "ghm.remote"}, {"ray", "rich"}),
    "ghm/cli.py": ({"ghm.failure", "ghm.secrets", "ghm.settings.arguments", "ghm.verbs"}, {"hydra", "omegaconf"}),
    "ghm/__main__.py": ({"ghm.cli"}, set()),
    "sweeps/states.py": (set(), set()),
    "sweeps": (
        {
            *("sweeps", "ghm.cluster", "ghm.failure", "ghm.interval", "ghm.job", "ghm.provenance", "ghm.remote"),
            *("ghm.reporting", "ghm.secrets", "ghm.settings", "ghm.tracking"),
        },
        {
            *("hydra_plugins", "optuna", "optuna_dashboard", "plotly", "ray", "hydra", "omegaconf"),
            *("rich", "scipy", "sqlalchemy", "tenacity"),
        },
    ),
}
ROOMS = ("ghm.settings", "ghm.record", "ghm.remote")  # of which single files are meant
BARE = ("losses", "data", "models", "training", "training.engine", "training.checkpoint", "scoring")


def imports(file: Path) -> set[str]:
    """Dotted names a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            whole = node.module in ("ghm", *ROOMS)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if whole else {node.module or ""}
    return found


def sources() -> list[Path]:
    return sorted([*(ROOT / "ghm").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")])


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_what_its_arrows_allow(file: Path):
    name = str(file.relative_to(ROOT))
    room = max((room for room in ARROWS if name == room or name.startswith(f"{room}/")), key=len)
    ours, packages = ARROWS[room]
    for imported in imports(file):
        top = imported.split(".")[0]
        if top in ("ghm", "sweeps"):
            allowed = any(imported == one or imported.startswith(f"{one}.") for one in ours)
        else:
            allowed = top in packages or top in sys.stdlib_module_names
        assert allowed, f"{name} imports {imported}"


def test_only_the_doors_see_mlflow_optuna_and_ray_train():
    doors = {
        "mlflow": ("ghm/tracking/", "ghm/doctor.py"),  # which asks for its version
        "optuna": "sweeps/",
        "ray.train": ("ghm/worker.py", "ghm/remote/group.py", "ghm/run.py"),
    }
    for file in sources():
        for package, door in doors.items():
            if any(name == package or name.startswith(f"{package}.") for name in imports(file)):
                assert str(file.relative_to(ROOT)).startswith(door), f"{file} imports {package}"


def test_one_file_alone_connects_to_ray():
    callers = [str(file.relative_to(ROOT)) for file in sources() if "ray.init(" in file.read_text()]
    assert callers == ["ghm/cluster.py"]


def test_the_torch_rooms_import_without_ray_hydra_optuna_and_mlflow():
    code = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "hydra", "omegaconf", "optuna", "mlflow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for room in {BARE!r}:
    importlib.import_module(f"ghm.{{room}}")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_losses_need_torch_alone():
    code = """
import sys
before = set(sys.modules)
import torch
with_torch = set(sys.modules)
from ghm.losses import ASL1, GHMC, GHMR, OHEM, CrossEntropy, FocalLoss, SmoothL1
new = {name.split(".")[0] for name in set(sys.modules) - with_torch}
assert new <= {"ghm"} | set(sys.stdlib_module_names), new
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_package_changes_neither_environment_nor_random_state():
    code = """
import os, torch
state, environment = torch.random.get_rng_state(), dict(os.environ)
import ghm.losses, ghm.data, ghm.models, ghm.training.engine, ghm.scoring, ghm.tracking
import ghm.worker, ghm.cli, ghm.verbs.train, sweeps.launch
assert torch.equal(state, torch.random.get_rng_state())
changed = {name for name in os.environ.keys() | environment.keys() if os.environ.get(name) != environment.get(name)}
assert not {name for name in changed if name.startswith("GHM") or name.startswith("MLFLOW")}, changed
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
