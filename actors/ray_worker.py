"""A Ray actor as a :class:`lotts_search.actors.worker_group.Worker`: plain futures, and Ray's errors sorted by what the
caller can do about them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RuntimeEnvSetupError

from lotts_search.actors.crew import Died, Unavailable
from lotts_search.actors.engine_thread import Ready
from lotts_search.actors.worker_actor import IN_FLIGHT, BrokenReply, Reply, WorkerActor
from lotts_search.errors import Failure
from lotts_search.work.requests import Result


class RayWorker:
    """One actor. Ray never restarts it (``max_restarts=0``): the worker group replaces it, so that a death is final and
    the new actor may be placed on another node.

    Args:
        actor: class of the actor.
        name: name of the worker, the first argument of the class.
        arguments: the other arguments of the class.
        options: Ray's actor options (resources, runtime_env).
        report: called, in a thread of Ray, with each notice of the actor before its call is done.
    """

    def __init__(
        self,
        actor: type[WorkerActor],
        name: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        report: Callable[[str], None],
    ) -> None:
        self.name, self._report = name, report
        self._actor: Any = (
            ray.remote(actor)
            .options(max_restarts=0, max_task_retries=0, max_concurrency=IN_FLIGHT, **options)
            .remote(name, *arguments)
        )

    def placed(self) -> Future[Any]:
        return self.ping()  # answered as soon as its process runs, while it still loads

    def start(self) -> Future[Ready]:
        return self._call(self._actor.start)

    def run(self, work: Any) -> Future[Result]:
        return self._call(self._actor.run, work)

    def ping(self) -> Future[int]:
        return self._call(self._actor.ping)

    def kill(self) -> None:
        with contextlib.suppress(RayError, ValueError, RuntimeError):  # the actor is gone already, or Ray itself is
            ray.kill(self._actor, no_restart=True)

    def _call(self, method: Any, *arguments: Any) -> Future[Any]:
        """Call a method of a :class:`WorkerActor`; errors that it returns as values become exceptions of the future.
        Cancelling the future cancels the call."""
        out: Future[Any] = Future()

        def settle(value: Any) -> None:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                if isinstance(value, Exception):
                    out.set_exception(value)
                else:
                    out.set_result(value)

        def arrived(reply: Future[Any]) -> None:
            error = reply.exception()
            value = None if error is not None else reply.result()
            if isinstance(value, Reply):
                for text in value.notices:
                    self._report(text)
                value = value.value
            if error is not None:
                settle(_classify(error))
            else:
                settle(Died(value.reason) if isinstance(value, BrokenReply) else owned(value))

        try:
            reference = method.remote(*arguments)
        except Exception as error:  # not serializable, or Ray is gone
            settle(_classify(error))
        else:
            reference.future().add_done_callback(arrived)
            out.add_done_callback(lambda done: _cancel(reference) if done.cancelled() else None)
        return out


def owned(value: Any) -> Any:
    """Return a value whose arrays are its own.

    Ray's arrays are views of its shared memory, and searches keep results: the memory would fill, and actors with new
    results would wait for it.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: owned(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(owned, value))
    if is_dataclass(value):
        for name, item in vars(value).items():
            if not isinstance(item, int | float | str | None):
                object.__setattr__(value, name, owned(item))
    return value


def _cancel(reference: Any) -> None:
    """Cancel a call; its coroutine in the actor stops, and with it the work."""
    with contextlib.suppress(RayError, ValueError, TypeError, RuntimeError):  # the actor is gone, or Ray itself
        ray.cancel(reference)


def _classify(error: BaseException) -> Exception:
    """Return the worker group's exception for an error of Ray."""
    text = str(error)
    if missing := re.search(r"No module named '(\w+)", text):
        how = "ship_code=True" if missing[1] == "lotts_search" else f"packages=[{missing[1]!r}]"
        return Failure(
            f"the Ray workers cannot import {missing[1]}: install it on every node, or copy it by RayPool({how})"
        )
    if isinstance(error, ActorUnavailableError):
        return Unavailable(_cause(text))
    if isinstance(error, RuntimeEnvSetupError):
        return Failure(f"the environment of a worker cannot be set up: {_cause(text)}")
    if isinstance(error, RayActorError):
        return Died(_cause(text))
    if isinstance(error, RayError):
        return Died(f"{type(error).__name__}: {_cause(text)}")
    return Failure(f"{type(error).__name__}: {text}")


def _cause(text: str) -> str:
    """Return the line of Ray's message that names the cause, out of a block of ids and stack frames."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("The actor is dead") or "Error:" in line]
    return (causes or lines or ["no reason given"])[-1]
