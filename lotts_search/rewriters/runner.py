"""Run a rewriter in separate threads, so that a slow reply blocks no model and a bad one fails no search."""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from lotts_search.errors import PoolClosed
from lotts_search.rewriters.base import PromptRewriter, check_rewriter
from lotts_search.work.requests import Result, Rewrite, Usage

log = logging.getLogger(__name__)
LONGEST = 4000
"""Maximum length of a revised prompt in characters; longer ones are rejected."""


@dataclass(eq=False)
class _PendingRewrite:
    work: Rewrite
    future: Future[Result]
    submitted: float = field(default_factory=time.time)
    started: float = 0.0


class RewriteRunner:
    """Collect requests for one rewriter and answer them in threads, up to ``batch`` per call.

    Every request is answered: if the rewriter raises, is late or writes too few prompts, the original prompt replaces
    the missing ones, ``usage.fallbacks`` counts them and ``note`` says why. Surplus prompts are dropped.

    Args:
        rewriter: the rewriter.

    Raises:
        BadInput: its ``batch``, ``parallel`` or ``timeout`` is not above 0.
    """

    def __init__(self, rewriter: PromptRewriter):
        check_rewriter(rewriter)
        self.rewriter = rewriter
        self._waiting: deque[_PendingRewrite] = deque()
        self._wake = threading.Condition()
        self._open: set[Future[Result]] = set()
        self._closed = False
        for _ in range(rewriter.parallel):
            self._start_thread()

    def submit(self, work: Rewrite) -> Future[Result]:
        """Queue a request; never blocks."""
        future: Future[Result] = Future()
        with self._wake:
            if self._closed:
                raise PoolClosed("the pool is closed")
            self._open.add(future)
            self._waiting.append(_PendingRewrite(work, future))
            self._wake.notify()
        future.add_done_callback(self._open.discard)
        return future

    def tick(self) -> bool:
        """Return False: the rewriter's threads do all the work (see :class:`lotts_search.actors.engine_thread.Tickable`)."""
        return False

    def close(self) -> None:
        """Fail the open requests and accept no more; does not wait for running calls."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for future in list(self._open):
            with contextlib.suppress(InvalidStateError):
                future.set_exception(PoolClosed("the pool was closed before this work was done"))

    def _start_thread(self) -> None:
        threading.Thread(target=self._serve, name="lotts-search rewriter", daemon=True).start()

    def _serve(self) -> None:
        """Answer requests until closed. A thread whose call times out is replaced at once and exits when the call returns."""
        while batch := self._take():
            replaced = threading.Event()
            late = threading.Timer(self.rewriter.timeout, self._too_late, [batch, replaced])
            late.daemon = True
            late.start()
            self._answer(batch)
            late.cancel()
            if replaced.is_set():
                return

    def _take(self) -> list[_PendingRewrite]:
        """Wait for the requests of the next call; return none once closed."""
        batch: list[_PendingRewrite] = []
        with self._wake:
            while not batch:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                while self._waiting and len(batch) < self.rewriter.batch:
                    item = self._waiting.popleft()
                    if item.future.set_running_or_notify_cancel():
                        batch.append(item)
        return batch

    def _answer(self, batch: list[_PendingRewrite]) -> None:
        for item in batch:
            item.started = time.time()
        clock = time.perf_counter()
        try:
            answers = list(self.rewriter.rewrite([item.work for item in batch]))
            if len(answers) != len(batch):
                raise ValueError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:
            if len(batch) > 1:  # ask one by one: only the faulty one falls back
                for item in batch:
                    if not item.future.done():
                        self._answer([item])
                return
            _settle(batch[0], (), f"{type(error).__name__}: {error}", time.perf_counter() - clock)
            return
        for item, prompts in zip(batch, answers, strict=True):
            _settle(item, prompts, "the rewriter wrote too few prompts", (time.perf_counter() - clock) / len(batch))

    def _too_late(self, batch: list[_PendingRewrite], replaced: threading.Event) -> None:
        replaced.set()
        self._start_thread()
        for item in batch:
            _settle(item, (), f"no answer within {self.rewriter.timeout:g} s", self.rewriter.timeout)


def _settle(item: _PendingRewrite, prompts: Sequence[str], problem: str, seconds: float) -> None:
    """Answer a request; the original prompt replaces missing ones."""
    work = item.work
    good = [prompt.strip() for prompt in prompts if isinstance(prompt, str) and 0 < len(prompt.strip()) <= LONGEST]
    good = good[: work.count]
    missing = work.count - len(good)
    if missing:
        log.warning(
            "%s: using the original prompt in place of %d of %d: %s", work.rewriter, missing, work.count, problem
        )
    result = Result(
        Usage(rewrites=1, fallbacks=missing, device_s=seconds),
        prompts=(*good, *[work.prompt] * missing),
        note=problem if missing else "",
        queue_s=max(0.0, item.started - item.submitted),
        started=item.started or item.submitted,
        finished=time.time(),
        node=platform.node(),
    )
    with contextlib.suppress(InvalidStateError):  # timed out, or closed meanwhile
        item.future.set_result(result)
