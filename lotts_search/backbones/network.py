"""What all families share: the network's device, schedule and cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lotts_search.backbones.codec import Coded, LatentCodec
from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.backbones.flops import count_part
from lotts_search.backbones.flow import FlowTime
from lotts_search.backbones.model_folder import load_component
from lotts_search.work.model import ModelInfo, Schedule
from lotts_search.work.prices import Prices


class NetworkBackbone(Coded):
    """The part of a :class:`~lotts_search.backbones.base.Backbone` that does not depend on its text encoders."""

    network: Any
    """The denoiser: a diffusers model in evaluation mode."""
    info: ModelInfo
    _time: DiscreteTime | FlowTime
    _device: torch.device | None

    @property
    def device(self) -> torch.device:
        """The device of the latents and of the network's computation."""
        return self._device or torch.device(self.network.device)

    def schedule(self, steps: int) -> Schedule:
        return load_component(self.info.name, "scheduler", lambda: self._time.schedule(steps))

    def train_level(self, timestep: int) -> tuple[float, float]:
        return self._time.train_level(timestep)

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._time.to_x0(output, latents, alpha, sigma)


def prices_of(
    network: Any,
    codec: LatentCodec,
    size: tuple[int, int],
    call: Callable[[Any], object],
    least: Callable[[Any], object] | None = None,
) -> Prices:
    """Count what the operations of a model cost.

    Args:
        network: a diffusers model.
        size: latent height and width.
        call: calls a copy of the network with the inputs of one row; tensors that it creates are on the meta device.
        least: calls it so that no image token passes its blocks; None = the network cannot do that.
    """
    row = count_part(network, call)
    tokens = 0.0 if least is None else row - count_part(network, least)
    return replace(codec.prices(*size), row=row, tokens=tokens)
