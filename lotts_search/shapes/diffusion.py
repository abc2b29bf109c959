"""Training of the shapes-sd denoiser: a UNet2DConditionModel with v-prediction, its text encoder trained jointly.

Pictures are rendered and encoded as training goes and their latents are kept in a file, so that each is paid for
once; when the file is full, training goes over it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from lotts_search.shapes.data import DAMAGE, MILD_DAMAGE, example, to_uint8
from lotts_search.shapes.text import TEXT_LENGTH, token_ids
from lotts_search.shapes.training import Trainer
from lotts_search.shapes.vae import LATENT_CHANNELS, encode_pictures

SCHEDULE: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
EMPTY_SHARE = 0.1
"""Share of the captions that are dropped, for classifier-free guidance."""


@dataclass(frozen=True)
class Stage:
    """A stage of training: up to which share of it, range of objects a scene, damage in good and bad pictures."""

    until: float
    objects: tuple[int, int]
    damage: tuple[float, float] = MILD_DAMAGE


STAGES: tuple[Stage, ...] = (
    Stage(0.06, (1, 3)),
    Stage(0.15, (3, 6)),
    Stage(0.675, (6, 9)),
    Stage(1.0, (6, 9), DAMAGE),
)
"""The growing number of objects, then the growing damage: objects are learned faster where most of them are whole."""


def new_unet() -> UNet2DConditionModel:
    """An untrained denoiser: 16x16 and 8x8, cross-attention at both."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
    )


class LatentStore:
    """Latents and captions of training pictures, made on first use and kept on disk.

    Entry i belongs to batch ``i // batch`` of training, so what a step sees does not depend on when it runs.
    """

    def __init__(
        self, folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, capacity: int, steps: int, batch: int,
        device: str = "cpu",
    ):  # fmt: skip
        self.vae, self.tokenizer, self.steps, self.batch, self.device = vae, tokenizer, steps, batch, device
        self.batches = max(1, capacity // batch)
        folder.mkdir(parents=True, exist_ok=True)
        shape = (self.batches * batch, 2 * LATENT_CHANNELS, 16, 16)
        mode = "r+" if (folder / "latents.f16").exists() else "w+"
        self.latents = np.memmap(folder / "latents.f16", np.float16, mode, shape=shape)  # type: ignore[call-overload]
        self.ids = np.memmap(folder / "ids.i16", np.int16, mode, shape=(shape[0], TEXT_LENGTH))  # type: ignore[call-overload]
        self.count_file = folder / "count.json"
        self.filled = json.loads(self.count_file.read_text()) if self.count_file.exists() else 0

    def _make(self, index: int) -> None:
        done = index / self.steps
        stage = next(s for s in STAGES if done < s.until)
        rng = np.random.default_rng([17, index])
        examples = [example(rng, objects=stage.objects, damage=stage.damage) for _ in range(self.batch)]
        pictures = np.stack([to_uint8(e.render.image) for e in examples])
        rows = slice(index * self.batch, (index + 1) * self.batch)
        self.latents[rows] = encode_pictures(self.vae, pictures, device=self.device).float().numpy()
        self.ids[rows] = token_ids(self.tokenizer, [e.caption for e in examples]).numpy()
        self.filled = index + 1
        if self.filled % 50 == 0 or self.filled == self.batches:
            self.latents.flush()
            self.ids.flush()
            self.count_file.write_text(json.dumps(self.filled))

    def take(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Scaled latents [batch, C, 16, 16], sampled from the posterior, and token ids of training step ``step``."""
        if step < self.batches:
            while self.filled <= step:
                self._make(self.filled)
            index = np.arange(step * self.batch, (step + 1) * self.batch)
        else:
            first = int(STAGES[-2].until * self.steps)
            index = np.sort(rng.integers(first * self.batch, self.batches * self.batch, size=self.batch))
        mean, std = torch.from_numpy(self.latents[index].astype(np.float32)).to(self.device).chunk(2, dim=1)
        latents = (mean + std * torch.randn_like(std)) * self.vae.config.scaling_factor
        return latents, torch.from_numpy(self.ids[index].astype(np.int64)).to(self.device)


class _Pair(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = self.unet(latents, timesteps, encoder_hidden_states=self.text(ids)[0]).sample
        return out


def train_unet(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    folder: Path,
    *,
    count: int,
    capacity: int = 200_000,
    batch: int = 32,
    lr: float = 1.2e-3,
    device: str = "cpu",
    describe: Callable[[str], None] = print,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train the denoiser and the text encoder on ``count`` pictures, of which ``capacity`` are different.

    v-prediction with uniform timesteps; ``EMPTY_SHARE`` of the captions are dropped. Returns the averaged networks.
    """
    scheduler = DDPMScheduler(**SCHEDULE)
    pair = _Pair(new_unet(), text).to(device)
    # Plain attention trains faster than the fused kernel at these sizes on a CPU.
    pair.unet.set_attn_processor(AttnProcessor())
    steps = count // batch
    store = LatentStore(folder / "latents", vae.to(device), tokenizer, min(capacity, count), steps, batch, device)
    trainer = Trainer(pair, folder, steps, lr, ema=0.998, describe=describe)
    empty = token_ids(tokenizer, [""]).to(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([19, step])
        torch.manual_seed(int(rng.integers(2**31)))
        latents, ids = store.take(step, rng)
        dropped = torch.rand(batch, device=device) < EMPTY_SHARE
        ids = torch.where(dropped[:, None], empty, ids)
        # Stratified timesteps: the same distribution as uniform ones, with less noise in the gradient.
        timesteps = ((torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch * 1000).long()
        noise = torch.randn_like(latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            out = pair(noisy, timesteps, ids)
        value = functional.mse_loss(out.float(), scheduler.get_velocity(latents, noise, timesteps))
        return value, {"loss": float(value.detach())}

    trainer.run(loss)
    trained = trainer.averaged()
    assert isinstance(trained, _Pair)
    return trained.unet, trained.text
