"""A pool in this process, without Ray: for notebooks, tests and a single machine."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Self

import torch

from lotts_search.backbones.base import Backbone
from lotts_search.engine.engine import Engine
from lotts_search.errors import Failure, PoolClosed, unknown
from lotts_search.rewriters.base import PromptRewriter
from lotts_search.rewriters.runner import RewriteRunner
from lotts_search.verifiers.base import Verifier
from lotts_search.verifiers.batcher import ScoreBatcher
from lotts_search.work.batch_sizes import ROWS, Batch
from lotts_search.work.pool import Checking
from lotts_search.work.requests import Judge, Result, Rewrite, Work


class LocalPool(Checking):
    """A :class:`~lotts_search.work.pool.Pool` that generates and scores on one background thread, and rewrites on
    others.

    Use it as a context manager or call :meth:`close`.

    Args:
        backbone: the model.
        verifiers: by the name in :data:`~lotts_search.work.requests.Judge` work.
        batch: network rows, and images of a verifier, in one call, or several such sizes, see :class:`~lotts_search.engine.engine.Engine`.
        threads: torch's threads, None = one for each CPU that this process may use.
        pad: fill calls up to ``batch``; with one size results do not depend on what else is running.
        rewriters: by the name in :class:`~lotts_search.work.requests.Rewrite`.
    """

    def __init__(
        self,
        backbone: Backbone,
        verifiers: dict[str, Verifier],
        batch: Batch = ROWS,
        threads: int | None = None,
        pad: bool = True,
        rewriters: Mapping[str, PromptRewriter] | None = None,
    ):
        self.info = backbone.info
        self.verifiers, self.rewriters = tuple(verifiers), tuple(rewriters or ())
        self._engine = Engine(backbone, batch, pad)
        self._scorers = {name: ScoreBatcher(verifier, batch, pad) for name, verifier in verifiers.items()}
        self._rewriters = {name: RewriteRunner(rewriter) for name, rewriter in (rewriters or {}).items()}
        self._threads = threads or len(os.sched_getaffinity(0))
        self._wake = threading.Event()
        self._closed = False
        self._open: set[Future[Result]] = set()
        self._thread = threading.Thread(target=self._run, name="lotts-search pool", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Future[Result]:
        """Request a piece of work; never blocks.

        Raises:
            BadInput: the verifier or rewriter is not in this pool.
            PoolClosed: the pool is closed.
        """
        if self._closed:
            raise PoolClosed("the pool is closed")
        if isinstance(work, Rewrite):
            if work.rewriter not in self._rewriters:
                raise unknown("rewriter", work.rewriter, self._rewriters)
            return self._rewriters[work.rewriter].submit(work)
        if isinstance(work, Judge):
            if work.verifier not in self._scorers:
                raise unknown("verifier", work.verifier, self._scorers)
            future = self._scorers[work.verifier].submit(work)
        else:
            future = self._engine.submit(work)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._wake.set()
        if self._closed:
            # Closed in the meantime: the thread may have ended without seeing this future.
            _fail(future, PoolClosed("the pool is closed"))
        return future

    def close(self) -> None:
        """Stop after the current operation, and close the verifiers that have a method ``close``; work that is not done
        fails."""
        self._closed = True
        self._wake.set()
        for scorer in self._scorers.values():  # a verifier in another process may be in the middle of a call
            getattr(scorer.verifier, "close", lambda: None)()
        for rewriter in self._rewriters.values():
            rewriter.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        # Torch's number of threads is a setting of each thread, so this thread must set it.
        torch.set_num_threads(self._threads)
        failure = PoolClosed("the pool was closed before this work was done")
        try:
            while not self._closed:
                self._wake.clear()
                # Scores first, because searches decide by them what to generate next.
                worked = False
                for scorer in self._scorers.values():
                    worked |= scorer.tick()
                if not (self._engine.tick() or worked or self._closed):
                    self._wake.wait()
        except BaseException as error:
            failure = PoolClosed(f"the pool broke: {type(error).__name__}: {error}")
            raise
        finally:
            self._closed = True
            self._engine.abort(failure)
            for future in list(self._open):
                _fail(future, failure)


def _fail(future: Future[Result], error: Failure) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
