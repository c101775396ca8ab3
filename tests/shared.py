"""Real data, which lies beside the checkout where the project is developed, and nowhere else."""

from pathlib import Path

import pytest

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """A file or folder of it. A test that asks for one that is not there is skipped."""
    if not (_DATA / name).exists():
        pytest.skip(f"needs shared/data/{name} beside the checkout")
    return _DATA / name
