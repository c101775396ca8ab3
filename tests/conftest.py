"""Every test works in a folder of its own, without a tracking server or Ray cluster from outside."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before torch is imported, for all processes that tests start: the tests' networks are so small that threads cost
# more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS", "HYDRA_FULL_ERROR")
    for name in (*told, "GHM_DATA", "GHM_RUNS", "GHM_STORAGE", "GHM_ENV"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def copied_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow takes 2 to 5 s to make the tables of a database: it does so once, and tests begin with a copy."""
    from mlflow.tracking import MlflowClient

    from ghm.tracking import client

    template = tmp_path_factory.mktemp("database") / "mlflow.db"

    def made(tracking_uri: str) -> MlflowClient:
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        if tracking_uri.startswith("sqlite:") and not (path.exists() and path.stat().st_size):
            if not template.exists():
                MlflowClient(f"sqlite:///{template}").search_experiments()
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(template, path)
        return MlflowClient(tracking_uri=tracking_uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "MlflowClient", made)
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One small Ray for all tests of a session that need one, and its address for RAY_ADDRESS of other processes.

    The command line in this process takes it, too, and starts none.
    """
    import ray

    # Ray's processes import the tasks of tests by their name. It counts GPUs that nobody has.
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}}
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    ray.init(num_cpus=4, num_gpus=2, runtime_env=environment, **quiet)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


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
