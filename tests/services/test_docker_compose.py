"""The services can be left alone, are reached from this machine alone, and share no password with anybody."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
WRITTEN = {".md", ".sh", ".py", ".yml", ".yaml", ".ini", ".conf", ""}  # wheels, compiled modules and others are not
FILES = [
    ROOT / "docker-compose.yml",
    ROOT / ".env.example",
    *(path for path in (ROOT / "services").rglob("*") if path.is_file() and path.suffix in WRITTEN),
]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """In the folder of the test, as someone whose environment says nothing about the services."""
    names = re.compile(r"POSTGRES_|MLFLOW_|PG|AWS_|COMPOSE_|MAKE|MFLAGS")
    environment = {key: value for key, value in os.environ.items() if not names.match(key)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def passwords() -> dict[str, str]:
    lines = [line.split("=", 1) for line in Path(".env").read_text().splitlines() if re.match(r"\w+=", line)]
    return {name: value for name, value in lines if name.endswith(("_PASSWORD", "_SECRET", "_TOKEN"))}


@pytest.fixture
def checkout(tmp_path: Path) -> None:
    for name in ("Makefile", "docker-compose.yml", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "services", tmp_path / "services", ignore=shutil.ignore_patterns("*.whl", "__pycache__"))


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
    assert set(yaml.safe_load(result.stdout)["services"]) == {"postgres", "mlflow", "dashboard"}
    assert all(secret in result.stdout for name, secret in passwords().items() if name != "RAY_TOKEN")
    cluster = run("docker", "compose", "--profile", "cluster", "config")
    assert set(yaml.safe_load(cluster.stdout)["services"]) > {"ray-head", "ray-worker"}


def test_artifacts_go_where_env_says(secrets, compose):
    def server() -> dict[str, Any]:
        return yaml.safe_load(run("docker", "compose", "config").stdout)["services"]["mlflow"]

    assert "--artifacts-destination=/artifacts" in server()["command"]
    said = {"ARTIFACTS": "s3://bucket/ghm", "AWS_ACCESS_KEY_ID": "who", "MLFLOW_S3_ENDPOINT_URL": "https://store"}
    lines = Path(".env").read_text().replace("ARTIFACTS=\n", "")
    Path(".env").write_text(lines + "".join(f"{key}={value}\n" for key, value in said.items()))
    assert "--artifacts-destination=s3://bucket/ghm" in server()["command"]
    environment = server()["environment"]
    assert (environment["AWS_ACCESS_KEY_ID"], environment["MLFLOW_S3_ENDPOINT_URL"]) == ("who", "https://store")
    assert environment.get("AWS_DEFAULT_REGION") is None  # rather than empty, which boto3 takes for a region


@pytest.mark.parametrize("example", [True, False], ids=["empty password", "no .env"])
def test_without_a_password_nothing_starts_and_the_remedy_is_named(example, compose):
    if example:
        shutil.copy(".env.example", ".env")
    result = run("docker", "compose", "config")
    assert result.returncode != 0
    assert re.search(r"_PASSWORD|_TOKEN|_SECRET", result.stderr)
    assert "run `make secrets`" in result.stderr


def test_only_this_machine_reaches_any_of_them():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "network_mode" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_can_be_left_alone(name):
    """`up --wait` calls a service without a healthcheck healthy; only a restart policy brings one back."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_root_or_writes_outside_its_volumes(name):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    if "build" in service:
        assert re.search(r"^USER (?!root)\w+", (ROOT / service["build"]["dockerfile"]).read_text(), re.MULTILINE)
    else:
        assert service["user"] not in ("root", "0")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_password_stands_in_a_committed_file(path):
    text = path.read_text()
    for value in re.findall(r"^\s*(?:- )?\w*(?:PASSWORD|SECRET|TOKEN)\w*[:=][ \t]*(\S*)", text, re.MULTILINE):
        assert value == "" or re.match(r"\$\{\w+:\?run$|\$[\w{]+", value), value
    assert not re.search(r"://[^/\s:@]*:(?!\$|PASSWORD@)[^/\s@]+@", text)


def test_secrets_are_random_each_another_and_for_their_owner_alone(secrets):
    assert secrets.returncode == 0, secrets.stderr
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600
    first = passwords()
    assert len(set(first.values())) == len(first) == 7
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in first.values())
    assert not [secret for secret in first.values() if secret in secrets.stdout + secrets.stderr]
    Path(".env").unlink()
    run("make", "secrets", f"PYTHON={sys.executable}")
    assert not set(passwords().values()) & set(first.values())


def test_secrets_that_exist_are_kept_and_those_of_a_newer_version_added(secrets):
    before = passwords()
    kept = [line for line in Path(".env").read_text().splitlines() if not line.startswith("MLFLOW_WRITER_PASSWORD")]
    Path(".env").write_text("\n".join([*kept, "MINE=1"]))
    again = run("make", "secrets", f"PYTHON={sys.executable}")
    assert "MLFLOW_WRITER_PASSWORD written" in again.stdout
    after = passwords()
    assert "MINE=1" in Path(".env").read_text().splitlines()
    assert after.pop("MLFLOW_WRITER_PASSWORD") != before.pop("MLFLOW_WRITER_PASSWORD")
    assert after == before


def test_the_secrets_are_never_committed_or_built_into_an_image():
    assert {".env", "backups"} <= set((ROOT / ".dockerignore").read_text().splitlines())
    assert {".env", ".env.partial", "backups/"} <= set((ROOT / ".gitignore").read_text().splitlines())
