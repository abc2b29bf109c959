"""What surrounds the masks of refinements that run together, slot by slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lotts_search.engine.segments import Trajectory, background_noise
from lotts_search.engine.transfer import upload


class Backgrounds:
    """The backgrounds of trajectories in slots; allocated for the first refinement.

    Args:
        buffer: makes a buffer [slots, C, H, W] on the device.
        device: where it is.
    """

    def __init__(self, buffer: Callable[[], Tensor], device: torch.device):
        self._new, self._device = buffer, device
        self._origin = torch.empty(0)
        self._outside = torch.empty(0)
        self._keep = torch.empty(0)

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """All buffers; empty ones before the first refinement."""
        return self._origin, self._outside, self._keep

    def load(self, first: int, members: Sequence[Trajectory]) -> None:
        """Fill the slots from ``first`` on with the backgrounds of ``members``."""
        slots = slice(first, first + len(members))
        regions = [member.state.region for member in members]
        if all(region is None for region in regions):
            if len(self._keep):
                self._keep[slots] = False
            return
        if not len(self._keep):
            self._origin, self._outside = self._new(), self._new()
            self._keep = self._new()[:, :1] > 0
        zero = np.zeros(self._origin.shape[1:], np.float32)
        keep = [zero[0] > 0 if region is None else ~region.mask for region in regions]
        origin = [zero if region is None else region.origin for region in regions]
        outside = [
            background_noise(member.search_seed, region, 0) if region and region.background == "fixed" else zero
            for member, region in zip(members, regions, strict=True)
        ]
        self._keep[slots] = upload(np.stack(keep)[:, None], self._device)
        self._origin[slots] = upload(np.stack(origin), self._device)
        self._outside[slots] = upload(np.stack(outside), self._device)

    def renew(self, slots: Sequence[int], noise: Tensor) -> None:
        """Replace the background noise of slots."""
        self._outside[upload(np.array(slots), self._device)] = noise

    def inside(self, change: Tensor, slots: slice) -> Tensor:
        """Return a map [B, H, W] with zeros outside the masks."""
        return change.masked_fill(self._keep[slots, 0], 0) if len(self._keep) else change

    def fill(self, x0: Tensor, previous: Tensor, slots: slice) -> Tensor:
        """Return x0 predictions [B, C, H, W] with the previous ones outside the masks, the solver's history when these end."""
        return torch.where(self._keep[slots], previous, x0)

    def cover(self, latents: Tensor, slots: slice, masked: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return latents [B, C, H, W] with the noised background outside the masks, where ``masked``."""
        background = alpha * self._origin[slots] + sigma * self._outside[slots]
        return torch.where(self._keep[slots] & masked, background, latents)
