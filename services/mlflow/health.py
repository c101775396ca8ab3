"""Healthy is a server that lets the writer of .env in, reads its database, and keeps and returns a file.

It also makes the writer's account, and gives it the password of .env where that has changed.
"""

import base64
import json
import os
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from typing import NoReturn

SERVER = os.environ.get("MLFLOW_SERVER", "http://127.0.0.1:5000")
ADMIN = ("admin", os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])
WRITER = ("writer", os.environ["MLFLOW_WRITER_PASSWORD"])
REMEDY = (
    "MLFLOW_ADMIN_PASSWORD in .env is not that of the account `admin`, which keeps the one it was made with; "
    "put that back, or change the account's (services/README.md, Passwords)"
)


def main() -> None:
    if ask("GET", "/api/2.0/mlflow/users/current", WRITER) == 401:
        account()
    said = ask("POST", "/api/2.0/mlflow/experiments/search", WRITER, {"max_results": 1})
    if said != 200:
        end(f"searching experiments is answered with {said}")
    for method in ("PUT", "GET"):
        said = ask(method, "/api/2.0/mlflow-artifacts/artifacts/.health/alive", WRITER, {})
        if said != 200:
            end(f"{method} of an artifact is answered with {said}; is the disk full?")


def account() -> None:
    """Make the writer's account, or change its password."""
    name, password = WRITER
    known = ask("GET", f"/api/2.0/mlflow/users/get?username={name}", ADMIN)
    if known == 401:
        end(REMEDY)
    told = {"username": name, "password": password}
    if known == 200:
        said = ask("PATCH", "/api/2.0/mlflow/users/update-password", ADMIN, told)
    else:
        said = ask("POST", "/api/2.0/mlflow/users/create", ADMIN, told)
    if said != 200:
        end(f"the account `{name}` cannot be made ({said}); a password has 12 characters or more")


def ask(method: str, path: str, user: tuple[str, str], told: object = None) -> int:
    """The status of a request."""
    secret = base64.b64encode(":".join(user).encode()).decode()
    headers = {"Authorization": f"Basic {secret}", "Content-Type": "application/json"}
    body = None if told is None or method == "GET" else json.dumps(told).encode()
    request = urllib.request.Request(SERVER + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        end(f"does not answer ({error})", quiet=True)


def end(why: str, quiet: bool = False) -> NoReturn:
    line = f"mlflow is not healthy: {why}"
    if not quiet and (log := os.environ.get("HEALTH_LOG")):  # the service's own, where people look
        with suppress(OSError), open(log, "w") as file:
            print(line, file=file)
    sys.exit(line)


if __name__ == "__main__":
    main()
