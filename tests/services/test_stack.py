"""The tracking service as it is started, broken and restored; needs a Docker engine: make test-services."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import optuna
import psycopg2
import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
PORTS = {"MLFLOW_PORT": "15000", "POSTGRES_PORT": "15432", "DASHBOARD_PORT": "18080", "RAY_PORT": "18265"}
SERVER, PROJECT = "http://127.0.0.1:15000", "ghm-test"
BUILT_FROM = (".dockerignore", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md")
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
pytestmark = pytest.mark.services


class Stack:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = re.compile(r"POSTGRES_|MLFLOW_|OPTUNA_|PG|COMPOSE_|MAKE|MFLAGS")
        plain = {key: value for key, value in os.environ.items() if not names.match(key)}
        self.environment = plain | PORTS | {"COMPOSE_PROJECT_NAME": PROJECT}

    def run(self, *command: str, seconds: float = 400) -> str:
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        assert ended.returncode == 0, f"{command}: {ended.stdout[-3000:]}{ended.stderr[-3000:]}"
        return ended.stdout + ended.stderr

    def compose(self, *words: str) -> str:
        return self.run("docker", "compose", *words)

    def secret(self, name: str) -> str:
        found = re.search(rf"^{name}=(.*)$", (self.folder / ".env").read_text(), re.MULTILINE)
        assert found is not None
        return found[1]

    def change(self, name: str, value: str) -> None:
        env = self.folder / ".env"
        env.write_text(re.sub(rf"^{name}=.*$", f"{name}={value}", env.read_text(), flags=re.MULTILINE))

    @property
    def storage(self) -> str:
        return f"postgresql+psycopg2://optuna:{self.secret('OPTUNA_DB_PASSWORD')}@127.0.0.1:15432/optuna"

    def client(self, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "writer")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", self.secret("MLFLOW_WRITER_PASSWORD"))
        return MlflowClient(SERVER)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine runs here")
    folder = tmp_path_factory.mktemp("stack")
    for name in ("Makefile", "docker-compose.yml", ".env.example", "constraints.txt", *BUILT_FROM):
        shutil.copy(ROOT / name, folder)
    for name in ("services", "ghm", "sweeps", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    stack = Stack(folder)
    stack.run("make", "secrets", f"PYTHON={sys.executable}")
    try:
        stack.compose("up", "-d", "--wait", "--build")
        yield stack
    finally:
        if "GHM_KEEP_STACK" not in os.environ:
            stack.compose("down", "-v", "--remove-orphans")


def status(path: str, user: tuple[str, str] | None = None, host: str | None = None, method: str = "GET") -> int:
    headers = {} if host is None else {"Host": host}
    if user is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"
    body = b"{}" if method in ("POST", "PUT") else None
    request = urllib.request.Request(SERVER + path, body, headers | {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_all_services_are_healthy(stack):
    listed = [json.loads(line) for line in stack.compose("ps", "-a", "--format", "json").splitlines()]
    assert {one["Service"]: one["Health"] for one in listed} == dict.fromkeys(
        ("postgres", "mlflow", "dashboard"), "healthy"
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", SEARCH),
        ("POST", "/api/2.0/mlflow/experiments/create"),
        ("POST", "/api/2.0/mlflow/runs/log-batch"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts?path="),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x/y"),
        ("GET", "/get-artifact?path=x&run_uuid=y"),
        ("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1"),
        ("GET", "/metrics"),
        ("GET", "/"),
    ],
)
def test_nobody_reads_or_writes_without_an_account(stack, method, path):
    assert status(path, method=method) == 401
    assert status(path, ("writer", "a-wrong-password"), method=method) == 401


def test_the_writer_gets_in_by_a_known_name_alone(stack):
    writer = ("writer", stack.secret("MLFLOW_WRITER_PASSWORD"))
    assert status(SEARCH, writer) == 200
    assert status(SEARCH, writer, host="evil.example") == 403
    assert status("/api/2.0/mlflow/users/create", writer, method="POST") == 403


def log(client: MlflowClient, name: str, folder: Path, count: int = 50) -> str:
    experiment = client.create_experiment(name)
    run = client.create_run(experiment).info.run_id
    for step in range(count):
        client.log_metric(run, "val/AP", step / count, step=step)
    (folder / "last.pt").write_bytes(b"weights" * 1000)
    client.log_artifact(run, str(folder / "last.pt"), "checkpoints")
    return run


def kept(client: MlflowClient, run: str, folder: Path, count: int = 50) -> bool:
    history = client.get_metric_history(run, "val/AP")
    file = Path(client.download_artifacts(run, "checkpoints/last.pt", str(folder)))
    return len(history) == count and file.read_bytes() == b"weights" * 1000


def test_what_is_recorded_outlives_kills_of_either_server_and_a_restart(stack, monkeypatch, tmp_path):
    client = stack.client(monkeypatch)
    run = log(client, "outlives", tmp_path)
    for service in ("mlflow", "postgres"):
        stack.compose("kill", "-s", "KILL", service)
        stack.compose("up", "-d", "--wait")
        assert kept(client, run, tmp_path), service
    stack.compose("restart")
    stack.compose("up", "-d", "--wait")
    assert kept(client, run, tmp_path)


def send(worker: int, run: str, steps: int) -> None:
    """One of several clients at once: each metric in a call of its own, as clients that are not ours do."""
    client = MlflowClient(SERVER)
    for step in range(steps):
        client.log_metric(run, f"worker/{worker}", float(step), step=step)


def test_eight_clients_at_once_lose_nothing(stack, monkeypatch):
    client = stack.client(monkeypatch)
    run = client.create_run(client.create_experiment("crowd")).info.run_id
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        list(pool.map(send, range(8), [run] * 8, [1000] * 8))
    for worker in range(8):
        history = client.get_metric_history(run, f"worker/{worker}")
        assert sorted(entry.step for entry in history) == list(range(1000)), worker


def test_a_study_is_kept_there_and_shown_by_the_dashboard(stack):
    optuna.create_study(storage=stack.storage, study_name="shown", load_if_exists=True)
    with urllib.request.urlopen("http://127.0.0.1:18080/api/studies", timeout=10) as answer:
        assert "shown" in answer.read().decode()


def test_changed_passwords_hold_after_the_next_start_and_the_old_ones_do_not(stack, monkeypatch):
    before = {
        name: stack.secret(name) for name in ("MLFLOW_DB_PASSWORD", "OPTUNA_DB_PASSWORD", "MLFLOW_WRITER_PASSWORD")
    }
    for name in before:
        stack.change(name, "another-" + before[name])
    stack.compose("up", "-d", "--wait")
    assert status(SEARCH, ("writer", stack.secret("MLFLOW_WRITER_PASSWORD"))) == 200
    deadline = time.monotonic() + 90  # a password that was right is remembered for a minute
    while (was := status(SEARCH, ("writer", before["MLFLOW_WRITER_PASSWORD"]))) != 401:
        assert time.monotonic() < deadline, was
        time.sleep(3)
    optuna.create_study(storage=stack.storage, study_name="changed", load_if_exists=True)


def test_a_backup_brings_databases_and_artifacts_back_after_the_volumes_are_gone(stack, monkeypatch, tmp_path):
    client = stack.client(monkeypatch)
    run = log(client, "backed up", tmp_path)
    optuna.create_study(storage=stack.storage, study_name="backed up", load_if_exists=True)
    said = stack.run("make", "backup")
    folder = re.search(r"Backup: (\S+)", said)
    assert folder is not None
    stack.compose("down", "-v")
    stack.compose("up", "-d", "--wait")
    assert client.get_experiment_by_name("backed up") is None
    stack.run("make", "restore", f"FROM={folder[1]}")
    assert kept(client, run, tmp_path)
    assert "backed up" in optuna.get_all_study_names(stack.storage)


def test_an_upgrade_keeps_what_is_there(stack, monkeypatch, tmp_path):
    client = stack.client(monkeypatch)
    run = log(client, "upgraded", tmp_path)
    assert "Upgraded" in stack.run("make", "upgrade")
    assert kept(client, run, tmp_path)


SMALL = ("epochs=3", "data.train_images=8", "data.val_images=4", "data.image_size=64", "batch_size=4", "device=cpu")


def ghm(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "ghm"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def recorded_once(stack: Stack, client: MlflowClient, name: str, count: int) -> None:
    """Study and MLflow hold the same `count` trials of three epochs, each epoch once."""
    study = optuna.load_study(study_name=name, storage=stack.storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * count
    experiment = client.get_experiment_by_name("ghm")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`sweep.name` = '{name}' and tags.`sweep.trial` != ''")
    assert sorted(run.data.tags["sweep.trial"] for run in runs) == sorted(map(str, range(count)))
    for run in runs:
        assert run.data.tags["sweep.state"] == "done"
        history = client.get_metric_history(run.info.run_id, "val/AP")
        trial = study.trials[int(run.data.tags["sweep.trial"])]
        assert [entry.step for entry in history] == [1, 2, 3]
        assert {entry.step: entry.value for entry in history} == pytest.approx(trial.intermediate_values)


def test_a_sweep_of_this_machine_is_whole_though_both_servers_are_killed_in_its_midst(stack, monkeypatch, tmp_path):
    client = stack.client(monkeypatch)
    account = {"MLFLOW_TRACKING_USERNAME": "writer", "MLFLOW_TRACKING_PASSWORD": stack.secret("MLFLOW_WRITER_PASSWORD")}
    there = {"MLFLOW_TRACKING_URI": SERVER, "GHM_STORAGE": stack.storage, "GHM_RUNS": str(tmp_path)}
    points = ("loss=ghm,focal,cross_entropy", "seed=1,2", "hydra.sweeper.study_name=outage", "hydra.sweeper.n_jobs=2")
    environment = stack.environment | account | there
    with ghm(environment, "train", "-m", *points, *SMALL) as sweep:
        for service, done in (("mlflow", 1), ("postgres", 3)):
            deadline = time.monotonic() + 200
            while ended(stack, "outage") < done:
                assert sweep.poll() is None, sweep.communicate()[0][-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.5)
            stack.compose("kill", "-s", "KILL", service)
            stack.compose("up", "-d", "--wait")
        said, _ = sweep.communicate(timeout=300)
    print(said)
    assert sweep.returncode in (0, 1)  # so short, it may learn nothing
    if "ghm sync" in said:  # it ended before MLflow was back
        with ghm(environment, "sync") as sync:
            assert sync.wait(timeout=120) == 0, sync.communicate()[0]
    recorded_once(stack, client, "outage", 6)


def ended(stack: Stack, name: str) -> int:
    """Trials of a study that are done."""
    if name not in optuna.get_all_study_names(stack.storage):
        return 0
    trials = optuna.load_study(study_name=name, storage=stack.storage).trials
    return sum(trial.state.is_finished() for trial in trials)


@pytest.mark.skipif("GHM_WHEELS" not in os.environ, reason="GHM_WHEELS names no folder with a small build of torch")
def test_a_sweep_submitted_to_the_cluster_beside_them_ends_in_mlflow_and_the_study(stack, monkeypatch):
    for wheel in Path(os.environ["GHM_WHEELS"]).glob("torch-*.whl"):
        shutil.copy(wheel, stack.folder / "services" / "ray" / "wheels")
    stack.compose("--profile", "cluster", "up", "-d", "--wait", "--build")
    try:
        points = ("loss=ghm,focal", "hydra.sweeper.study_name=inside", "hydra.sweeper.n_jobs=2")
        environment = stack.environment | {"RAY_AUTH_TOKEN": stack.secret("RAY_TOKEN")}
        there = ("--address", "http://127.0.0.1:18265", "--cwd", "/runs")
        with ghm(environment, "submit", *there, "--", "train", "-m", *points, *SMALL) as submitted:
            said, _ = submitted.communicate(timeout=400)
        assert submitted.returncode in (0, 1), said[-3000:]  # so short, it may learn nothing
        assert "2 of 2 done" in said
        recorded_once(stack, stack.client(monkeypatch), "inside", 2)
        study = optuna.load_study(study_name="inside", storage=stack.storage)
        assert study.user_attrs["mlflow"].startswith("http://mlflow:5000/#/experiments/")
        for node in ("ray-head", "ray-worker"):
            read = f"from urllib.request import urlopen; print(urlopen('http://{node}:8090').read().decode())"
            assert "ray_node_mem_used" in stack.compose("exec", "-T", "ray-head", "python", "-c", read), node
    finally:
        stack.compose("--profile", "cluster", "rm", "-sf", "ray-head", "ray-worker")


def test_other_machines_come_in_over_tls_by_the_name_that_was_given(stack, tmp_path):
    subject = ("-subj", "/CN=tracking.test", "-addext", "subjectAltName=DNS:tracking.test")
    pair = ("-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt"))
    stack.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *pair)
    tmp_path.joinpath("tls.key").chmod(0o644)
    files = ("-f", "docker-compose.yml", "-f", "services/tls/compose.yml")
    for name in ("GHM_HOST", "GHM_BIND", "GHM_TLS_CERT", "GHM_TLS_KEY"):
        refused = subprocess.run(
            ["docker", "compose", *files, "config"],
            cwd=stack.folder,
            env=stack.environment,
            capture_output=True,
            text=True,
        )
        assert refused.returncode != 0
        values = {"GHM_HOST": "tracking.test", "GHM_BIND": "127.0.0.1"}
        values |= {"GHM_TLS_CERT": str(tmp_path / "tls.crt"), "GHM_TLS_KEY": str(tmp_path / "tls.key")}
        stack.environment[name] = values[name]
    stack.environment |= {"HTTPS_PORT": "18443", "POSTGRES_TLS_PORT": "15433"}
    stack.compose(*files, "up", "-d", "--wait")

    def over_tls(host: str, password: str, *words: str) -> str:
        trusted = ("--cacert", str(tmp_path / "tls.crt")) if host == "tracking.test" else ("-k",)
        asked = (
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--resolve",
            f"{host}:18443:127.0.0.1",
            *trusted,
        )
        return stack.run(*asked, *words, "-u", f"writer:{password}", f"https://{host}:18443{SEARCH}")

    right = stack.secret("MLFLOW_WRITER_PASSWORD")
    assert over_tls("tracking.test", right) == "200"
    assert over_tls("tracking.test", right, "-H", "Origin: https://tracking.test:18443") == "200"
    assert over_tls("tracking.test", right, "-H", "Origin: https://evil.test") == "403"
    assert over_tls("tracking.test", "wrong") == "401"
    assert over_tls("other.test", right) == "421"

    asked = {"host": "tracking.test", "hostaddr": "127.0.0.1", "port": 15433, "dbname": "optuna", "user": "optuna"}
    asked |= {"password": stack.secret("OPTUNA_DB_PASSWORD"), "connect_timeout": 10}
    trusted = {"sslmode": "verify-full", "sslnegotiation": "direct", "sslrootcert": str(tmp_path / "tls.crt")}
    with psycopg2.connect(**asked, **trusted) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from studies")
        assert cursor.fetchone() is not None
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(**asked, sslmode="disable")
    with pytest.raises(psycopg2.OperationalError, match="does not match host name"):
        psycopg2.connect(**(asked | {"host": "other.test"}), **trusted)
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**(asked | {"password": "wrong"}), **trusted)


def test_the_admins_other_password_is_one_line_of_the_log(stack):
    right, writer = stack.secret("MLFLOW_ADMIN_PASSWORD"), stack.secret("MLFLOW_WRITER_PASSWORD")
    stack.change("MLFLOW_ADMIN_PASSWORD", "not-the-one-it-was-made-with")
    stack.change("MLFLOW_WRITER_PASSWORD", "so-that-the-admin-is-needed")
    try:
        stack.run("docker", "compose", "up", "-d")
        deadline = time.monotonic() + 150
        while "MLFLOW_ADMIN_PASSWORD in .env is not that of the account `admin`" not in stack.compose("logs", "mlflow"):
            assert time.monotonic() < deadline
            time.sleep(3)
    finally:
        stack.change("MLFLOW_ADMIN_PASSWORD", right)
        stack.change("MLFLOW_WRITER_PASSWORD", writer)
        stack.compose("up", "-d", "--wait")
