"""`ghm submit -- train ...`: a command as a job of a Ray cluster, followed from here."""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console
from rich.table import Table

from ghm.failure import Failed
from ghm.remote import submission
from ghm.remote.carried import carried

# Ray's, which say each step of a submission, and set their own level when they are imported.
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED}


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"ghm submit: {message}; write ghm submit [options] -- train ..., see ghm submit --help")


def main() -> None:
    words, command = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    given = _parser().parse_args(words)
    if not command and not (given.list or given.logs or given.stop):
        raise ValueError("ghm submit: no command; write ghm submit [options] -- train ...")
    client = connect(given.address)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if given.list:
        show(client)
    elif given.stop:
        _known(client, given.stop)
        client.stop_job(given.stop)
        print(f"Stopping {given.stop}; the same command, submitted again, goes on")
    elif given.logs:
        _known(client, given.logs)
        raise SystemExit(follow(client, given.logs))
    else:
        job = submit(client, command, given.env, Path(given.cwd).resolve(), given.name)
        print(f"Job {job}; ghm submit --logs {job} follows it, --stop {job} ends it", flush=True)
        if not given.no_follow:
            raise SystemExit(follow(client, job))


def _parser() -> argparse.ArgumentParser:
    parser = _Arguments(prog="ghm submit", usage="ghm submit [options] -- train ...")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="the cluster's jobs")
    what.add_argument("--logs", metavar="ID", help="follow a job")
    what.add_argument("--stop", metavar="ID", help="end a job; a sweep can go on later")
    parser.add_argument("--address", help="of the cluster's dashboard; else RAY_API_SERVER_ADDRESS")
    parser.add_argument("--name", help="the job's id; else one is drawn")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable to take along")
    parser.add_argument("--cwd", default=".", help="folder on the cluster that relative paths, as runs, are meant from")
    parser.add_argument("--no-follow", action="store_true", help="return as soon as the job is there")
    return parser


def connect(address: str | None) -> JobSubmissionClient:
    """ValueError when no dashboard answers there, or it does not let us in."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    try:
        try:
            return JobSubmissionClient(address)
        except AuthenticationError:  # sent only where it is asked for: an address may be wrong
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {_token()}"})
    except AuthenticationError as error:
        raise ValueError(
            f"--address {address}: asks for the cluster's token, and does not take the one of here; put it (`ray "
            "get-auth-token`, run on its head) into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--address {address}: no Ray dashboard answers there ({reason}); start it (ray start --head), or give its "
            "address, mostly with port 8265"
        ) from error


def _token() -> str:
    """The cluster's, from where Ray looks for it; empty where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else ""


def submit(client: JobSubmissionClient, command: list[str], names: list[str], cwd: Path, name: str | None) -> str:
    """Pack a command up and hand it over; the id of its job. ValueError for what cannot be packed, or a used name."""
    variables = carried(names)
    with tempfile.TemporaryDirectory() as folder:
        submission.pack(Path(folder), command, variables, cwd)
        try:
            job: str = client.submit_job(
                entrypoint="python -m ghm.remote.submitted",
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": {"PYTHONUNBUFFERED": "1"}},
                metadata={"command": submission.shown(command)},
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"ghm submit: the cluster refused it ({' '.join(str(error).split())[:300]})") from error
    return job


def follow(client: JobSubmissionClient, job: str) -> int:
    """Show a job's log until it ends; its exit code. After Ctrl-C in a terminal it may be stopped, or run on."""
    try:
        asyncio.run(_show(client, job))
        about = client.get_job_info(job)
    except KeyboardInterrupt:
        if sys.stdin.isatty() and input(f"\nStop job {job}, or only stop following it? [s/F] ").lower() == "s":
            client.stop_job(job)
            print(f"Stopping {job}; the same command, submitted again, goes on")
        else:
            print(f"Job {job} runs on; ghm submit --logs {job} follows it", file=sys.stderr)
        return 130
    except (OSError, RuntimeError) as error:
        raise Failed(
            f"job {job}: the cluster does not answer any more ({' '.join(str(error).split())[:200]}); if only the "
            f"connection broke, ghm submit --logs {job} follows it again; if its head is gone, start it and submit the "
            "same command: a sweep goes on"
        ) from error
    if about.status == JobStatus.FAILED and about.driver_exit_code is None:
        raise Failed(f"job {job} failed before its command began: {about.message}")
    if about.status == JobStatus.STOPPED:
        raise Failed(f"job {job} was stopped; the same command, submitted again, goes on")
    return int(about.driver_exit_code or 0)


async def _show(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
    while client.get_job_status(job) not in ENDED:
        await asyncio.sleep(0.2)


def _known(client: JobSubmissionClient, job: str) -> None:
    if job not in {about.submission_id for about in client.list_jobs()}:
        raise ValueError(f"{job}: the cluster knows no such job; ghm submit --list shows them")


def show(client: JobSubmissionClient) -> None:
    """The cluster's jobs, newest first."""
    table = Table("job", "status", "command")
    for about in sorted(client.list_jobs(), key=lambda about: -(about.start_time or 0)):
        command = (about.metadata or {}).get("command", about.entrypoint)
        table.add_row(about.submission_id or about.job_id, str(about.status.value), command)
    Console().print(table)
