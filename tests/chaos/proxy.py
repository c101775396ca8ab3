"""A tracking server behind a proxy that fails on purpose."""

import contextlib
import http.client
import http.server
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ghm.tracking import Tracker

HOP = {"connection", "transfer-encoding", "keep-alive", "host", "content-length"}


@contextlib.contextmanager
def tracking_server(folder: Path, artifacts: str | None = None) -> Iterator[int]:
    """MLflow's own server on a free port, with all its state in `folder`, or artifacts at that URI; the port."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "mlflow", "server", "--workers", "1", "--port", str(port)]
    stored = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    stored += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
    server = subprocess.Popen(
        [*command, *stored],
        cwd=folder,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # eight processes that nobody here asks
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until_it_answers(f"http://127.0.0.1:{port}/health")
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its workers too
        server.wait()


def until_it_answers(address: str) -> None:
    """Wait for a server that has just been started, two minutes at most."""
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


class Proxy:
    """Passes requests on, of which so many as `faults` says meet an error, a reset or a delay first."""

    def __init__(self, port: int, numbers: random.Random) -> None:
        self.port, self.random = port, numbers
        self.faults, self.away_until = 0, 0.0
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def tracker(self) -> Tracker:
        """Past the proxy."""
        return Tracker.open(f"http://127.0.0.1:{self.port}", "ghm", ".")

    def __enter__(self) -> "Proxy":
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                proxy._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if time.monotonic() < self.away_until:
            _reset(request)
            return
        with self._lock:
            fails = self.faults > 0 and self.random.random() < 0.5
            self.faults -= fails
            kind = self.random.choice(["error", "reset", "delay", "lost answer"]) if fails else ""
        if kind == "error":
            request.send_error(self.random.choice([500, 502, 503]))
            return
        if kind == "reset":
            _reset(request)
            return
        if kind == "delay":
            time.sleep(self.random.uniform(1, 5))
        onward = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP}
        onward.request(request.command, request.path, body, headers | {"Content-Length": str(len(body))})
        answer = onward.getresponse()
        content = answer.read()
        onward.close()
        if kind == "lost answer":  # it was done, and nobody knows
            _reset(request)
            return
        request.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in HOP | {"date", "server"}:
                request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def _reset(request: http.server.BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    with contextlib.suppress(OSError):
        request.connection.shutdown(socket.SHUT_RDWR)
