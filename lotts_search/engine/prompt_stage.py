"""Prompts: encoded in batches, cached, and joined to the jobs that need them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lotts_search.backbones.base import embed_guidance
from lotts_search.engine.jobs import Job, Prompted
from lotts_search.engine.stage import Shared, Stage

TEXT_BATCH = 4
"""Most prompts in one text-encoder call."""


@dataclass(eq=False)
class _Unread:
    """A job some of whose prompts are not encoded yet, and what follows once they are."""

    job: Job[Prompted]
    then: Callable[[], None]

    def missing(self) -> list[str]:
        return [prompt for prompt, value in self.job.conditioning.items() if value is None]


class PromptStage(Stage):
    """Encodes prompts.

    Args:
        keep: how many encoded prompts are cached.
    """

    def __init__(self, shared: Shared, keep: int):
        super().__init__(shared)
        self._keep, self._sizes = max(keep, TEXT_BATCH), shared.sizes.up_to(TEXT_BATCH)
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._unread: list[_Unread] = []

    def add(self, job: Job[Prompted], prompts: list[str], then: Callable[[], None]) -> None:
        """Encode the prompts of a job, then call ``then``, which passes it to its next stage."""
        job.conditioning = dict.fromkeys(prompts)
        self._unread.append(_Unread(job, then))
        self._release()

    def tick(self) -> bool:
        wanted = dict.fromkeys(prompt for unread in self._unread for prompt in unread.missing())
        if not wanted:
            return False
        failed = self.jobs.isolate(list(wanted)[:TEXT_BATCH], self._encode, self._jobs_of)
        if failed:
            self._unread = [item for item in self._unread if item.job.conditioning.keys().isdisjoint(failed)]
        self._release()
        while len(self._known) > self._keep:
            self._known.popitem(last=False)
        return True

    def discard(self, gone: set[int]) -> None:
        self._unread = [item for item in self._unread if id(item.job) not in gone]

    def clear(self) -> None:
        self._unread.clear()

    def _encode(self, prompts: list[str]) -> None:
        padding = [""] * (self.shared.filled(len(prompts), self._sizes) - len(prompts))
        encoded = self.backbone.encode_prompts(prompts + padding)
        self._known.update(zip(prompts, encoded, strict=False))

    def _jobs_of(self, prompt: str) -> list[Job[Prompted]]:
        return [item.job for item in self._unread if prompt in item.job.conditioning]

    def _release(self) -> None:
        """Pass on the jobs whose prompts are all encoded."""
        still: list[_Unread] = []
        for item in self._unread:
            job = item.job
            for prompt in item.missing():
                if prompt in self._known:
                    self._known.move_to_end(prompt)
                    weight = job.work.sampling.guidance
                    job.conditioning[prompt] = embed_guidance(self.backbone, self._known[prompt], weight)
            if item.missing():
                still.append(item)
            else:
                item.then()
        self._unread = still
