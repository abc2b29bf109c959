"""From images to latents and back: a diffusers autoencoder with its scaling, as every family uses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lotts_search.backbones.base import broken_image
from lotts_search.backbones.flops import count_part
from lotts_search.work.prices import Prices


class LatentCodec:
    """Decodes latents at the diffusion model's scale to images, and encodes images.

    Args:
        vae: AutoencoderKL; ``scaling_factor``, ``shift_factor``, ``latents_mean`` and ``latents_std`` are used as far
            as its config has them.
        device: of images and latents, None = that of the autoencoder.
        tiny: an AutoencoderTiny for previews, if there is one.

    Attributes:
        channels: of the latents.
        factor: pixels per latent cell, along a side.
    """

    def __init__(self, vae: Any, device: torch.device | None = None, tiny: Any = None):
        self.vae, self.tiny = vae, tiny
        self._device = device
        self.channels = int(vae.config["latent_channels"])
        self.factor = int(2 ** (len(vae.config["block_out_channels"]) - 1))

    @property
    def device(self) -> torch.device:
        return self._device or torch.device(self.vae.device)

    def _statistics(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return shift and scale; ``(latent - shift) * scale`` brings the autoencoder's latents to the model's scale."""
        config, scale = self.vae.config, self.vae.config["scaling_factor"]
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            means, stds = (torch.tensor(values, device=like.device).view(1, -1, 1, 1) for values in (mean, std))
            return means, scale / stds
        return config.get("shift_factor") or 0.0, scale

    def prices(self, height: int, width: int) -> Prices:
        """Count what it costs to decode and encode images of latents of this size."""

        def decode(part: Any) -> object:
            return part.decode(torch.empty(1, self.channels, height, width))

        def encode(part: Any) -> object:
            return part.encode(torch.empty(1, 3, height * self.factor, width * self.factor))

        whole = count_part(self.vae, decode)
        preview = whole if self.tiny is None else count_part(self.tiny, decode)
        return Prices(decode=whole, preview=preview, encode=count_part(self.vae, encode))

    @torch.inference_mode()
    def decode_tensor(self, latents: Tensor, preview: bool = False) -> tuple[Tensor, Tensor]:
        """Return the images [B, h, w, 3] of clean latents [B, C, H, W], uint8, and for each [B] whether the decoder's
        values were finite, both on the device, without waiting for it.

        Args:
            preview: use the tiny decoder if there is one, for x0 predictions of unfinished candidates.
        """
        if preview and self.tiny is not None:
            # A tiny autoencoder is trained on latents at the diffusion model's scale.
            latents = latents / self.tiny.config["scaling_factor"] + self.tiny.config["shift_factor"]
            return _images(self.tiny.decode(latents.to(_dtype(self.tiny)), return_dict=False)[0])
        shift, scale = self._statistics(latents)
        latents = latents / scale + shift
        return _images(self.vae.decode(latents.to(_dtype(self.vae)), return_dict=False)[0])

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Return the images [B, h, w, 3] of clean latents [B, C, H, W].

        Raises:
            Failure: the decoder gave NaN or infinite values.
        """
        return self._finite(*self.decode_tensor(latents))

    def preview(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Decode x0 predictions of unfinished candidates, with the tiny decoder if there is one.

        Raises:
            Failure: the decoder gave NaN or infinite values.
        """
        return self._finite(*self.decode_tensor(latents, preview=True))

    def _finite(self, images: Tensor, finite: Tensor) -> npt.NDArray[np.uint8]:
        if not finite.all():
            raise broken_image()
        return images.cpu().numpy()

    @torch.inference_mode()
    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return the clean latents [B, C, H, W] of images [B, h, w, 3]: the posterior's mean."""
        values = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        posterior = self.vae.encode((values.float() / 127.5 - 1).to(self.vae.dtype)).latent_dist
        mean: Tensor = posterior.mean.float()
        shift, scale = self._statistics(mean)
        return (mean - shift) * scale


def _dtype(module: Any) -> torch.dtype:
    """Return the dtype of the first weight; the module's ``dtype`` property would search all of them."""
    dtype: torch.dtype = next(module.parameters()).dtype
    return dtype


def _images(values: Tensor) -> tuple[Tensor, Tensor]:
    # A NaN or an infinity anywhere makes the sum NaN or infinite.
    finite = values.float().flatten(1).sum(1).isfinite()
    images = (values.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous(), finite


class Coded:
    """The part of a :class:`~lotts_search.backbones.base.Backbone` that a codec provides, with the abilities
    :class:`~lotts_search.backbones.base.Previews`, :class:`~lotts_search.backbones.base.DecodesOnDevice` and
    :class:`~lotts_search.backbones.base.Offloads`."""

    codec: LatentCodec

    @property
    def offloaded(self) -> bool:
        """Whether accelerate keeps the weights of a part on the CPU between calls, or several devices hold them."""
        parts = [part for part in vars(self).values() if isinstance(part, nn.Module)]
        devices = {weight.device for part in parts for weight in part.parameters()}
        return len(devices) > 1 or any(hasattr(part, "_hf_hook") for part in parts)

    def decode_tensor(self, latents: Tensor, preview: bool = False) -> tuple[Tensor, Tensor]:
        return self.codec.decode_tensor(latents, preview)

    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        return self.codec.decode(latents)

    def preview(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        return self.codec.preview(latents)

    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        return self.codec.encode(images)
