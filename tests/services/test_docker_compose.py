"""The services can be left alone, are reached from this machine alone, and share no password with anybody."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
FILES = [ROOT / "docker-compose.yml", ROOT / ".env.example", *filter(Path.is_file, (ROOT / "services").rglob("*"))]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """In the folder of the test, as someone whose environment says nothing about the services."""
    names = re.compile(r"POSTGRES_|MLFLOW_|PG|COMPOSE_|MAKE|MFLAGS")
    environment = {key: value for key, value in os.environ.items() if not names.match(key)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def password() -> str:
    found = re.search(r"^POSTGRES_PASSWORD=(.*)$", Path(".env").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture
def checkout(tmp_path: Path) -> None:
    for name in ("Makefile", "docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)


@pytest.fixture
def compose(checkout: None) -> None:
    if shutil.which("docker") is None or run("docker", "compose", "version").returncode != 0:
        pytest.skip("needs docker with compose v2; no engine has to run")


@pytest.fixture
def secrets(checkout: None) -> subprocess.CompletedProcess[str]:
    return run("make", "secrets", f"PYTHON={sys.executable}")


def test_the_file_is_valid_with_the_secrets_that_make_writes(secrets, compose):
    result = run("docker", "compose", "config")
    assert result.returncode == 0, result.stderr
    assert set(yaml.safe_load(result.stdout)["services"]) == {"postgres", "mlflow"}
    assert password() in result.stdout


@pytest.mark.parametrize("example", [True, False], ids=["empty password", "no .env"])
def test_without_a_password_nothing_starts_and_the_remedy_is_named(example, compose):
    if example:
        shutil.copy(".env.example", ".env")
    result = run("docker", "compose", "config")
    assert result.returncode != 0
    assert "POSTGRES_PASSWORD" in result.stderr
    assert "run `make secrets`" in result.stderr


def test_only_this_machine_reaches_mlflow_and_nobody_the_database():
    assert SERVICES["mlflow"]["ports"]
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", []))
    assert "ports" not in SERVICES["postgres"]
    assert all("network_mode" not in service for service in SERVICES.values())


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_can_be_left_alone(name):
    """`up --wait` calls a service without a healthcheck healthy; only a restart policy brings one back."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["mem_limit"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_password_stands_in_a_committed_file(path):
    text = path.read_text()
    for value in re.findall(r"\w*(?:PASSWORD|SECRET|TOKEN)\w*\s*[:=][ \t]*(\S*)", text):
        assert value == "" or value.startswith(("${POSTGRES_PASSWORD:?", "?")), value
    assert not re.search(r"://[^/\s:@]*:[^/\s@]+@", text)


def test_secrets_are_random_and_for_their_owner_alone(secrets):
    assert secrets.returncode == 0, secrets.stderr
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    first = password()
    assert re.fullmatch(r"[0-9a-f]{48}", first)
    assert first not in secrets.stdout + secrets.stderr
    Path(".env").unlink()
    run("make", "secrets", f"PYTHON={sys.executable}")
    assert password() != first


def test_secrets_that_exist_are_kept(secrets):
    before = Path(".env").read_text()
    again = run("make", "secrets", f"PYTHON={sys.executable}")
    assert again.returncode != 0
    assert "exists and is kept" in again.stderr
    assert Path(".env").read_text() == before


def test_the_secrets_are_never_committed():
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
