"""What the stages of an engine have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from lotts_search.backbones.base import Backbone
from lotts_search.engine.jobs import Jobs
from lotts_search.engine.transfer import Landings
from lotts_search.work.batch_sizes import BatchSizes


@dataclass(eq=False)
class Shared:
    """What the stages of one engine share.

    Attributes:
        backbone, device: the model and where it is.
        sizes: network rows that a call may have.
        pad: whether operations are filled up to a size.
        landings: what waits for the device.
        jobs: the open jobs.
        ticks: of the engine so far.
    """

    backbone: Backbone
    device: torch.device
    sizes: BatchSizes
    pad: bool
    landings: Landings
    jobs: Jobs
    ticks: int = 0

    @property
    def max_batch(self) -> int:
        """Most network rows in one call."""
        return self.sizes.most

    def filled(self, used: int, sizes: BatchSizes) -> int:
        """Return how many rows an operation of such sizes computes, of which ``used`` are of use."""
        return sizes.holding(used) if self.pad else used


class Stage(ABC):
    """One kind of batched operation, with the queue of the jobs that wait for it. Jobs enter by ``add``."""

    def __init__(self, shared: Shared):
        self.shared = shared
        self.backbone, self.device, self.jobs = shared.backbone, shared.device, shared.jobs

    @abstractmethod
    def tick(self) -> bool:
        """Do one operation; False when there is nothing to do."""

    @abstractmethod
    def discard(self, gone: set[int]) -> None:
        """Forget the jobs with these ``id``s, which were cancelled."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all jobs."""
