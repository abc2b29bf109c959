"""Run work on Ray: actors of generators, verifiers and rewriters, behind the interface :class:`lotts_search.work.pool.Pool`."""

from __future__ import annotations

import atexit
import logging
import os
import pkgutil
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from lotts_search import registry
from lotts_search.actors.connection import connect, environment, free
from lotts_search.actors.crew import PLACE_S, Limits
from lotts_search.actors.engine_thread import Ready
from lotts_search.actors.factories import ENGINE, REWRITER, SCORER
from lotts_search.actors.placement import Placement
from lotts_search.actors.pool_thread import PoolThread
from lotts_search.actors.ray_worker import RayWorker
from lotts_search.actors.worker_actor import GeneratorActor, RewriterActor, VerifierActor, WorkerActor, drained
from lotts_search.actors.worker_group import WorkerGroup
from lotts_search.backbones.load_options import with_absolute_paths
from lotts_search.errors import BadInput, PoolClosed, notice, unknown
from lotts_search.plugins import Entry, target_of
from lotts_search.verifiers.spec import VerifierSpec
from lotts_search.work.batch_sizes import ROWS, Batch, BatchSizes
from lotts_search.work.model import ModelInfo
from lotts_search.work.pool import Checking
from lotts_search.work.requests import Judge, Result, Rewrite, Work

log = logging.getLogger(__name__)

REWRITES = 64
"""Requests that a rewriter actor holds at once; its own threads take them from there."""


class RayPool(Checking):
    """A pool of Ray actors.

    Results are bitwise those of :class:`lotts_search.engine.local_pool.LocalPool` with the same ``threads`` and
    one size of ``batch`` on the same hardware, for any number of actors. Tasks of an actor that dies are retried on another;
    ``Result.attempts`` and ``Result.usage.nfe_wasted`` record that, and each task is charged once.

    Args:
        model: registered name, folder or Hub id.
        verifiers: as for :func:`lotts_search.registry.load_verifier`; each gets actors, with a separate environment if
            it has requirements.
        generators: generator actors, 1 or more.
        batch: rows of a network call and images of a scoring call, or several such sizes, see :class:`~lotts_search.engine.engine.Engine`.
        threads: torch threads, and Ray CPUs, of each actor.
        backbone_options: passed to :func:`lotts_search.registry.load_backbone`, e.g. ``{"device": "cuda"}``.
        address: see :func:`lotts_search.actors.connection.connect`.
        placement: what the actors take of which nodes, and how many actors each verifier has.
        requirements: pip requirements by verifier, beyond those that the verifiers declare.
        limits: timeouts and number of tries.
        ship_code: copy this package to the workers of a joined cluster.
        packages: top-level packages and modules to copy there too: those of plug-ins that are not installed on all nodes.
        rewriters: settings by registered name of a rewriter; each rewriter gets an actor and this process's
            environment variables ``LOTTS_REWRITER_…``.
        engine, scorer: ``module:function`` that builds a generator's engine or a verifier's batcher, as do those in
            :mod:`lotts_search.actors.factories`.

    Attributes:
        info: description of the model.
        verifiers, rewriters: their names.

    Raises:
        BadInput, Failure: an actor cannot load its part (a broken model folder, an unknown verifier), or Ray cannot be
            reached. Everything that was started is stopped again.
    """

    info: ModelInfo

    def __init__(
        self,
        model: str,
        verifiers: Sequence[str] = (),
        generators: int = 1,
        batch: Batch = ROWS,
        threads: int = 1,
        backbone_options: Mapping[str, Any] | None = None,
        address: str | None = None,
        *,
        placement: Placement | None = None,
        requirements: Mapping[str, Sequence[str]] | None = None,
        limits: Limits | None = None,
        ship_code: bool = False,
        packages: Sequence[str] = (),
        rewriters: Mapping[str, Mapping[str, object]] | None = None,
        engine: str = ENGINE,
        scorer: str = SCORER,
    ) -> None:
        for name, number in {"generators": generators, "threads": threads}.items():
            if number < 1:
                raise BadInput(f"{name} must be 1 or more, not {number}")
        options = dict(backbone_options or {})
        sizes = BatchSizes.of(batch)
        placed = placement or Placement()
        # Workers run in another folder. A registered name takes precedence over a folder of that name.
        where = model if model in registry.models() or not Path(model).is_dir() else str(Path(model).resolve())
        self.verifiers = names = tuple(dict.fromkeys(verifiers))
        writers = {name: dict(settings) for name, settings in (rewriters or {}).items()}
        self.rewriters = tuple(writers)
        needs = {name: _of_verifier(name) for name in names if scorer == SCORER}
        needs |= {name: _declared("rewriter", name, registry.rewriters()) for name in writers}
        needs = {name: [*needs.get(name, ()), *(requirements or {}).get(name, ())] for name in (*names, *writers)}
        needed = placed.resources(options, names, len(writers), generators=generators, threads=threads)

        self._thread = PoolThread(self._break)
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._noticed: set[str] = set()
        self._closed, self._lock = False, threading.Lock()
        self._closed_reason: str | None = None
        self._connection = connect(
            address, needed, object_store_mb=placed.object_store_mb, ship_code=ship_code, packages=packages
        )

        def group(
            kind: str,
            name: str,
            actor: type[WorkerActor],
            *arguments: Any,
            size: int = 1,
            batch: int,
            **ray_options: Any,
        ) -> WorkerGroup:
            def spawn(number: int) -> RayWorker:
                given = {"num_cpus": threads, **ray_options}
                return RayWorker(actor, f"{name}-{number}", (*arguments, threads), given, self._notices.put)

            return WorkerGroup(kind, size, batch, spawn, self._thread.post, limits or Limits())

        self._generators = group(
            "generator",
            "generator",
            GeneratorActor,
            *(engine, where, with_absolute_paths(options), sizes.batch),
            size=generators,
            batch=sizes.most,
            scheduling_strategy="SPREAD",
            runtime_env=environment(threads),
            **placed.generator(options),
        )
        self._verifiers = {
            name: group(
                f"verifier {name!r}",
                name,
                VerifierActor,
                *(scorer, str(VerifierSpec.parse(name).within(Path.cwd())) if scorer == SCORER else name, sizes.batch),
                size=placed.verifiers,
                batch=sizes.most,
                runtime_env=environment(threads, needs[name]),
                **placed.verifier(name),
            )
            for name in names
        }
        environ = {name: value for name, value in os.environ.items() if name.startswith("LOTTS_REWRITER_")}
        self._rewriters = {
            name: group(
                f"rewriter {name!r}",
                name,
                RewriterActor,
                *(REWRITER, name, settings, environ),
                batch=REWRITES,
                runtime_env=environment(threads, needs[name]),
                **placed.rewriter(),
            )
            for name, settings in writers.items()
        }
        self._groups = [self._generators, *self._verifiers.values(), *self._rewriters.values()]
        atexit.register(self.close)
        self._thread.open(self._groups, shared=self._connection.how != "started")
        try:
            info = self._wait_for(self._generators).info
            # What a search is named by: as given, not by absolute paths.
            named = {"name": model} if info.name == where else {}
            self.info = replace(info, **named, **({"loaded": registry.loaded(options)} if info.loaded else {}))
            for each in self._groups[1:]:
                self._wait_for(each)
            self._report()
        except BaseException:
            self.close()
            raise

    def _wait_for(self, group: WorkerGroup) -> Ready:
        """Return the first worker of a group when the group can begin, and say now and then what it waits for."""
        pause = 2 * PLACE_S
        while True:
            try:
                first = group.ready.result(pause)
                break
            except TimeoutError:
                log.warning("waiting for actors. %s. Ray has %s free", group.crew, free())
                pause *= 2
        if len(group.crew.working) < group.crew.size:
            notice(
                f"the pool begins with what is ready. {group.crew}. Ray has {free()} free; more actors are used once they start"
            )
        return first

    def submit(self, work: Work) -> Future[Result]:
        """Queue a piece of work; never blocks. New notices of the actors are reported.

        Raises:
            BadInput: this pool does not have the verifier or rewriter.
            PoolClosed: the pool is closed.
        """
        self._report()
        if isinstance(work, Judge):
            if work.verifier not in self._verifiers:
                raise unknown("verifier", work.verifier, self._verifiers)
            group = self._verifiers[work.verifier]
        elif isinstance(work, Rewrite):
            if work.rewriter not in self._rewriters:
                raise unknown("rewriter", work.rewriter, self._rewriters)
            group = self._rewriters[work.rewriter]
        else:
            group = self._generators
        future: Future[Result] = Future()
        with self._lock:
            if self._closed_reason is not None:
                raise PoolClosed(self._closed_reason)
            self._thread.post(partial(group.add, work, future))
        return future

    def workers(self) -> list[Ready]:
        """Return the actors that are ready now, generators first: name, host name and process id of each."""
        answer: Future[list[Ready]] = Future()
        with self._lock:
            if self._closed_reason is not None:
                return []
            self._thread.post(
                lambda: answer.set_result([ready for group in self._groups for ready in group.ready_workers()])
            )
        return answer.result()

    def close(self) -> None:
        """End the actors, and Ray itself if this pool started it. Unfinished work fails."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._closed_reason = self._closed_reason or "the pool is closed"
            self._thread.end()
        self._thread.join()
        self._connection.close()
        atexit.unregister(self.close)
        self._report()

    def _break(self, reason: str) -> None:
        with self._lock:
            self._closed_reason = reason

    def _report(self) -> None:
        """Report the notices that the actors' replies brought, each once, in the thread of the caller."""
        if self._notices.empty():  # as at nearly every call of submit
            return
        with self._lock:
            new = dict.fromkeys(text for text in drained(self._notices) if text not in self._noticed)
            self._noticed |= new.keys()
        for text in new:
            notice(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _of_verifier(text: str) -> Sequence[str]:
    """Return the requirements of a verifier and of those that it combines.

    Raises:
        BadInput: a name is unknown.
    """
    parts = [VerifierSpec.parse(part).name for part in registry.verifier_parts(text)]
    return tuple(dict.fromkeys(need for name in parts for need in _declared("verifier", name, registry.verifiers())))


def _declared(kind: str, name: str, known: Mapping[str, Entry]) -> Sequence[str]:
    """Return the requirements that a verifier's or rewriter's class declares.

    Raises:
        BadInput: the name is unknown.
    """
    target = target_of(kind, name, known)
    try:
        return tuple(getattr(pkgutil.resolve_name(target), "requirements", ()))
    except (ImportError, AttributeError):  # not importable here, but perhaps on the workers; the actor reports it
        return ()
