"""Start or join Ray, and let its worker processes find this package."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import shutil
import signal
import socket
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError, RayError

import lotts_search
from lotts_search.errors import BadInput, Failure
from lotts_search.verifiers.environments.prepare import VARIABLE, environments_folder

log = logging.getLogger(__name__)

SYSTEM = {
    # Processes that Ray starts in advance would stay unused: our actors have an environment of their own.
    "prestart_worker_first_driver": False,
    # By default Ray lowers the priority of its workers (niceness 15); ours are the main program.
    "worker_niceness": 0,
    # On a busy machine a process takes minutes to start. Ray would end it after one, five times, and give the actor up; how long
    # a start may take is for the pool to say (Limits.start_s).
    "worker_register_timeout_seconds": 600,
    # Notice a lost node within seconds, but do not mistake a busy one for lost.
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 5,
}
"""Settings of a private Ray."""


@dataclass
class Connection:
    """How this process is connected to Ray.

    Attributes:
        how: ``found`` a connection that the program had made already, ``joined`` a cluster, or ``started`` a private
            Ray.
        folder: files of a private Ray.
    """

    how: Literal["found", "joined", "started"]
    folder: Path | None = None

    def close(self) -> None:
        """Undo :func:`connect`."""
        if self.how != "found" and ray.is_initialized():
            ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def connect(
    address: str | None,
    needed: Mapping[str, float],
    *,
    object_store_mb: int = 256,
    ship_code: bool = False,
    packages: Sequence[str] = (),
    loopback: bool = False,
) -> Connection:
    """Connect this process to Ray, unless it is connected already.

    Args:
        address: cluster to join (``auto``, ``host:port``, ``ray://host:port``), or ``local`` to start a private Ray;
            None = the value of ``RAY_ADDRESS`` (Ray sets it in submitted jobs), or ``local`` without one.
        needed: ``CPU`` and ``GPU`` that the actors will request. A private Ray has exactly these (its CPUs are slots,
            not a limit on use); if another cluster has less free now, a warning explains why actors may be delayed.
        object_store_mb: shared memory of a private Ray, 80 MB or more.
        ship_code: copy this package to the workers of a joined cluster, so that they need not have it installed.
        packages: top-level packages and modules to copy there too, such as those of plug-ins.
        loopback: let a private Ray listen to this machine only. Other programs cannot join it then.

    Raises:
        BadInput: the object store is too small, or there is no such package.
        Failure: Ray cannot be reached or started.
    """
    if ray.is_initialized():
        _warn_if_short(needed)
        return Connection("found")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address != "local":
        code = [*([_package()] if ship_code else []), *map(_code_of, packages)]
        environment = {"py_modules": [str(path) for path in code]} if code else {}
        _check_listening(address)
        try:
            with _own_sigterm():
                ray.init(address=address, runtime_env=environment, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            why = _first_line(error)
            if isinstance(error, ConnectionError | AuthenticationError):  # though something listens there
                why += f". Is this the address of a head, usually HEAD:6379? {_token()}"
            raise Failure(f"cannot join the Ray cluster at {address!r}: {why}") from error
        _warn_if_short(needed)
        return Connection("joined")
    if object_store_mb < 80:
        raise BadInput(f"Ray's object store needs at least 80 MB, not {object_store_mb}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return _start(needed, object_store_mb, quiet, loopback)


def _start(needed: Mapping[str, float], object_store_mb: int, quiet: dict[str, Any], loopback: bool) -> Connection:
    """Start a private Ray. Its parts must come up within 30 seconds, which a busy machine can miss, so try twice."""
    for last in (False, True):
        folder = Path(tempfile.mkdtemp(prefix="lr-", dir="/tmp" if os.path.isdir("/tmp") else None))  # short: sockets
        try:
            with _own_sigterm(), _on_this_machine() if loopback else contextlib.nullcontext():
                ray.init(
                    address="local",
                    num_cpus=math.ceil(needed["CPU"]),
                    num_gpus=math.ceil(needed["GPU"]),
                    include_dashboard=False,
                    object_store_memory=object_store_mb * 1024 * 1024,
                    _temp_dir=str(folder),
                    _system_config=SYSTEM,
                    **quiet,
                )
            return Connection("started", folder)
        except Exception as error:
            with contextlib.suppress(Exception):
                ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            if last:
                raise Failure(f"cannot start Ray: {_first_line(error)}") from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _on_this_machine() -> Iterator[None]:
    """Let a private Ray listen to this machine only, as Ray does on macOS and Windows; on Linux its processes would listen to
    the network, and ``ray.init(_node_ip_address="127.0.0.1")`` is replaced by the machine's address."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes of Ray, which inherit it
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep a program's handler of SIGTERM. Ray replaces it, and below it installs one that prints a stack trace and aborts."""
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, which has the handlers
            signal.signal(signal.SIGTERM, before if callable(before) else signal.getsignal(signal.SIGTERM))


def _check_listening(address: str) -> None:
    """Fail at once where nothing listens; Ray would retry for minutes.

    Raises:
        Failure: nothing listens at the address.
    """
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not colon or not port.isdigit():  # "auto", or another scheme: Ray reports what is wrong
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise Failure(f"cannot join the Ray cluster at {address!r}: {error}") from error


def _token() -> str:
    """Say what this program shows to a cluster that asks for a token."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return (
            "And is the token (RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) that of the cluster?"
        )
    return "And if the cluster asks for a token, RAY_AUTH_MODE=token is not set here"


def _warn_if_short(needed: Mapping[str, float]) -> None:
    found = _free()
    for name, amount in needed.items():
        if found[name] < amount:
            log.warning("the actors need %g %s, but Ray has only %g free: waiting", amount, name, found[name])


def _free() -> dict[str, float]:
    found: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return {name: found.get(name, 0.0) for name in ("CPU", "GPU")}


def free() -> str:
    """Say how many CPUs and GPUs Ray has free now."""
    return ", ".join(f"{amount:g} {name}" for name, amount in _free().items())


def environment(threads: int, requirements: Sequence[str] = ()) -> dict[str, Any]:
    """Return the ``runtime_env`` of an actor.

    If the package is installed on the node, nothing else is needed. A checkout is found through PYTHONPATH, which is
    right on this machine and on nodes that share its file system, and harmless elsewhere.

    Args:
        threads: value of OMP_NUM_THREADS.
        requirements: pip requirements of the actor.

    Raises:
        Failure: there are requirements, and virtualenv, with which Ray installs them, is missing.
    """
    variables = {"OMP_NUM_THREADS": str(threads)}
    root = _package().parent
    if root not in {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}:
        variables["PYTHONPATH"] = os.pathsep.join([str(root), *_absolute(os.environ)])
    if VARIABLE in os.environ:
        variables[VARIABLE] = str(environments_folder())
    result: dict[str, Any] = {"env_vars": variables}
    if requirements:
        if importlib.util.find_spec("virtualenv") is None:
            raise Failure(
                f"Ray installs {', '.join(requirements)} by the package virtualenv, which is missing: pip install "
                "virtualenv, on every node"
            )
        result["pip"] = list(requirements)
    return result


def _absolute(environ: Mapping[str, str]) -> list[str]:
    """Return the entries of PYTHONPATH as absolute paths: workers run in another folder."""
    return [os.path.abspath(entry) for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _package() -> Path:
    return Path(lotts_search.__file__).resolve().parent


def _code_of(package: str) -> Path:
    """Return the folder of a top-level package, or the file of a module; raise BadInput where there is none."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise BadInput(f"there is no top-level package or module {package!r} to copy to the workers")
    origin = Path(found.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
