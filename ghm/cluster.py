"""The only door to Ray: the cluster of RAY_ADDRESS, one that runs on this machine, or a small one of its own."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import ray
from ray._private.services import canonicalize_bootstrap_address  # where `ray.init` looks, which it does not tell
from ray._private.state import state  # Ray Train itself asks it how far a cluster may grow

STORE = 200 * 2**20  # bytes of shared memory of a Ray of its own: what passes through it is small
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in what was submitted
ANSWER = 4.0  # seconds; Ray itself would wait for minutes

log = logging.getLogger(__name__)


@contextmanager
def connected(code: Path | None = None) -> Iterator[None]:
    """A connection to Ray: the one there is, or one that ends with this. A Ray of its own ends with it too.

    `code`: a folder whose source the processes of this connection import, from a copy, in place of what lies here. A
    job that was submitted runs from such a copy as it is.
    ValueError when the address in RAY_ADDRESS does not answer, or refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        copied = code is None or JOB in os.environ
        _connect(None if copied else {"working_dir": str(code)})
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which would skip an orderly end
        yield
    finally:
        with _handler_kept(signal.SIGTERM):
            ray.shutdown()


@contextmanager
def _handler_kept(number: signal.Signals) -> Iterator[None]:
    """Put a signal's handler back all the while: Ray's C++ sets SIGTERM to its default a second before it is down."""
    handler = signal.getsignal(number)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.signal(number, handler))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(number, handler)


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """By this process and those that it starts meanwhile."""
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, handler)


def check_fits(count: int, what: str, cpus: float, gpus: float, remedy: str) -> None:
    """ValueError when `count` times so many CPUs and GPUs are more than the cluster has in all, or may grow to.

    `what` names the setting, `remedy` what else to lower, with {kind} for cpus or gpus.
    """
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        there = _most(kind)
        if count * each > there:
            raise ValueError(
                f"{what}={count}: {count} times {each:g} {kind} do not fit the {there:g} of this Ray cluster; "
                f"lower it or {remedy.format(kind=f'{kind.lower()}s')}"
            )


def _most(kind: str) -> float:
    """What the connected cluster has of a resource, or its autoscaler may bring it to."""
    grown = state.get_max_resources_from_cluster_config() or {}
    return max(float(ray.cluster_resources().get(kind, 0)), float(grown.get(kind, 0)))


def _connect(environment: dict[str, str] | None) -> None:
    named = os.environ.get("RAY_ADDRESS")
    address = _address(named)
    if address is not None and not _answers(address):
        if named:
            raise ValueError(
                f"RAY_ADDRESS={named}: no Ray answers there within {ANSWER:g} s; start it (ray start --head), "
                "give the host and port that it printed (mostly 6379), or unset it to run on this machine alone"
            )
        log.warning("The Ray that was started on this machine (%s) is gone; starting one for this command", address)
        address = None
    if address is None:
        with _ignored(signal.SIGHUP):  # by its processes too: a lost terminal ends the command orderly, and it them
            ray.init(
                address="local",
                object_store_memory=STORE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=environment,
            )
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        where = f"RAY_ADDRESS={named}" if named else f"the Ray that runs on this machine ({address})"
        raise ValueError(
            f"{where}: does not let this process in; put the cluster's token (`ray get-auth-token`, run there) into "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token here"
        ) from error


def _address(named: str | None) -> str | None:
    """Of the cluster to use, as host:port or ray://host:port; None for none."""
    if named and "://" in named:
        if not named.startswith("ray://"):
            raise ValueError(f"RAY_ADDRESS={named}: is no address of a cluster; give host:port, mostly with port 6379")
        return named
    try:
        address: str | None = canonicalize_bootstrap_address(named)
    except (ValueError, ConnectionError, OSError) as error:
        raise ValueError(
            f"RAY_ADDRESS={named}: names no Ray ({error}); give the host:port of one, or unset it to run on this "
            "machine alone"
        ) from error
    return address


def _answers(address: str) -> bool:
    """Whether a gRPC server is there, as Ray's head is one and its dashboard is not."""
    address = address.removeprefix("ray://")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, ValueError):
        return False
    if os.environ.get("RAY_USE_TLS"):
        return True  # Ray knows the certificates, and says what it thinks of them
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER)
        except grpc.FutureTimeoutError:
            return False
        return True
