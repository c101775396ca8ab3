"""What is wrong with a place is said with its remedy, and by the exit code."""

import http.server
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from ghm import doctor


@pytest.fixture
def server() -> Iterator[type]:
    """A server that says what a test sets."""

    class Says(http.server.BaseHTTPRequestHandler):
        status, version, date = 200, "3.17.2", None

        def do_GET(self) -> None:
            self.send_response_only(200 if self.path == "/version" and self.status == 200 else self.status)
            self.send_header("Date", self.date or self.date_time_string())
            self.end_headers()
            self.wfile.write(self.version.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        Says.address = f"http://127.0.0.1:{running.server_port}"
        yield Says
        running.shutdown()


def test_a_place_without_anything_set_is_fine(ghm, capsys):
    assert ghm("doctor") == 0
    said = capsys.readouterr().out
    for line in ("ok      versions: ghm", "GB free", "ok      MLflow: a database below", "ok      studies: SQLite"):
        assert line in said


@pytest.mark.parametrize(("free", "code"), [(5e9, 1), (5e8, 2)])
def test_a_disk_that_is_nearly_full(ghm, capsys, monkeypatch, free, code):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert ghm("doctor") == code
    assert "make room, or set GHM_RUNS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("GHM_DATA", "/nowhere", "/nowhere: no readable folder"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "http://127.0.0.1:9: does not answer"),
        ("GHM_STORAGE", "postgresql+psycopg2://me:pa55word@127.0.0.1:9/db", "cannot be opened"),
        ("RAY_ADDRESS", "127.0.0.1:9", "no Ray answers there"),
    ],
)
def test_what_cannot_be_reached_is_broken_and_no_password_is_shown(ghm, capsys, monkeypatch, variable, value, said):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv(variable, value)
    assert ghm("doctor") == 2
    shown = capsys.readouterr().out
    assert said in shown
    assert "broken" in shown
    assert "pa55word" not in shown


def test_a_server_that_wants_an_account_is_told_from_one_that_is_away(ghm, capsys, monkeypatch, server):
    server.status, server.version = 401, "You are not authenticated"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert ghm("doctor") == 2
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in capsys.readouterr().out


def test_another_version_and_another_clock_are_doubtful(monkeypatch, tmp_path, server):
    server.version, server.date = "2.9.1", "Thu, 01 Jan 2026 00:00:00 GMT"
    monkeypatch.setattr(doctor.Tracker, "reach", lambda self: self)
    found = {one.what: one for one in doctor._tracking(server.address, tmp_path)}
    assert found["MLflow"].level == doctor.Level.FINE
    assert found["MLflow's version"].said.startswith("the server has 2.9.1, this client")
    assert found["MLflow's version"].level == found["clock"].level == doctor.Level.DOUBTFUL
