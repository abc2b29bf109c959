"""What the stages of an engine have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from lotts_search.backbones.base import Backbone
from lotts_search.engine.jobs import Jobs
from lotts_search.engine.transfer import Landings


@dataclass(eq=False)
class Shared:
    """What the stages of one engine share.

    Attributes:
        backbone, device: the model and where it is.
        max_batch: most network rows in one call.
        pad: whether every operation has a fixed size.
        landings: what waits for the device.
        jobs: the open jobs.
        ticks: of the engine so far.
    """

    backbone: Backbone
    device: torch.device
    max_batch: int
    pad: bool
    landings: Landings
    jobs: Jobs
    ticks: int = 0


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
