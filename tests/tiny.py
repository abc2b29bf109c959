"""Small Stable Diffusion models with random weights, in the real classes and the real folder format."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.engine.engine import Engine
from lotts_search.work.requests import Fresh, Generate, Result, Sampling, Segment

WORDS = [
    "a",
    "an",
    "image",
    "of",
    "high",
    "low",
    "good",
    "bad",
    "quality",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "on",
    "the",
    "left",
    "right",
    "and",
]


def tiny_tokenizer(length: int = 16, words: list[str] = WORDS) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows ``words`` as whole tokens and spells out all others."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=ids, merges=[tuple(m.split()) for m in merges], model_max_length=length)  # type: ignore[arg-type]


def scheduler_config(**overrides: Any) -> dict[str, Any]:
    """Return the scheduler config of the Stable Diffusion folders: scaled-linear betas, leading spacing, offset 1."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "prediction_type": "v_prediction",
    } | overrides


def tiny_pipeline(
    *,
    prediction: str = "v_prediction",
    channels: tuple[int, int] = (32, 64),
    latent_channels: int = 4,
    side: int = 8,
    width: int = 32,
    length: int = 16,
    vae_channels: tuple[int, ...] = (16, 16, 16),
    seed: int = 0,
) -> StableDiffusionPipeline:
    """Return a U-Net with cross-attention at two grids, a text encoder of two layers, and an autoencoder of factor 4."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
        block_out_channels=vae_channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=side * 2 ** (len(vae_channels) - 1),
        scaling_factor=0.5,
        mid_block_add_attention=False,
    )
    tokenizer = tiny_tokenizer(length)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    # Random attention is almost uniform; larger projections make maps and prompts matter.
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.mul_(3)
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DPMSolverMultistepScheduler(**scheduler_config(prediction_type=prediction)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipeline: StableDiffusionPipeline, folder: Path) -> Path:
    """Write the pipeline as a model folder of safetensors."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def backbone_of(pipeline: StableDiffusionPipeline, name: str = "tiny", **settings: Any) -> StableDiffusion:
    """Return this project's backbone around the modules of a pipeline."""
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    return StableDiffusion(name, *parts, dict(pipeline.scheduler.config), **settings)


@functools.cache
def tiny_backbone(prediction: str = "v_prediction") -> StableDiffusion:
    """Return a tiny model shared by tests, which must not change it."""
    return backbone_of(tiny_pipeline(prediction=prediction))


def run(engine: Engine, *requests: Generate) -> list[Result]:
    """Submit all requests at once and return their results."""
    futures = [engine.submit(work) for work in requests]
    while engine.tick():
        pass
    return [future.result(timeout=0) for future in futures]


def sample(seed: int, sampling: Sampling, *, search_seed: int = 1, stop: int | None = None) -> Segment:
    """Return the request for a trajectory from the pure noise of ``seed``."""
    stop = sampling.steps if stop is None else stop
    return Segment(search_seed, sampling, (f"seed {seed}",), stop, noise=Fresh(seed))
