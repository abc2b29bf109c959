"""A Ray actor seen as a :class:`lotts_search.actors.crew.Worker`: its answers as plain futures, Ray's errors told
apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RuntimeEnvSetupError

from lotts_search.actors.crew import Died, Unavailable
from lotts_search.actors.host import Ready
from lotts_search.actors.shell import IN_FLIGHT, Broken, Shell
from lotts_search.errors import Failure, LottsError
from lotts_search.work.requests import Result


class RemoteWorker:
    """One actor. Ray itself never restarts it (``max_restarts=0``): the crew replaces it, so that "died" stays final
    and a new actor may be placed on another node.

    Args:
        actor: class of the actor.
        name: of the worker, the first argument of the class.
        arguments: the others.
        options: Ray's actor options (resources, runtime_env).
    """

    def __init__(self, actor: type[Shell], name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.name = name
        self._actor: Any = (
            ray.remote(actor)
            .options(max_restarts=0, max_task_retries=0, max_concurrency=IN_FLIGHT, **options)
            .remote(name, *arguments)
        )

    def start(self) -> Future[Ready]:
        return _answer(lambda: self._actor.start.remote())

    def run(self, work: Any) -> Future[Result]:
        return _answer(lambda: self._actor.run.remote(work))

    def ping(self) -> Future[None]:
        return _answer(lambda: self._actor.ping.remote())

    def kill(self) -> None:
        with contextlib.suppress(RayError, ValueError, RuntimeError):  # gone already, or Ray itself is
            ray.kill(self._actor, no_restart=True)


def _answer(call: Callable[[], Any]) -> Future[Any]:
    """The answer of a call to a :class:`Shell`; errors that came as values are errors again."""
    out: Future[Any] = Future()

    def arrived(answer: Future[Any]) -> None:
        error = answer.exception()
        value = None if error is not None else answer.result()
        if error is not None:
            out.set_exception(_told_apart(error))
        elif isinstance(value, Broken):
            out.set_exception(Died(value.reason))
        elif isinstance(value, LottsError):
            out.set_exception(value)
        else:
            out.set_result(value)

    try:
        reference = call()
    except Exception as error:  # not serializable, or Ray is gone
        out.set_exception(_told_apart(error))
    else:
        reference.future().add_done_callback(arrived)
    return out


def _told_apart(error: BaseException) -> Exception:
    text = str(error)
    if "No module named 'lotts_search'" in text:
        return Failure(
            "the Ray workers cannot import lotts_search: install it on every node, or connect with ship_code=True"
        )
    if isinstance(error, ActorUnavailableError):
        return Unavailable(_cause(text))
    if isinstance(error, RuntimeEnvSetupError):
        return Failure(f"the environment of a worker cannot be made: {_cause(text)}")
    if isinstance(error, RayActorError):
        return Died(_cause(text))
    if isinstance(error, RayError):
        return Died(f"{type(error).__name__}: {_cause(text)}")
    return Failure(f"{type(error).__name__}: {text}")


def _cause(text: str) -> str:
    """The line of Ray's message that says why, out of a block of ids and stack frames."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("The actor is dead") or "Error:" in line]
    return (told or lines or ["no reason given"])[-1]
