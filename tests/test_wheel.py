"""What `pip wheel .` makes works where this repository is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("ghm", "conf", "sweeps", "setup.py", "pyproject.toml", "MANIFEST.in")


def run(*command: str | Path, **options) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:  # a copy: building leaves files behind
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder)
    [made] = folder.glob("*.whl")
    return made


def test_every_file_of_the_program_is_in_it(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path.relative_to(ROOT) for room in ("ghm", "sweeps", "conf") for path in (ROOT / room).rglob("*.*")]
    moved = {"conf": "ghm/conf", "sweeps/hydra_plugins": "hydra_plugins"}
    expected = set()
    for file in files:
        if "__pycache__" in file.parts:
            continue
        name = str(file)
        for old, new in moved.items():
            name = name.replace(f"{old}/", f"{new}/", 1) if name.startswith(f"{old}/") else name
        expected.add(name)
    assert inside == expected


def test_without_extras_it_asks_for_torch_alone(wheel):
    with zipfile.ZipFile(wheel) as file:
        [metadata] = [name for name in file.namelist() if name.endswith("METADATA")]
        lines = file.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert needed == ["Requires-Dist: torch>=2.11"]


def test_without_hydra_the_command_line_names_what_to_install(tmp_path):
    (tmp_path / "hydra.py").write_text("raise ModuleNotFoundError('No module named hydra', name='hydra')")
    ended = subprocess.run(
        [sys.executable, "-m", "ghm"], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.stderr == "ghm: hydra is not installed; pip install 'ghm[sweep]' brings what it needs\n"
    assert ended.returncode == 1


def test_installed_elsewhere_it_sweeps_and_reports(wheel, tmp_path):
    place, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", place, wheel)
    options = {"env": os.environ | {"PYTHONPATH": str(place)}, "cwd": work}
    assert run(sys.executable, "-c", "import ghm, sweeps; print(ghm.__file__)", **options).startswith(str(place))
    ghm = (sys.executable, "-m", "ghm")
    small = ("epochs=1", "data.train_images=8", "data.val_images=4", "hydra.sweeper.n_trials=1", "figures=false")
    swept = subprocess.run([*ghm, "train", "-m", "+sweep=demo", *small], **options, capture_output=True, text=True)
    assert swept.returncode in (0, 1), swept.stderr  # so small a sweep may learn nothing
    [page] = work.glob("runs/sweeps/demo*/report/index.html")
    page.unlink()
    subprocess.run([*ghm, "report", "+sweep=demo"], **options, check=False, capture_output=True)
    assert page.exists()
