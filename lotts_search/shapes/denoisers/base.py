"""What a trainable denoiser of the shapes world is, and its training."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lotts_search.errors import BadInput
from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.denoisers.store import LatentStore

SCHEDULE: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""The noise levels of Stable Diffusion and SDXL."""
EMPTY_SHARE = 0.1
"""Share of the captions that are dropped, for classifier-free guidance."""


class Denoiser(nn.Module):
    """A denoiser with its text encoders, trained together.

    The first learns to paint what the second, pretrained by :func:`~lotts_search.shapes.denoisers.text.pretrain_text`, has read.

    Attributes:
        half_on_cpu: whether half precision makes its training faster on a CPU too.
    """

    half_on_cpu: ClassVar[bool] = True

    @abstractmethod
    def pretrain(self, folder: Path, device: str, describe: Callable[[str], None]) -> None:
        """Pretrain the text encoders; checkpoints go below ``folder``."""

    def start_from(self, folder: Path) -> None:
        """Begin from the weights of a trained model of the folder instead of from nothing.

        Raises:
            BadInput: this family cannot begin from such a model.
        """
        raise BadInput(f"{type(self).__name__} is trained from nothing, not from another model")

    def matrices(self) -> list[str]:
        """Names of the parameters that are trained with Muon instead of AdamW."""
        return []

    def settled(self) -> list[nn.Module]:
        """The parts that keep what they were taught before: training leaves them alone."""
        return []

    @abstractmethod
    def token_ids(self, captions: Iterable[str]) -> Tensor:
        """Token ids [N, …] of captions, of all tokenizers."""

    @abstractmethod
    def loss(self, latents: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
        """The loss on clean latents [N, C, H, W] under captions ``ids``; where ``empty`` [N] the caption is dropped."""

    @abstractmethod
    def save(self, out: Path, vae: AutoencoderKL) -> None:
        """Write the diffusers folder of safetensors."""


def spread(batch: int, device: torch.device) -> Tensor:
    """Stratified numbers [batch] in 0..1: the distribution of uniform ones, with less noise in the gradient."""
    return (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch


def noised(scheduler: DDPMScheduler, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents at stratified training timesteps, with the noise and the timesteps."""
    timesteps = (spread(len(latents), latents.device) * 1000).long()
    noise = torch.randn_like(latents)
    return scheduler.add_noise(latents, noise, timesteps), noise, timesteps


def train_denoiser(
    model: Denoiser,
    moments: npt.NDArray[np.float16],
    captions: list[str],
    folder: Path,
    *,
    scale: float,
    count: int,
    batch: int,
    lr: float,
    started: bool = False,
    minutes: float | None = None,
    device: str = "cpu",
    describe: Callable[[str], None] = print,
) -> None:
    """Train a denoiser and its text encoders on ``count`` images (or for ``minutes``); it ends with averaged weights.

    Args:
        moments, captions: of the different training images, see :mod:`lotts_search.shapes.denoisers.store`.
        folder: of the checkpoints.
        scale: the autoencoder's scaling factor.
        batch: images of one step.
        lr: peak learning rate.
        started: the model draws already: only images of the last stage are shown.
    """
    model.to(device)
    for part in model.settled():
        part.requires_grad_(False)
    store = LatentStore(moments, model.token_ids(captions), scale, device, started)
    steps, kind = max(1, count // batch), torch.device(device).type
    trainer = Trainer(
        model, folder, steps, lr, matrices=model.matrices(), ema=0.998, minutes=minutes, describe=describe
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(int(np.random.default_rng([19, step]).integers(2**31)))
        latents, ids = store.take(trainer.progress, batch)
        empty = torch.rand(batch, device=device) < EMPTY_SHARE
        with torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or model.half_on_cpu):
            value = model.loss(latents, ids, empty)
        return value, {"loss": float(value.detach())}

    trainer.run(loss)
    trainer.averaged()
    model.to("cpu")


def save_pipeline(pipeline: Any, out: Path) -> None:
    """Write a pipeline's folder with all weights in half precision. The text encoders' configs still say float32, so that
    they load as such: transformers goes by the config, diffusers loads in float32 whatever is stored."""
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in out.glob("*/*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halved, file, metadata={"format": "pt"})
    for config in out.glob("*/config.json"):
        values = json.loads(config.read_text())
        # Where the parts lay on the machine that trained them is nobody's business.
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")
