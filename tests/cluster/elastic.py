"""A group of one or two workers on nodes that go and come, each with a disk of its own."""

import subprocess
import time
from pathlib import Path

from ghm.tracking import Tracker
from tests.chaos.proxy import tracking_server
from tests.chaos.sweep import GHM
from tests.cluster.rig import ADDRESS, QUICK, ROOT, Rig, quiet

RUN = [
    *("train", "scaling=workers", "scaling.num_workers=[1,2]", "scaling.max_failures=3", "scaling.resize=3", "dir=run"),
    *("epochs=1000", "data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4"),
    *("figures=false", "device=cpu", "loss=focal"),
]


def main(folder: Path) -> dict[str, object]:
    """When the group had which size, and by how many workers each epoch was trained."""
    environment = quiet() | QUICK | {"PYTHONPATH": f"{ROOT}:{ROOT}/sweeps", "GLOO_SOCKET_IFNAME": "lo"}
    with tracking_server(folder / "server") as port:
        rig = Rig(folder / "ray", environment, [folder / "run"])
        rig.head(1)
        rig.join("first", 1)
        uri = f"http://127.0.0.1:{port}"
        told = environment | {"RAY_ADDRESS": ADDRESS, "MLFLOW_TRACKING_URI": uri}
        started, sizes, log = time.monotonic(), [], folder / "log.txt"
        run = subprocess.Popen([GHM, *RUN], cwd=folder, env=told, stdout=log.open("ab"), stderr=subprocess.STDOUT)
        tracker = Tracker.open(uri, "ghm", ".")
        for wanted, then in ((2, lambda: rig.kill("first")), (1, lambda: rig.join("second", 1)), (2, run.kill)):
            sizes.append([_reached(tracker, wanted, run), round(time.monotonic() - started)])
            then()
        return {"sizes": sizes, "trained_by": _trained_by(tracker), "tail": log.read_text()[-3000:]}


def _trained_by(tracker: Tracker) -> list[tuple[int, float]]:
    """(epoch, number of workers) of what the server has."""
    runs = tracker.client.search_runs([tracker.experiment_id])
    return tracker.history(runs[0].info.run_id, "time/workers") if runs else []


def _reached(tracker: Tracker, workers: int, run: "subprocess.Popen[bytes]", seconds: float = 150) -> bool:
    """Whether the last epoch comes to be trained by so many workers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and run.poll() is None:
        if [by for _, by in _trained_by(tracker)][-1:] == [workers]:
            return True
        time.sleep(0.3)
    return False
