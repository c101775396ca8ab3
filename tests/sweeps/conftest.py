from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One small Ray for all tests of a session that need one."""
    import ray

    # Ray's processes import the toy task of these tests by its name.
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=4, runtime_env=environment, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()
