"""What a model looks like to the engine and to a search. Adding a family means one file that implements
:class:`Backbone`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from lotts_search.work.model import ModelInfo, Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Backbone(Protocol):
    """A diffusion model behind one interface (torch). Rows of one call may have different prompts and timesteps.

    A backbone may also have ``preview``, a cheaper ``decode`` for x0 predictions of unfinished candidates, and, so that
    nothing waits for a CUDA device, ``decode_tensor(latents, preview)``: what ``decode`` and ``preview`` give as a tensor on
    the device.
    """

    info: ModelInfo

    def schedule(self, steps: int) -> Schedule:
        """The schedule of ``steps`` steps."""

    def train_level(self, timestep: int) -> tuple[float, float]:
        """(alpha, sigma) at a training timestep 0..999."""

    def encode_prompts(self, prompts: list[str]) -> list[Any]:
        """One conditioning object a prompt; the engine stacks them with :meth:`stack`. Batched; not cached here."""

    def stack(self, conditionings: list[Any]) -> Any:
        """Conditionings of one call, one a row."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """One network call: [B, C, H, W] fp32 latents, [B] timesteps → raw output [B, C, H, W] fp32."""

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The x0 prediction from raw output; alpha and sigma are [B, 1, 1, 1]."""

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """[B, C, H, W] clean latents → [B, h, w, 3] images."""

    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """[B, h, w, 3] images → [B, C, H, W] clean latents (the posterior's mean)."""


def tell(backbone: Backbone, conditioning: Any, guidance: float) -> Any:
    """A row's conditioning with its guidance weight, for networks that are told it; for others as it is."""
    if not backbone.info.embedded_guidance:
        return conditioning
    return cast(Any, backbone).with_guidance(conditioning, guidance)


def device_of(backbone: Backbone) -> torch.device:
    """Where the model is: its ``device`` attribute, or the CPU for a backbone that has none."""
    import torch

    return torch.device(getattr(backbone, "device", "cpu"))


def stays_put(backbone: Backbone) -> bool:
    """Whether the model's weights stay where they are: not those of a part that accelerate offloads."""
    return not any(hasattr(part, "_hf_hook") for part in getattr(backbone, "__dict__", {}).values())
