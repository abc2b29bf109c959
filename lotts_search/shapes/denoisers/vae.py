"""The autoencoder of the shapes models: an AutoencoderKL from 64x64 pixels to 16x16 latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.work.requests import Bytes

LATENT_CHANNELS = 8


def new_vae() -> AutoencoderKL:
    """Return an untrained autoencoder with eight latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def to_tensor(images: Bytes, device: torch.device | str = "cpu") -> Tensor:
    """Convert images [B, 64, 64, 3] uint8 to [B, 3, 64, 64] float32 in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train_vae(
    images: Bytes,
    folder: Path,
    *,
    count: int,
    batch: int = 32,
    lr: float = 1.5e-3,
    kl: float = 1e-4,
    device: str = "cpu",
    describe: Callable[[str], None] = print,
) -> AutoencoderKL:
    """Train an autoencoder on ``count`` images drawn from ``images`` [N, 64, 64, 3].

    The loss is L1 + MSE + half the L1 of the differences between neighbouring pixels, plus ``kl`` times the mean KL
    divergence per latent element. The inverse standard deviation of the latents becomes the ``scaling_factor``.
    """
    vae = new_vae().to(device)
    trainer = Trainer(vae, folder, count // batch, lr, ema=0.995, describe=describe)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([7, step])
        x = to_tensor(images[rng.integers(len(images), size=batch)], device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        reconstruction = functional.l1_loss(y, x) + functional.mse_loss(y, x)
        for a, b in zip(_edges(y), _edges(x), strict=True):
            reconstruction = reconstruction + 0.5 * functional.l1_loss(a, b)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        parts = {"reconstruction": float(reconstruction.detach()), "kl": float(divergence.detach())}
        return reconstruction + kl * divergence, parts

    trainer.run(loss)
    trained = trainer.averaged()
    assert isinstance(trained, AutoencoderKL)
    moments = encode_images(trained, images[:2000], device=device)
    mean, std = moments.float().chunk(2, dim=1)
    spread = (mean.var() + std.square().mean()).sqrt()
    trained.register_to_config(scaling_factor=round(float(1 / spread), 5))
    return trained


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Bytes, *, batch: int = 64, device: str = "cpu") -> Tensor:
    """Return posterior mean and standard deviation of each image [N, 2 * channels, 16, 16] in bfloat16, unscaled."""
    out = []
    for start in range(0, len(images), batch):
        x = to_tensor(images[start : start + batch], device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
        out.append(torch.cat([posterior.mean, posterior.std], dim=1).to("cpu", torch.bfloat16))
    return torch.cat(out)
