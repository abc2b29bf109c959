"""``shapes-sd``: a UNet2DConditionModel with v-prediction and one CLIP text encoder, as Stable Diffusion 2.1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as UNet
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from lotts_search.shapes.denoisers.base import SCHEDULE, Denoiser, noised, save_pipeline
from lotts_search.shapes.denoisers.text import new_text_encoder, new_tokenizer, pretrain_text, renumbered
from lotts_search.shapes.denoisers.vae import LATENT_CHANNELS

PREDICTION = {"prediction_type": "v_prediction"}
UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "layers_per_block": 1,
    "block_out_channels": (64, 128), "attention_head_dim": (2, 4), "norm_num_groups": 16,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}  # fmt: skip
"""The settings that the U-Nets of shapes-sd and shapes-sdxl share."""


class ShapesSD(Denoiser):
    """A U-Net with levels of 16x16 and 8x8, both with cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = new_tokenizer()
        self.text = new_text_encoder(self.tokenizer)
        self.unet = UNet(**UNET, cross_attention_dim=128)
        self.scheduler = DDPMScheduler(**SCHEDULE, **PREDICTION)

    def pretrain(self, folder: Path, device: str, describe: Callable[[str], None]) -> None:
        pretrain_text(self.text, self.tokenizer, folder / "text-state", device=device, describe=describe)

    def start_from(self, folder: Path) -> None:
        # The tokenizer of an earlier run may number its words differently.
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
        unet = UNet.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
        self.text.load_state_dict(renumbered(text.state_dict(), tokenizer, self.tokenizer))
        self.unet.load_state_dict(unet.state_dict())

    def loss(self, latents: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
        ids = torch.where(empty[:, None], self.token_ids([""]).to(ids.device), ids)
        noisy, noise, timesteps = noised(self.scheduler, latents)
        out = self.unet(noisy, timesteps, encoder_hidden_states=self.text(ids)[0]).sample
        return functional.mse_loss(out.float(), self.scheduler.get_velocity(latents, noise, timesteps))

    def save(self, out: Path, vae: AutoencoderKL) -> None:
        solver = {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "linspace"}
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.text,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULE, **PREDICTION, **solver),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        save_pipeline(pipeline, out)
