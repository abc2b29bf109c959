"""A small Stable Diffusion 3 with random weights, in the real classes and the real folder format."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lotts_search.backbones.sd3 import StableDiffusion3
from tests.tiny import tiny_tokenizer
from tests.tiny_flux import tiny_t5_tokenizer
from tests.tiny_xl import LENGTH, text_config, tiny_vae


def tiny_sd3_pipeline(*, t5: bool = True, newer: bool = False, seed: int = 0, **scheduler: Any) -> Any:
    """Return four blocks over 4×4 tokens of 2×2 latents; ``newer`` adds the norms and dual attention of version 3.5."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=20 + 24,
        pos_embed_max_size=12,
        dual_attention_layers=(0, 2) if newer else (),
        qk_norm="rms_norm" if newer else None,
    )
    # Random attention is almost uniform; larger projections make maps and prompts matter.
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight", "add_k_proj.weight")):
                weight.mul_(4)
    tokenizers = tiny_tokenizer(LENGTH), tiny_tokenizer(LENGTH)
    tokenizer_3 = tiny_t5_tokenizer() if t5 else None
    text_encoder_3 = None
    if tokenizer_3 is not None:
        config = T5Config(vocab_size=len(tokenizer_3), d_model=48, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
        text_encoder_3 = T5EncoderModel(config).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        vae=tiny_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(text_config(tokenizers[0], 20, 20)).eval(),
        tokenizer=tokenizers[0],
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizers[1], 24, 24)).eval(),
        tokenizer_2=tokenizers[1],
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    )


def sd3_backbone_of(pipeline: Any, name: str = "tiny-sd3", **settings: Any) -> StableDiffusion3:
    """Return this project's backbone around the modules of a pipeline."""
    parts = pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    parts += pipeline.text_encoder_2, pipeline.tokenizer_2, pipeline.text_encoder_3, pipeline.tokenizer_3
    config = dict(pipeline.scheduler.config) | {"_class_name": type(pipeline.scheduler).__name__}
    return StableDiffusion3(name, *parts, config, **settings)
