"""A small SDXL with random weights, in the real classes and the real folder format."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lotts_search.backbones.sdxl import StableDiffusionXL
from tests.tiny import scheduler_config, tiny_tokenizer

LENGTH = 16


def text_config(vocabulary: Any, width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.eos_token_id,
        hidden_act="gelu",
    )


def tiny_vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    """Return an autoencoder of factor 4."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        **{"scaling_factor": 0.5, **config},
    )
    return vae.eval()


def tiny_xl_pipeline(
    *,
    prediction: str = "epsilon",
    zero_empty: bool = True,
    vae: dict[str, Any] | None = None,
    seed: int = 0,
) -> StableDiffusionXLPipeline:
    """Return an SDXL: no attention in the first block, one and two transformer layers in the others, 8×8 latents."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
        cross_attention_dim=32 + 24,
        norm_num_groups=8,
    )
    tokenizers = tiny_tokenizer(LENGTH), tiny_tokenizer(LENGTH)
    tokenizers[1].pad_token = "!"  # SDXL's second tokenizer pads with another token
    first = CLIPTextModel(text_config(tokenizers[0], 32, 32))
    second = CLIPTextModelWithProjection(text_config(tokenizers[1], 24, 24))
    # Random attention is almost uniform; larger projections make maps, prompts and the pooled text matter.
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")) or name.startswith("add_embedding"):
                weight.mul_(3)
    return StableDiffusionXLPipeline(
        vae=tiny_vae(**(vae or {})),
        text_encoder=first.eval(),
        text_encoder_2=second.eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(**scheduler_config(prediction_type=prediction)),
        force_zeros_for_empty_prompt=zero_empty,
        add_watermarker=False,
    )


def xl_backbone_of(pipeline: StableDiffusionXLPipeline, name: str = "tiny-xl", **settings: Any) -> StableDiffusionXL:
    """Return this project's backbone around the modules of a pipeline."""
    return StableDiffusionXL(
        name,
        pipeline.unet,
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.text_encoder_2,
        pipeline.tokenizer_2,
        dict(pipeline.scheduler.config),
        zero_empty=bool(pipeline.config["force_zeros_for_empty_prompt"]),
        **settings,
    )


@functools.cache
def tiny_xl_backbone() -> StableDiffusionXL:
    """Return a tiny model shared by tests, which must not change it."""
    return xl_backbone_of(tiny_xl_pipeline())
