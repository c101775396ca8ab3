"""Every test works in a folder of its own, without a tracking server or Ray cluster from outside."""

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "GHM_DATA", "GHM_RUNS", "HYDRA_FULL_ERROR", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def bccd() -> Path:
    """349 real images of blood cells, beside the checkout where the project is developed."""
    folder = SHARED_DATA / "bccd"
    if not folder.is_dir():
        pytest.skip(f"needs the data set at {folder.relative_to(SHARED_DATA.parents[1])} beside the checkout")
    return folder


@pytest.fixture
def ghm() -> Callable[..., int]:
    """The command line in this process: `ghm("train", "epochs=1")` returns the exit code."""
    from ghm.cli import main

    def run(*arguments: str) -> int:
        try:
            main(list(arguments))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
