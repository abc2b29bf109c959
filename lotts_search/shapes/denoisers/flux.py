"""``shapes-flux``: a FluxTransformer2DModel trained as a rectified flow, with a T5 and a CLIP text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.shapes.denoisers.base import Denoiser, save_pipeline, spread
from lotts_search.shapes.denoisers.reading import reading_parts, teach_reading
from lotts_search.shapes.denoisers.text import (
    TEXT_LENGTH,
    new_t5_encoder,
    new_t5_tokenizer,
    new_text_encoder,
    new_tokenizer,
    pretrain_text,
    token_ids,
)
from lotts_search.shapes.denoisers.vae import LATENT_CHANNELS

WIDTH = 128
SHIFT = 3.0
"""How much more often training is at high noise, where the words decide (Esser et al. 2024, equation 23)."""


class ShapesFlux(Denoiser):
    """Four double-stream and four single-stream blocks over 8x8 packed tokens; no guidance, as FLUX.1-schnell."""

    half_on_cpu = False

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer, self.tokenizer_2 = new_tokenizer(), new_t5_tokenizer()
        self.text = new_text_encoder(self.tokenizer, 96, layers=1)
        self.text_2 = new_t5_encoder(self.tokenizer_2, WIDTH, layers=3)
        self.transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=4,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=96,
            guidance_embeds=False,
            axes_dims_rope=(4, 14, 14),
        )

    def pretrain(self, folder: Path, device: str, describe: Callable[[str], None]) -> None:
        # T5 knows places by their distance alone, and takes longer than CLIP to learn what belongs to what.
        pretrain_text(
            self.text_2, self.tokenizer_2, folder / "text-state", count=96_000, device=device, describe=describe
        )
        describe("transformer: learning where words belong")
        teach_reading(
            self.text_2, self.tokenizer_2, self.transformer, folder / "reading", device=device, describe=describe
        )

    def settled(self) -> list[nn.Module]:
        # Trained on, the first block unlearns to read long before the others have learned to paint: after 3,000 steps
        # a linear layer could tell 17 % of the shapes from any block's image tokens, where it had told 98 % before.
        return [self.text_2, *reading_parts(self.transformer)]

    def matrices(self) -> list[str]:
        # In 80 steps of 32 Muon came to a loss of 1.09 where AdamW was at 1.40.
        return [
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim == 2 and name.startswith("transformer.") and "blocks." in name and ".norm" not in name
        ]

    def token_ids(self, captions: Iterable[str]) -> Tensor:
        captions = list(captions)
        return torch.stack([token_ids(self.tokenizer, captions), token_ids(self.tokenizer_2, captions)], dim=1)

    def loss(self, latents: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
        ids = torch.where(empty[:, None, None], self.token_ids([""]).to(ids.device), ids)
        sigma = spread(len(latents), latents.device)
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        noise = torch.randn_like(latents)
        level = sigma[:, None, None, None]
        count, channels, height, width = latents.shape
        out = self.transformer(
            hidden_states=FluxPipeline._pack_latents(
                (1 - level) * latents + level * noise, count, channels, height, width
            ),
            encoder_hidden_states=self.text_2(ids[:, 1])[0],
            pooled_projections=self.text(ids[:, 0]).pooler_output,
            timestep=sigma,
            img_ids=FluxPipeline._prepare_latent_image_ids(
                count, height // 2, width // 2, latents.device, torch.float32
            ),
            txt_ids=torch.zeros(TEXT_LENGTH, 3, device=latents.device),
        ).sample
        velocity = FluxPipeline._pack_latents(noise - latents, count, channels, height, width)
        return functional.mse_loss(out.float(), velocity)

    def save(self, out: Path, vae: AutoencoderKL) -> None:
        vae.register_to_config(shift_factor=0.0)  # FluxPipeline adds it, and cannot add nothing
        pipeline = FluxPipeline(
            vae=vae,
            text_encoder=self.text,
            text_encoder_2=self.text_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        )
        save_pipeline(pipeline, out)
