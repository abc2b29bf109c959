"""The model as the engine sees it. To add a family, write one file that implements :class:`Backbone`, and any of the
optional abilities below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from lotts_search.errors import Failure
from lotts_search.work.model import ModelInfo, Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Backbone(Protocol):
    """A diffusion model in torch. Rows of one call may have different prompts and timesteps.

    Optional abilities are protocols of their own: :class:`Placed`, :class:`Offloads`, :class:`ReadsText`,
    :class:`Previews`, :class:`DecodesOnDevice`, :class:`EmbedsGuidance`, and for masks by attention
    :class:`~lotts_search.backbones.attention.base.ReadsAttention` and
    :class:`~lotts_search.backbones.attention.base.ReadsConcepts`.
    """

    info: ModelInfo

    def schedule(self, steps: int) -> Schedule:
        """Return the schedule of ``steps`` steps."""

    def train_level(self, timestep: int) -> tuple[float, float]:
        """Return (alpha, sigma) at a training timestep 0..999."""

    def encode_prompts(self, prompts: list[str]) -> list[Any]:
        """Return one conditioning object per prompt; :meth:`stack` batches them. The engine caches the answers."""

    def stack(self, conditionings: list[Any]) -> Any:
        """Return the conditioning of one call from those of its rows."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call the network once: [B, C, H, W] fp32 latents, [B] timesteps → raw output [B, C, H, W] fp32."""

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the x0 prediction [B, C, H, W] of a raw output; alpha and sigma are [B, 1, 1, 1]."""

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Return the images [B, h, w, 3] of clean latents [B, C, H, W].

        Raises:
            Failure: the decoder gave NaN or infinite values.
        """

    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return the clean latents [B, C, H, W] of images [B, h, w, 3], the posterior's mean."""


@runtime_checkable
class Placed(Protocol):
    """The model is on a device; a backbone without this attribute is on the CPU."""

    @property
    def device(self) -> torch.device: ...


@runtime_checkable
class Offloads(Protocol):
    """The weights may leave the device between calls, or be on several devices."""

    @property
    def offloaded(self) -> bool:
        """Whether they do."""


@runtime_checkable
class ReadsText(Protocol):
    """The tokenizers of the text encoders are known, so that it can be reported what they cut off."""

    def readers(self) -> list[tuple[Any, int]]:
        """Return the tokenizer of each text encoder and the most tokens that it reads, special ones included."""


@runtime_checkable
class Previews(Protocol):
    """There is a cheaper decoder for x0 predictions of unfinished candidates."""

    def preview(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Return approximate images [B, h, w, 3] of latents [B, C, H, W]."""


@runtime_checkable
class DecodesOnDevice(Protocol):
    """Decoded images can stay on the device, so that the host need not wait for them."""

    def decode_tensor(self, latents: Tensor, preview: bool = False) -> tuple[Tensor, Tensor]:
        """Return the images of ``decode``, or of ``preview``, as a uint8 tensor [B, h, w, 3] on the device, and for each
        [B] whether the decoder's values were finite."""


@runtime_checkable
class EmbedsGuidance(Protocol):
    """The network takes the guidance weight as an input (``info.embedded_guidance``)."""

    def with_guidance(self, conditioning: Any, guidance: float) -> Any:
        """Return the conditioning of a row with this guidance weight."""


def broken_image(part: str = "decoder") -> Failure:
    """Return the error for an image whose decoder or encoder gave NaN or infinite values."""
    return Failure(
        f"the {part} gave NaN or infinite values: in float16 an autoencoder may overflow; load the model with "
        "dtype bfloat16 or float32"
    )


def embed_guidance(backbone: Backbone, conditioning: Any, guidance: float) -> Any:
    """Return a row's conditioning with its guidance weight, or unchanged where the network does not take one."""
    if not backbone.info.embedded_guidance:
        return conditioning
    if not isinstance(backbone, EmbedsGuidance):
        raise Failure(f"{backbone.info.name} has embedded guidance, but its backbone has no method with_guidance")
    return backbone.with_guidance(conditioning, guidance)


def device_of(backbone: Backbone) -> torch.device:
    """Return the device of the model."""
    import torch

    return torch.device(backbone.device if isinstance(backbone, Placed) else "cpu")


def stays_put(backbone: Backbone) -> bool:
    """Whether all weights stay on the device between calls."""
    return not (isinstance(backbone, Offloads) and backbone.offloaded)
