"""What all families share: the network's device, schedule and cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lotts_search.backbones.codec import Coded
from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.backbones.flow import FlowTime
from lotts_search.work.model import Schedule


class NetworkBackbone(Coded):
    """The part of a :class:`~lotts_search.backbones.base.Backbone` that does not depend on its text encoders."""

    network: Any
    """The denoiser: a diffusers model in evaluation mode."""
    _time: DiscreteTime | FlowTime
    _device: torch.device | None

    @property
    def device(self) -> torch.device:
        """The device of the latents and of the network's computation."""
        return self._device or torch.device(self.network.device)

    def schedule(self, steps: int) -> Schedule:
        return self._time.schedule(steps)

    def train_level(self, timestep: int) -> tuple[float, float]:
        return self._time.train_level(timestep)

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._time.to_x0(output, latents, alpha, sigma)


def flops_per_row(network: Any, call: Callable[[Any], object]) -> float:
    """Count the floating-point operations of one network row on a copy of the network without weights.

    Args:
        network: a diffusers model.
        call: calls the copy with the inputs of one row; tensors that it creates are on the meta device.
    """
    with torch.device("meta"):
        copy = type(network).from_config(dict(network.config))
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            call(copy)
    return float(counter.get_total_flops())
