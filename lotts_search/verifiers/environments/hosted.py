"""A verifier in a process of another environment, used like any other verifier.

Both pools use it, in their own process or in the Ray actor of the verifier. Ray could also start that actor with the
environment's Python (``py_executable``). Then each environment needs Ray in the driver's exact version, with numpy,
msgpack and protobuf as Ray wants them, which is what the verifier's pins conflict with; a wheel of this
project would not be found there at all; and a judge that hangs would be noticed after the pool's ``answer_s`` only, with
all images beside it. One mechanism for both pools is also one set of failures to test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import lotts_search
from lotts_search.errors import BadInput, Failure, PoolClosed
from lotts_search.verifiers.environments import frames
from lotts_search.verifiers.environments.prepare import Environment
from lotts_search.verifiers.environments.recipe import recipe_of

HOST = Path(__file__).with_name("host.py")
LOAD_S = 1800.0
"""Seconds that loading may take; weights may have to be downloaded first."""
SCORE_S = 300.0
"""Seconds that a call of ``score`` may take where ``load`` has no setting ``timeout``."""
TRIES = 2
"""Tries of a call whose process dies."""
LOST = 4
"""Consecutive calls without an answer after which the verifier is given up."""


class HostedVerifier:
    """A verifier in another process. Its scores are those of ``score`` there; the process ends with this one.

    A process that dies is started again and the call repeated once. One that does not answer in time is ended, and the
    call fails. The pool then scores the images of the call one by one, so that only the images at fault fail. After
    :data:`LOST` such calls in a row, all fail at once.

    Args:
        name: of the verifier, in messages.
        command: how to start the process; standard input is its connection.
        target: ``package.module:Class`` of the verifier.
        settings: arguments of its ``load``, values that JSON can hold.
        timeout: seconds that a call of ``score`` may take.
        rehearse: arguments of the verifier's class method ``rehearse``, which writes a random checkpoint and returns the
            settings that load it; None = it is not called.

    Attributes:
        batch: most images in a call, as in the verifier there; None = the pool's.
        pad: whether calls are filled up, as in the verifier there.
        flops: of one score, as in the verifier there.

    Raises:
        BadInput, Failure: the verifier cannot be loaded.
    """

    requirements: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        command: list[str],
        target: str,
        settings: Mapping[str, Any],
        timeout: float = SCORE_S,
        rehearse: Mapping[str, Any] | None = None,
    ) -> None:
        if not timeout > 0:
            raise BadInput(f"timeout of verifier {name!r} must be above 0 seconds, not {timeout}")
        self.name, self.timeout = name, timeout
        self.batch: int | None = None
        self.pad = True
        self.flops = 0.0
        self._command, self._load = command, {"load": target, "settings": dict(settings)}
        if rehearse is not None:
            self._load["rehearse"] = dict(rehearse)
        self._lock = threading.Lock()
        self._calls = self._lost = 0
        self._closed = False
        self._process: _Process | None = None
        with self._lock:
            self._start()

    def score(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the scores [B] of images [B, h, w, 3] for ``prompts`` [B].

        Raises:
            BadInput: the verifier refuses the images.
            Failure: it raises an error, dies twice, is too late, or does not answer with a score for each image.
            PoolClosed: this verifier is closed.
        """
        with self._lock:
            if self._lost >= LOST:
                raise Failure(f"verifier {self.name!r} is given up: {self._lost} calls in a row had no answer")
            self._lost += 1
            for left in reversed(range(TRIES)):
                if self._process is None:
                    self._start()
                try:
                    scores = self._try(prompts, np.ascontiguousarray(images))
                except _Lost as lost:
                    self._stop()
                    self._check_open()
                    if not left or lost.late:
                        raise Failure(f"verifier {self.name!r} {lost}") from lost
                else:
                    return scores
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the process, also in the middle of a call, which then fails."""
        self._closed = True
        if self._process is not None:
            self._process.end()

    def _try(self, prompts: list[str], images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        assert self._process is not None
        self._calls += 1
        call = self._calls
        header = {"call": call, "prompts": prompts, "shape": images.shape, "threads": _threads()}
        body = memoryview(images.data).cast("B")
        answer, scores = self._process.exchange(header, body, self.timeout)
        self._lost = 0
        self._raise(answer)
        return _by_identity(frames.identities(call, prompts, body), answer.get("rows"), scores, self.name)

    def _start(self) -> None:
        self._calls += 1
        self._process = _Process(self._command)
        if self._closed:  # in the meantime: close() may not have seen this process
            self._stop()
        self._check_open()
        try:
            answer, _ = self._process.exchange({"call": self._calls, **self._load}, memoryview(b""), LOAD_S)
            self._raise(answer)
        except BaseException as error:
            self._stop()
            self._check_open()
            if isinstance(error, _Lost):
                raise Failure(f"verifier {self.name!r} cannot be loaded: it {error}") from error
            raise
        self.batch, self.pad = answer.get("batch"), answer.get("pad", True)
        self.flops = float(answer.get("flops", 0.0))

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed(f"verifier {self.name!r} is closed")

    def _raise(self, answer: Mapping[str, Any]) -> None:
        """Raise the error that an answer holds."""
        if "error" in answer:
            kind, text = answer["error"], answer.get("text", "")
            if kind == "BadInput":
                raise BadInput(text)
            raise Failure(f"verifier {self.name!r} failed: {text if kind == 'Failure' else f'{kind}: {text}'}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _Lost(Exception):
    """A process gave no answer that can be used; ``late`` where it had too little time."""

    late = False


class _Process:
    """A process with a connection. It leads a session of its own, so that Ctrl-C reaches only its owner, which ends it
    and all that it started."""

    def __init__(self, command: list[str]) -> None:
        self.connection, other = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                command, stdin=other.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            self.connection.close()
            raise Failure(f"{command[0]} cannot be run: {error.strerror}") from error
        finally:
            other.close()
        # Also where nobody calls end(): when the owner is collected, and when the interpreter exits.
        self.end = weakref.finalize(self, _end, self.process, self.connection)

    def exchange(self, header: dict[str, Any], body: memoryview, seconds: float) -> tuple[dict[str, Any], bytearray]:
        """Send a request and return the answer to it; raise :class:`_Lost` where there is none."""
        try:
            with _Alarm(seconds, self.connection) as alarm:
                frames.send(self.connection, header, body)
                while True:
                    answer, rest = frames.receive(self.connection)
                    if answer.get("call") == header["call"]:
                        return answer, rest
        except (EOFError, OSError, frames.BrokenFrame) as error:
            if alarm.rang:
                lost = _Lost(f"gave no answer within {seconds:g} s and was ended")
                lost.late = True
            else:
                lost = _Lost(self._why(error))
            raise lost from error

    def _why(self, error: Exception) -> str:
        if isinstance(error, frames.BrokenFrame):
            return f"broke the protocol: {error}"
        self.end()  # what has died already keeps its code
        code = self.process.wait()  # another thread may be ending it
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"died of signal {signal.Signals(-code).name}"
        return f"died with exit code {code}"


class _Alarm:
    """Shut a connection down after some seconds, which wakes whoever waits for it."""

    def __init__(self, seconds: float, connection: socket.socket) -> None:
        self.rang = False
        self._connection = connection
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    if process.returncode is None:  # not waited for, so its number is not another one's
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    connection.close()


def _by_identity(rows: list[str], answered: Any, scores: bytearray, name: str) -> npt.NDArray[np.float32]:
    """Return the scores in the order of ``rows``, the identities of the images that were sent.

    Raises:
        Failure: an image has no score, or several, or there is a score of another image.
    """
    values = np.frombuffer(scores, "<f4") if len(scores) % 4 == 0 else np.empty(0, np.float32)
    if not isinstance(answered, list) or len(answered) != len(values):
        raise Failure(f"verifier {name!r} answered with {len(values)} scores for another number of images")
    given = dict(zip(map(str, answered), values, strict=True))
    if len(given) != len(values) or given.keys() != set(rows):
        missing = len(set(rows) - given.keys())
        raise Failure(
            f"verifier {name!r} answered with {len(values)} scores for {len(rows)} images: "
            f"{missing} of them have none, {len(given.keys() - set(rows))} are of other images"
        )
    return np.array([given[row] for row in rows], np.float32)


def _threads() -> int | None:
    """Return torch's number of threads here, which the other process takes over."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch is not None else None


def load_hosted(
    verifier: type[Any],
    settings: Mapping[str, Any],
    name: str | None = None,
    folder: Path | None = None,
    rehearse: Mapping[str, Any] | None = None,
) -> HostedVerifier:
    """Return a verifier whose class names an environment, loaded there.

    Args:
        verifier: the class.
        name: registered name or ``package.module:Class``; None = the class's ``name``.
        settings: arguments of its ``load``; ``timeout`` among them is the seconds that a call may take.
        folder: of all environments; None = the user's.
        rehearse: see :class:`HostedVerifier`.

    Raises:
        BadInput: a setting that JSON cannot hold, a wrong recipe, or a class that another process cannot import.
        Failure: the environment is not ready, or the verifier cannot be loaded there.
    """
    name = name or str(getattr(verifier, "name", verifier.__name__))
    command = _command(verifier, name, folder)
    try:
        given = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise BadInput(f"verifier {name!r}: its settings cannot be sent to another process: {error}") from error
    timeout = float(settings.get("timeout", SCORE_S))
    return HostedVerifier(name, command, _target(verifier), given, timeout, rehearse)


def import_hosted(verifier: type[Any], name: str, folder: Path | None = None) -> None:
    """Import the class of a verifier in its environment; arguments and errors are those of :func:`load_hosted`."""
    process = _Process(_command(verifier, name, folder))
    try:
        answer, _ = process.exchange({"call": 1, "find": _target(verifier)}, memoryview(b""), LOAD_S)
    except _Lost as error:
        raise Failure(f"verifier {name!r} cannot be imported in its environment: it {error}") from error
    finally:
        process.end()
    if "error" in answer:
        raise Failure(f"verifier {name!r} cannot be imported in its environment: {answer['error']}: {answer['text']}")


def _target(verifier: type[Any]) -> str:
    return f"{verifier.__module__}:{verifier.__qualname__}"


def _command(verifier: type[Any], name: str, folder: Path | None) -> list[str]:
    """Return how to start the process of a verifier in its environment."""
    recipe = recipe_of(verifier)
    if recipe is None:
        raise BadInput(f"verifier {name!r} names no environment")
    environment = Environment.of(recipe, folder)
    environment.require(name)
    top = verifier.__module__.partition(".")[0]
    configuration = {
        "parent": os.getpid(),
        "packages": {"lotts_search": str(Path(lotts_search.__file__).parents[1]), top: _folder_of(top, name)},
        "stubs": dict(recipe.stubs),
    }
    return [str(environment.python), "-I", "-X", "utf8", str(HOST), json.dumps(configuration)]


def _folder_of(package: str, verifier: str) -> str:
    """Return the folder that holds a top-level package or module."""
    spec = importlib.util.find_spec(package) if package != "__main__" else None
    if spec is not None and spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).resolve().parent)
    if spec is not None and spec.origin:
        return str(Path(spec.origin).resolve().parent)
    raise BadInput(
        f"verifier {verifier!r} must be a class of a module that another process can import, not of a script"
    )
