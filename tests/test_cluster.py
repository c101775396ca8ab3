"""Which Ray a command uses, and what it says where it gets none."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray

from ghm import cluster

TOKEN = "f" * 40
PROBE = """
import ray
from ghm.cluster import connected
try:
    with connected():
        print("in", ray.get_runtime_context().gcs_address, int(ray.cluster_resources()["CPU"]))
except ValueError as error:
    print("out", error)
"""


@pytest.fixture
def no_ray(monkeypatch):
    """As in a process that has none, though these tests share one."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


@pytest.fixture
def listening():
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("127.0.0.1:1", "no Ray answers there within"),
        ("no-such-host.invalid:6379", "names no Ray|no Ray answers there"),
        ("ray://127.0.0.1:1", "no Ray answers there within"),
        ("http://127.0.0.1:8265", "is no address of a cluster; give host:port"),
        ("nonsense", "names no Ray .*; give the host:port"),
        ("127.0.0.1:LISTENING", "no Ray answers there within"),
    ],
)
def test_an_address_without_a_ray_is_one_line_within_seconds(monkeypatch, listening, address, remedy):
    address = address.replace("LISTENING", str(listening))
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=rf"^RAY_ADDRESS={address}: ({remedy})"), cluster.connected():
        pass
    assert time.monotonic() - begun < 10


@pytest.mark.usefixtures("no_ray")
def test_a_sweep_and_a_run_of_workers_say_so_and_leave_nothing(ghm, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert ghm("train", "scaling=workers") == 2
    assert ghm("train", "-m", "loss=focal,ghm") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("ghm: RAY_ADDRESS=127.0.0.1:1: no Ray answers there") for line in lines] == [True, True]
    assert not list(Path().rglob("metrics.jsonl"))


@pytest.fixture
def head():
    """A Ray that somebody started on this machine, with a token, in a folder of its own; its environment."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # paths of sockets may not be long
    environment = os.environ | {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=3", "--include-dashboard=false", f"--object-store-memory={100 * 2**20}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(Path(folder).rglob("ray_current_cluster")) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield environment
        process.terminate()
        process.wait(30)


def probe(environment):
    return subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120)


def test_a_ray_that_runs_on_the_machine_is_used_and_left_running(head):
    for _ in range(2):
        said = probe(head).stdout
        assert said.startswith("in ")
        assert said.endswith(" 3\n")


@pytest.mark.slow  # Ray tries for 20 s
def test_a_ray_that_refuses_the_token_says_where_it_belongs(head):
    said = probe(head | {"RAY_AUTH_TOKEN": "0" * 40}).stdout
    assert said.startswith("out the Ray that runs on this machine (")
    assert "RAY_AUTH_TOKEN" in said
    assert "ray get-auth-token" in said


def test_what_is_left_of_a_ray_that_is_gone_hinders_nobody():
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    ended = probe(os.environ | {"RAY_TMPDIR": str(folder)})
    assert ended.stdout.startswith("in ")
    assert ":1) is gone; starting one for this command" in ended.stderr
