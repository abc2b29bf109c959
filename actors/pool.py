"""Runs work on Ray: N generator actors, one actor for each verifier and rewriter, behind the interface of
:class:`lotts_search.work.pool.Pool`."""

from __future__ import annotations

import atexit
import logging
import os
import pkgutil
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from lotts_search.actors.cluster import connect, environment
from lotts_search.actors.crew import Crew, Limits
from lotts_search.actors.generator import ENGINE, GeneratorActor
from lotts_search.actors.host import Ready
from lotts_search.actors.remote import RemoteWorker
from lotts_search.actors.rewriter import REWRITER, RewriterActor
from lotts_search.actors.verifier import SCORER, VerifierActor
from lotts_search.errors import BadInput, PoolClosed, unknown
from lotts_search.plugins import Entry
from lotts_search.registry import models
from lotts_search.registry import rewriters as known_rewriters
from lotts_search.registry import verifiers as known_verifiers
from lotts_search.work.model import ModelInfo
from lotts_search.work.requests import Generate, Result, Rewrite, Score, Work

TEND_S = 1.0
REWRITES = 64
"""Requests that a rewriter actor holds at once; its own threads take them from there."""


class RayPool:
    """A pool of Ray actors.

    Results are those of :class:`lotts_search.engine.local_pool.LocalPool` with the same ``threads`` and ``max_batch``, bit for
    bit on the same hardware, whatever the number of actors. Work of an actor that dies is tried again on another;
    ``Result.attempts`` and ``Result.usage.nfe_wasted`` say so, and the work is charged once.

    Args:
        model: registered name, folder or hub id.
        verifiers: registered names; each gets an actor, with an environment of its own if it has requirements.
        generators: generator actors, 1 or more.
        max_batch: most rows in one network call, and images in one scoring call.
        threads: torch threads, and Ray CPUs, of each actor.
        backbone_options: passed to :func:`lotts_search.registry.load_backbone`, e.g. ``{"device": "cuda"}``.
        address: see :func:`lotts_search.actors.cluster.connect`.
        gpus: GPUs of each generator; None means 1 where ``backbone_options["device"]`` is a CUDA device, else 0.
        verifier_gpus: GPUs of each verifier actor.
        requirements: pip requirements of verifiers, by name, beyond those that they declare themselves.
        limits: times and tries.
        ship_code: copy this package to the workers of a joined cluster.
        object_store_mb: shared memory of a Ray of our own.
        rewriters: settings of rewriters of prompts, by registered name; each gets an actor. What they read from the
            environment (``LOTTS_REWRITER_…``) is that of this process.
        rewriter_gpus: GPUs of each rewriter actor.
        engine: ``module:function`` of what a generator hosts, see :func:`lotts_search.actors.generator.make_engine`.
        scorer: the same for verifiers, see :func:`lotts_search.actors.verifier.make_scorer`.

    Attributes:
        info: of the model.

    Raises:
        BadInput, Failure: as raised by what an actor loads (a broken model folder, an unknown verifier), or when Ray
            cannot be reached. Nothing is left running then.
    """

    info: ModelInfo

    def __init__(
        self,
        model: str,
        verifiers: Sequence[str] = (),
        generators: int = 1,
        max_batch: int = 16,
        threads: int = 1,
        backbone_options: Mapping[str, Any] | None = None,
        address: str | None = None,
        *,
        gpus: float | None = None,
        verifier_gpus: float = 0,
        requirements: Mapping[str, Sequence[str]] | None = None,
        limits: Limits | None = None,
        ship_code: bool = False,
        object_store_mb: int = 256,
        rewriters: Mapping[str, Mapping[str, object]] | None = None,
        rewriter_gpus: float = 0,
        engine: str = ENGINE,
        scorer: str = SCORER,
    ) -> None:
        for name, number in {"generators": generators, "max_batch": max_batch, "threads": threads}.items():
            if number < 1:
                raise BadInput(f"{name} must be 1 or more, not {number}")
        options = dict(backbone_options or {})
        if gpus is None:
            gpus = 1 if str(options.get("device", "")).startswith("cuda") else 0
        # Workers run in another folder; a registered name goes before a folder of that name.
        where = model if model in models() or not Path(model).is_dir() else str(Path(model).resolve())
        names = list(dict.fromkeys(verifiers))
        writers = {name: dict(settings) for name, settings in (rewriters or {}).items()}
        known = {"verifier": known_verifiers(), "rewriter": known_rewriters()}
        needs = {name: _declared("verifier", name, known["verifier"]) for name in names if scorer == SCORER}
        needs |= {name: _declared("rewriter", name, known["rewriter"]) for name in writers}
        needs = {name: [*needs.get(name, ()), *(requirements or {}).get(name, ())] for name in (*names, *writers)}

        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._over: str | None = None
        self._lock = threading.Lock()
        needed = {
            "CPU": threads * (generators + len(names) + len(writers)),
            "GPU": gpus * generators + verifier_gpus * len(names) + rewriter_gpus * len(writers),
        }
        self._connection = connect(address, needed, object_store_mb=object_store_mb, ship_code=ship_code)
        limits = limits or Limits()

        def generator(number: int) -> RemoteWorker:
            return RemoteWorker(
                GeneratorActor,
                f"generator-{number}",
                (engine, where, options, max_batch, threads),
                {
                    "num_cpus": threads,
                    "num_gpus": gpus,
                    "scheduling_strategy": "SPREAD",
                    "runtime_env": environment(threads),
                },
            )

        def verifier(name: str, number: int) -> RemoteWorker:
            return RemoteWorker(
                VerifierActor,
                f"{name}-{number}",
                (scorer, name, max_batch, threads),
                {
                    "num_cpus": threads,
                    "num_gpus": verifier_gpus,
                    "runtime_env": environment(threads, needs[name]),
                },
            )

        environ = {name: value for name, value in os.environ.items() if name.startswith("LOTTS_REWRITER_")}

        def rewriter(name: str, number: int) -> RemoteWorker:
            return RemoteWorker(
                RewriterActor,
                f"{name}-{number}",
                (REWRITER, name, writers[name], environ, threads),
                {
                    "num_cpus": threads,
                    "num_gpus": rewriter_gpus,
                    "runtime_env": environment(threads, needs[name]),
                },
            )

        self._generators: Crew[Generate] = Crew("generator", generators, max_batch, generator, self._inbox.put, limits)
        self._verifiers: dict[str, Crew[Score]] = {
            name: Crew(f"verifier {name!r}", 1, max_batch, partial(verifier, name), self._inbox.put, limits)
            for name in names
        }
        self._rewriters: dict[str, Crew[Rewrite]] = {
            name: Crew(f"rewriter {name!r}", 1, REWRITES, partial(rewriter, name), self._inbox.put, limits)
            for name in writers
        }
        self._thread = threading.Thread(target=self._live, name="ray pool", daemon=True)
        atexit.register(self.close)
        self._thread.start()
        for crew in self._crews():
            self._inbox.put(crew.open)
        try:
            info = self._generators.ready.result().info
            self.info = replace(info, name=model) if info.name == where else info
            for crew in self._crews():
                crew.ready.result()
        except BaseException:
            self.close()
            raise

    def submit(self, work: Work) -> Future[Result]:
        """Ask for a piece of work; never blocks.

        Raises:
            BadInput: the verifier or rewriter is not in this pool.
            PoolClosed: the pool is closed.
        """
        if isinstance(work, Score) and work.verifier not in self._verifiers:
            raise unknown("verifier", work.verifier, self._verifiers)
        if isinstance(work, Rewrite) and work.rewriter not in self._rewriters:
            raise unknown("rewriter", work.rewriter, self._rewriters)
        future: Future[Result] = Future()
        with self._lock:
            if self._over is not None:
                raise PoolClosed(self._over)
            if isinstance(work, Score):
                self._inbox.put(partial(self._verifiers[work.verifier].add, work, future))
            elif isinstance(work, Rewrite):
                self._inbox.put(partial(self._rewriters[work.rewriter].add, work, future))
            else:
                self._inbox.put(partial(self._generators.add, work, future))
        return future

    def workers(self) -> list[Ready]:
        """The actors that are ready now, generators first: name, host name and process id of each."""
        answer: Future[list[Ready]] = Future()
        with self._lock:
            if self._over is not None:
                return []
            self._inbox.put(lambda: answer.set_result([ready for crew in self._crews() for ready in crew.present()]))
        return answer.result()

    def close(self) -> None:
        """End the actors, and Ray itself if this pool started it. Unfinished work fails."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._over = self._over or "the pool is closed"
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._connection.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _crews(self) -> list[Crew[Any]]:
        return cast("list[Crew[Any]]", [self._generators, *self._verifiers.values(), *self._rewriters.values()])

    def _live(self) -> None:
        """The one thread in which crews live: every answer of Ray and every new work passes through its inbox."""
        reason = "the pool was closed before this work was done"
        tended = time.monotonic()
        try:
            while (call := self._next()) is not None:
                call()
                if time.monotonic() - tended > TEND_S:
                    tended = time.monotonic()
                    for crew in self._crews():
                        crew.tend()
        except Exception as error:  # whoever waits must not wait forever for a fault of ours
            logging.getLogger(__name__).exception("the pool broke")
            reason = f"the pool broke: {type(error).__name__}: {error}"
            with self._lock:
                self._over = reason
        for crew in self._crews():
            crew.close(reason)

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._inbox.get(timeout=TEND_S)
        except queue.Empty:
            return _nothing


def _nothing() -> None:
    """What there is to do when nothing happened."""


def _declared(kind: str, name: str, known: Mapping[str, Entry]) -> Sequence[str]:
    """The requirements of a registered verifier's or rewriter's class.

    Raises:
        BadInput: there is none of that name.
    """
    target = known[name].target if name in known else name
    if ":" not in target:
        raise unknown(kind, name, known)
    try:
        return tuple(getattr(pkgutil.resolve_name(target), "requirements", ()))
    except (ImportError, AttributeError):  # not here, but perhaps on the workers: the actor tells
        return ()
