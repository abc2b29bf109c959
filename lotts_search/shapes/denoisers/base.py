"""The interface of a trainable denoiser of the shapes world, and its training."""

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
from transformers import CLIPTokenizer

from lotts_search.errors import BadInput
from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.denoisers.store import LatentStore
from lotts_search.shapes.denoisers.text import token_ids

SCHEDULE: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""The noise levels of Stable Diffusion and SDXL."""
EMPTY_SHARE = 0.1
"""Share of the captions that training drops, for classifier-free guidance."""


class Denoiser(nn.Module):
    """A denoiser with its text encoders, trained together after the text encoders have been pretrained.

    Attributes:
        half_on_cpu: whether half precision speeds up its training on a CPU.
        tokenizer: the tokenizer of its first text encoder.
    """

    half_on_cpu: ClassVar[bool] = True
    tokenizer: CLIPTokenizer

    @abstractmethod
    def pretrain(self, folder: Path, device: str, describe: Callable[[str], None]) -> None:
        """Pretrain the text encoders, with checkpoints below ``folder``."""

    def start_from(self, folder: Path) -> None:
        """Start from the weights of the trained model in ``folder``.

        Raises:
            BadInput: this family cannot start from another model.
        """
        raise BadInput(f"{type(self).__name__} is trained from scratch, not from another model")

    def matrices(self) -> list[str]:
        """Return the names of the parameters that Muon trains instead of AdamW."""
        return []

    def frozen(self) -> list[nn.Module]:
        """Return the pretrained parts that training does not change."""
        return []

    def token_ids(self, captions: Iterable[str]) -> Tensor:
        """Return the token ids [N, …] of captions, of all tokenizers."""
        return token_ids(self.tokenizer, captions)

    @abstractmethod
    def loss(self, latents: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
        """Return the loss on clean latents [N, C, H, W] for captions ``ids``, dropped where ``empty`` [N] is true."""

    @abstractmethod
    def save(self, out: Path, vae: AutoencoderKL) -> None:
        """Write the model as a diffusers folder with safetensors."""


def spread(batch: int, device: torch.device) -> Tensor:
    """Return stratified random numbers [batch] in 0..1: uniformly distributed, with less gradient noise."""
    return (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch


def noised(scheduler: DDPMScheduler, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy latents at stratified training timesteps, the noise and the timesteps."""
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
    """Train a denoiser and its text encoders in place; afterwards they have the averaged weights.

    Args:
        model: the denoiser.
        moments, captions: of the different training images, see :mod:`lotts_search.shapes.denoisers.store`.
        folder: folder of the checkpoints; the same call resumes an interrupted run.
        scale: scaling factor of the autoencoder.
        count: number of images to train on.
        batch: images per step.
        lr: peak learning rate.
        started: the model is already trained, so that only images of the last stage are used.
        minutes: train for this long instead of on ``count`` images.
        device: torch device.
        describe: called with lines of progress.
    """
    model.to(device)
    for part in model.frozen():
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
    """Write the folder of a pipeline with all weights in half precision.

    The configs of the text encoders keep float32, so that they load as such: transformers follows the config, diffusers
    loads in float32 in any case.
    """
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in out.glob("*/*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halved, file, metadata={"format": "pt"})
    for config in out.glob("*/config.json"):
        values = json.loads(config.read_text())
        # Do not publish paths of the machine that trained the model.
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2) + "\n")
