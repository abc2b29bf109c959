"""Pass images through the autoencoder and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lotts_search.shapes.world.render import to_uint8
from lotts_search.work.requests import Bytes


class RoundTrip:
    """Encodes images [N, 64, 64, 3] to the mean of the posterior and decodes it.

    Args:
        folder: a diffusers folder of an AutoencoderKL.
        device: torch device.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval().to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Bytes, *, wobble: float = 0.0, seed: int = 0) -> Bytes:
        """Return the decoded images.

        With ``wobble``, half of the latents are first perturbed by Gaussian noise of up to this many of their standard
        deviations, such as a sampler may leave.
        """
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
