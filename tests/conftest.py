"""Every test works in a folder of its own, without a tracking server or Ray cluster from outside."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "GHM_DATA", "GHM_RUNS", "HYDRA_FULL_ERROR", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The tests' networks are so small that threads cost more than they bring, above all on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
