"""The published configurations of SD2.1, SDXL and FLUX.1-schnell with random weights, at any depth and size.

Shapes, times and memory do not depend on the values of the weights, so a dry run of a real model needs no download.
Weights are created on the device in their final dtype; there is never a full-precision copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lotts_search.backbones.defaults import FLUX_SCHNELL, STABLE_DIFFUSION, STABLE_DIFFUSION_XL
from lotts_search.backbones.flux import Flux, FluxText
from lotts_search.backbones.sdxl import SDXLText, StableDiffusionXL
from lotts_search.backbones.stable_diffusion import StableDiffusion
from lotts_search.errors import BadInput
from lotts_search.shapes.denoisers.text import new_t5_tokenizer, new_tokenizer

_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}

SD21_UNET: dict[str, Any] = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SD21_VAE: dict[str, Any] = _VAE | {"latent_channels": 4, "sample_size": 768, "scaling_factor": 0.18215}
SD21_TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
SD21_SCHEDULER: dict[str, Any] = _BETAS | {
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "clip_sample": False,
}

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE: dict[str, Any] = _VAE | {
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
SDXL_TEXT: dict[str, Any] = _CLIP_L | {"hidden_act": "quick_gelu", "projection_dim": 768}
SDXL_TEXT_2: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
SDXL_SCHEDULER: dict[str, Any] = _BETAS | {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}

SCHNELL_TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}
SCHNELL_VAE: dict[str, Any] = _VAE | {
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SCHNELL_TEXT: dict[str, Any] = _CLIP_L | {"hidden_act": "quick_gelu", "projection_dim": 768}
SCHNELL_TEXT_2: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
}
SCHNELL_SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True)
class Builder:
    """Builds the parts of a model with random weights.

    Attributes:
        device, dtype: device and precision of the weights.
        size: height and width of the images in pixels; None = the published size.
        depth: double-stream blocks of FLUX, with twice as many single-stream blocks; None = the published 19.
        tied: FLUX: share the weights of the first block of each kind: published depth and cost per step, but a
            twentieth of the memory for weights.
        text: build the text encoders; otherwise prompts are encoded as random numbers of the right shape.
    """

    device: torch.device
    dtype: torch.dtype
    size: tuple[int, int] | None = None
    depth: int | None = None
    text: bool = True
    tied: bool = False

    def module(self, make: Callable[[], Any], present: bool = True) -> Any:
        """Build a module with random weights on the device, or without weights if it is not ``present``."""
        with init_empty_weights(include_buffers=False):
            made = make()
        if hasattr(made, "tie_weights"):
            made.tie_weights()
        return fill(made.eval(), self.device, self.dtype) if present else made

    def vae(self, config: dict[str, Any]) -> Any:
        """Build an autoencoder; in float32 instead of float16 if its config sets ``force_upcast``."""
        upcast = config.get("force_upcast") and self.dtype == torch.float16
        made: Any = AutoencoderKL
        with init_empty_weights(include_buffers=False):
            empty = made.from_config(config)
        return fill(empty.eval(), self.device, torch.float32 if upcast else self.dtype)

    def network(self, cls: Any, config: dict[str, Any]) -> Any:
        """Build the denoiser."""
        return self.module(lambda: cls.from_config(config))

    def clip(self, cls: Any, config: dict[str, Any]) -> Any:
        """Build a CLIP text encoder with the published vocabulary."""
        # The defaults of CLIPTextConfig are the published 77 positions and 49408 tokens.
        return self.module(lambda: cls(CLIPTextConfig(**config, eos_token_id=1, bos_token_id=0)), self.text)

    def latent(self, side: int, factor: int, multiple: int) -> tuple[int, int]:
        """Return height and width of the latent, by default ``side`` cells each.

        Raises:
            BadInput: a side of the image is not a multiple of ``multiple`` pixels.
        """
        if self.size is None:
            return side, side
        if min(self.size) < multiple or self.size[0] % multiple or self.size[1] % multiple:
            raise BadInput(f"height and width must be multiples of {multiple}, got {self.size[0]}x{self.size[1]}")
        return self.size[0] // factor, self.size[1] // factor


def fill(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Replace missing weights by random ones: norms as at the start of training, all others small normal numbers. On the
    meta device there are no weights."""
    if device.type == "meta":
        return module.to(device)
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for part in module.modules():
        for name, empty in list(part._parameters.items()):
            if empty is None:
                continue
            if id(empty) not in made:
                weight = torch.empty(empty.shape, device=device, dtype=dtype)
                if empty.ndim > 1:
                    weight.normal_(0, 0.02, generator=generator)
                else:
                    weight.fill_(float(name == "weight"))
                made[id(empty)] = nn.Parameter(weight, requires_grad=False)
            part._parameters[name] = made[id(empty)]
    return module.to(device)


def tie(blocks: nn.ModuleList) -> None:
    """Share the parameters of the first block with all others."""
    first = dict(blocks[0].named_modules())
    for block in blocks[1:]:
        for name, part in block.named_modules():
            part._parameters.update(first[name]._parameters)


def tokenizers(length: int, length_2: int) -> tuple[Any, Any]:
    """Return a CLIP and a T5 tokenizer with small vocabularies and the published lengths."""
    clip, t5 = new_tokenizer(), new_t5_tokenizer()
    clip.model_max_length, t5.model_max_length = length, length_2
    return clip, t5


def _random_encoding(builder: Builder, prompt: str, *shape: int) -> Tensor:
    """Return normal numbers in place of an encoded prompt."""
    seed = int.from_bytes(blake2b(prompt.encode(), digest_size=6).digest(), "little")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(builder.device, builder.dtype)


def stable_diffusion_21(builder: Builder) -> StableDiffusion:
    """Build Stable Diffusion 2.1, 768 pixels by default."""
    size = builder.latent(96, 8, 64)
    unet = builder.network(UNet2DConditionModel, SD21_UNET)
    text = builder.clip(CLIPTextModel, SD21_TEXT)
    parts = unet, builder.vae(SD21_VAE), text, tokenizers(77, 0)[0], SD21_SCHEDULER
    backbone = StableDiffusion("SD2.1", *parts, STABLE_DIFFUSION, size, builder.device)
    if not builder.text:
        vars(backbone)["encode_prompts"] = lambda prompts: [
            _random_encoding(builder, prompt, 77, 1024) for prompt in prompts
        ]
    return backbone


def stable_diffusion_xl(builder: Builder) -> StableDiffusionXL:
    """Build SDXL base, 1024 pixels by default."""
    words, size = tokenizers(77, 0)[0], builder.latent(128, 8, 32)
    unet = builder.network(UNet2DConditionModel, SDXL_UNET)
    texts = builder.clip(CLIPTextModel, SDXL_TEXT), builder.clip(CLIPTextModelWithProjection, SDXL_TEXT_2)
    parts = unet, builder.vae(SDXL_VAE), texts[0], words, texts[1], words, SDXL_SCHEDULER
    backbone = StableDiffusionXL("SDXL", *parts, STABLE_DIFFUSION_XL, size, builder.device)

    def encode(prompts: list[str]) -> list[SDXLText]:
        ids = torch.tensor(
            [*backbone.info.image, 0, 0, *backbone.info.image], device=builder.device, dtype=builder.dtype
        )
        return [
            SDXLText(_random_encoding(builder, prompt, 77, 2048), _random_encoding(builder, prompt, 1280), ids)
            for prompt in prompts
        ]

    if not builder.text:
        vars(backbone)["encode_prompts"] = encode
    return backbone


def flux_schnell(builder: Builder) -> Flux:
    """Build FLUX.1-schnell, 1024 pixels by default."""
    config, size = dict(SCHNELL_TRANSFORMER), builder.latent(128, 8, 16)
    if builder.depth is not None:
        config |= {"num_layers": builder.depth, "num_single_layers": 2 * builder.depth}

    def make() -> FluxTransformer2DModel:
        made = FluxTransformer2DModel.from_config(config)
        if builder.tied:
            for blocks in (made.transformer_blocks, made.single_transformer_blocks):
                tie(blocks)
        return made

    transformer = builder.module(make)
    text = builder.clip(CLIPTextModel, SCHNELL_TEXT)
    text_2 = builder.module(lambda: T5EncoderModel(T5Config(**SCHNELL_TEXT_2)), builder.text)
    words, words_2 = tokenizers(77, 512)
    parts = transformer, builder.vae(SCHNELL_VAE), text, words, text_2, words_2, SCHNELL_SCHEDULER
    backbone = Flux("FLUX.1-schnell", *parts, FLUX_SCHNELL, size, device=builder.device)
    if not builder.text:
        vars(backbone)["encode_prompts"] = lambda prompts: [
            FluxText(_random_encoding(builder, prompt, backbone.words, 4096), _random_encoding(builder, prompt, 768))
            for prompt in prompts
        ]
    return backbone


FAMILIES: dict[str, Callable[[Builder], StableDiffusion | StableDiffusionXL | Flux]] = {
    "sd": stable_diffusion_21,
    "sdxl": stable_diffusion_xl,
    "flux": flux_schnell,
}
"""Functions that build the model of a family."""
