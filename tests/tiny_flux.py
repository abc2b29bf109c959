"""Small FLUX models with random weights, in the real classes and the real folder format."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from lotts_search.backbones.flux import Flux
from tests.tiny import WORDS, tiny_tokenizer


def tiny_t5_tokenizer(length: int = 24) -> T5Tokenizer:
    """Return a T5 tokenizer that knows the words of :data:`tests.tiny.WORDS` and spells out all others."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in [*WORDS, "A"]] + [(letter, -9.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)  # type: ignore[arg-type]


def tiny_flux(
    *, guidance: bool = False, blocks: int = 4, side: int = 8, seed: int = 0, **scheduler: Any
) -> FluxPipeline:
    """Return four double-stream and two single-stream blocks over 4x4 tokens, with an autoencoder of factor 2."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=blocks,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=2 * side,
        scaling_factor=0.5,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_t5_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=20,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_2),
            d_model=24,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    # Random modulations and attention are close to zero; larger ones make blocks, maps and prompts matter.
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if name.endswith(("norm1.linear.weight", "to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight")):
                weight.mul_(2)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 1.0} | scheduler),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flux_of(pipeline: FluxPipeline, name: str = "tiny-flux", **settings: Any) -> Flux:
    """Return this project's backbone around the modules of a pipeline."""
    parts = pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    side = pipeline.vae.config["sample_size"] // 2
    settings = {"size": (side, side)} | settings
    return Flux(
        name, *parts, pipeline.text_encoder_2, pipeline.tokenizer_2, dict(pipeline.scheduler.config), **settings
    )


@functools.cache
def shared_flux() -> Flux:
    """Return a tiny model shared by tests, which must not change it."""
    return flux_of(tiny_flux())
