"""``shapes-sdxl``: a U-Net with two text encoders, pooled embedding and time ids as in SDXL; v-prediction."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lotts_search.shapes.denoisers.base import SCHEDULE, Denoiser, noised, save_pipeline
from lotts_search.shapes.denoisers.data import example
from lotts_search.shapes.denoisers.sd import PREDICTION, UNET, ShapesSD
from lotts_search.shapes.denoisers.text import clip_config, new_text_encoder, new_tokenizer, pretrain_text
from lotts_search.shapes.world.render import SIZE

WIDTH, WIDTH_2 = 128, 64
"""Widths of the two text encoders; the U-Net sees their states concatenated."""
TIME_WIDTH = 32
"""Width of the embedding of each of the six time ids."""
SIZES = (SIZE, SIZE, 0, 0, SIZE, SIZE)
"""The time ids of an uncropped image: original size, crop corner, target size."""
_LAST = ("to_out.0.weight", "to_out.0.bias", "ff.net.2.weight", "ff.net.2.bias")
"""The parameters that produce what a transformer layer adds to its input."""


def _penultimate(encoder: Any, ids: Tensor) -> Tensor:
    """Return the hidden states before the last layer, which SDXL reads from its text encoders."""
    states: Tensor = encoder(ids, output_hidden_states=True).hidden_states[-2]
    return states


def _even_out(encoder: CLIPTextModel, token_ids: Callable[[list[str]], Tensor], steps: int = 300) -> float:
    """Train an encoder in place so that its penultimate states keep their direction but all have the same spread.

    The weights thereby absorb a layer normalization. Return the common standard deviation.
    """
    rng = np.random.default_rng(23)
    teacher = copy.deepcopy(encoder).eval()
    optimizer = torch.optim.AdamW(encoder.parameters(), weight_decay=0.0)
    size = 0.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            2e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        captions = [example(rng, objects=(1, 9)).caption for _ in range(24)]
        ids = token_ids([*captions, ""])
        with torch.no_grad():
            wanted = _penultimate(teacher, ids)
            size = size or float(wanted.std(-1).mean())
            wanted = (wanted - wanted.mean(-1, keepdim=True)) / wanted.std(-1, keepdim=True, correction=0) * size
        loss = functional.mse_loss(_penultimate(encoder, ids), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return size


class ShapesSDXL(Denoiser):
    """A U-Net with one transformer layer per block at 16x16 and two at 8x8: as in SDXL, more at the lower level."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = new_tokenizer()
        self.text = new_text_encoder(self.tokenizer, WIDTH, layers=3)
        self.text_2 = CLIPTextModelWithProjection(clip_config(self.tokenizer, WIDTH_2, layers=3))
        self.unet = UNet(
            **UNET,
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=WIDTH + WIDTH_2,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=WIDTH_2 + len(SIZES) * TIME_WIDTH,
        )
        self.scheduler = DDPMScheduler(**SCHEDULE, **PREDICTION)

    def pretrain(self, folder: Path, device: str, describe: Callable[[str], None]) -> None:
        for name, encoder, width in (("text-state", self.text, WIDTH), ("text-2-state", self.text_2, WIDTH_2)):
            pretrain_text(
                encoder, self.tokenizer, folder / name, width=width, read=_penultimate, device=device, describe=describe
            )

    def start_from(self, folder: Path) -> None:
        """Start from a Stable Diffusion model of the same latents, so that the new parts have no effect at first.

        The second text encoder is ignored, the pooled embedding and the time ids add nothing, and the second
        transformer layer of a block passes its input on. SDXL reads its text encoders before their final normalization,
        which is therefore folded into the cross-attention, except for the division by each token's spread: the first
        encoder learns to give all tokens the same spread.
        """
        source = ShapesSD()
        source.start_from(folder)
        weights = source.text.state_dict()
        self.text.load_state_dict({k: weights.get(k, v) for k, v in self.text.state_dict().items()})
        spread = _even_out(self.text, self.token_ids)
        norm = source.text.get_submodule(
            next(k for k, _ in source.text.named_modules() if k.endswith("final_layer_norm"))
        )
        own, given = self.unet.state_dict(), source.unet.state_dict()
        for key, value in own.items():
            old = given.get(key)
            if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) and old is not None:
                scaled = old * norm.weight.data / spread
                own[key] = torch.cat([scaled - scaled.mean(1, keepdim=True), torch.zeros(len(old), WIDTH_2)], dim=1)
            elif old is not None:
                own[key] = old.reshape(value.shape)
            elif (".transformer_blocks.1." in key and key.endswith(_LAST)) or key.startswith("add_embedding.linear_2"):
                own[key] = torch.zeros_like(value)
        for key in own:
            if key.endswith("attn2.to_out.0.bias") and key in given:
                values = given[key.replace("to_out.0.bias", "to_v.weight")] @ norm.bias.data
                own[key] = given[key] + given[key.replace("bias", "weight")] @ values
        self.unet.load_state_dict(own)

    def loss(self, latents: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
        # The embedding of an empty prompt is zero, as in SDXL's pipeline (force_zeros_for_empty_prompt).
        kept = (~empty).float()
        second = self.text_2(ids, output_hidden_states=True)
        text = torch.cat([_penultimate(self.text, ids), second.hidden_states[-2]], dim=-1) * kept[:, None, None]
        sizes = torch.tensor(SIZES, device=ids.device, dtype=torch.float32).expand(len(ids), -1)
        added = {"text_embeds": second.text_embeds * kept[:, None], "time_ids": sizes}
        noisy, noise, timesteps = noised(self.scheduler, latents)
        out = self.unet(noisy, timesteps, encoder_hidden_states=text, added_cond_kwargs=added).sample
        return functional.mse_loss(out.float(), self.scheduler.get_velocity(latents, noise, timesteps))

    def save(self, out: Path, vae: AutoencoderKL) -> None:
        pipeline = StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=self.text,
            text_encoder_2=self.text_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer,
            unet=self.unet,
            scheduler=EulerDiscreteScheduler(**SCHEDULE, **PREDICTION, timestep_spacing="linspace"),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
        save_pipeline(pipeline, out)
