"""Bytes through the autoencoder and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lotts_search.shapes.world.render import to_uint8
from lotts_search.work.requests import Bytes


class RoundTrip:
    """Encodes images [N, 64, 64, 3] to the posterior's mean and decodes them again.

    Args:
        folder: a diffusers folder of an AutoencoderKL.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval().to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Bytes, *, wobble: float = 0.0, seed: int = 0) -> Bytes:
        """The decoded images; with ``wobble``, half of the latents first take Gaussian noise of up to that many of
        their standard deviations, as a sampler may leave it."""
        from lotts_search.shapes.denoisers.vae import to_tensor

        random = torch.Generator().manual_seed(seed)
        out = np.empty_like(images)
        for start in range(0, len(images), 32):
            z = self.vae.encode(to_tensor(images[start : start + 32], self.device)).latent_dist.mean
            if wobble:
                amount = (2 * torch.rand(len(z), 1, 1, 1, generator=random) - 1).clamp(min=0) * wobble
                z = z + (amount * torch.randn(z.shape, generator=random)).to(z) * z.std()
            decoded = self.vae.decode(z).sample.float().permute(0, 2, 3, 1)
            out[start : start + 32] = to_uint8(((decoded + 1) / 2).cpu().numpy())
        return out
