"""Stable Diffusion 3 and 3.5 in diffusers format: flow matching and three text encoders, the largest of them optional."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from lotts_search.backbones.attention.base import RowAttention
from lotts_search.backbones.attention.recorder import compiled
from lotts_search.backbones.attention.sd3 import capture_sd3
from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.confined_joint import JointConfined
from lotts_search.backbones.defaults import STABLE_DIFFUSION_3
from lotts_search.backbones.flow import FlowTime
from lotts_search.backbones.loading import Loader
from lotts_search.backbones.model_folder import load_component
from lotts_search.backbones.network import NetworkBackbone, prices_of
from lotts_search.backbones.unet import clip_tokens
from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults, ModelInfo

WORDS = 256
"""T5 tokens per prompt, as in StableDiffusion3Pipeline."""


@dataclass(frozen=True)
class SD3Text:
    """The inputs of the network for a prompt: of one row, or stacked with a first dimension of rows.

    Attributes:
        text: [L, D], the concatenated states of the two CLIP encoders, followed by those of T5.
        pooled: [P], the two CLIP encoders' projected embeddings.
    """

    text: Tensor
    pooled: Tensor


class StableDiffusion3(JointConfined, NetworkBackbone):
    """A Stable Diffusion 3 model as a :class:`~lotts_search.backbones.base.Backbone`.

    Attention maps come from the last half of the blocks (at most 12): the probability that image tokens give to the
    words, among all text and image keys. Words are tokens of the CLIP encoders; those of T5 are not read.

    Build it with :meth:`from_pretrained`, or directly from loaded diffusers and transformers objects.

    Args:
        name: name of the model.
        transformer, vae: SD3Transformer2DModel and AutoencoderKL (or a codec around one), in evaluation mode.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2: two CLIPTextModelWithProjection and their CLIPTokenizer.
        text_encoder_3, tokenizer_3: T5EncoderModel and its tokenizer, or None to use zeros for its states.
        scheduler: the scheduler's config.
        defaults: settings of the model.
        size: latent height and width, None = the size that the transformer was trained on.
        device: device of the computation, None = that of the transformer.

    Raises:
        BadInput: the network, the scheduler or the size is not supported.
    """

    _embedder = "pos_embed"

    def __init__(
        self,
        name: str,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        text_encoder_3: Any,
        tokenizer_3: Any,
        scheduler: dict[str, Any],
        defaults: Defaults = STABLE_DIFFUSION_3,
        size: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ):
        self.transformer = self.network = transformer
        self.codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae, device)
        self.vae = self.codec.vae
        self.text_encoder, self.text_encoder_2, self.text_encoder_3 = text_encoder, text_encoder_2, text_encoder_3
        self.tokenizer, self.tokenizer_2, self.tokenizer_3 = tokenizer, tokenizer_2, tokenizer_3
        self._device = device
        config = transformer.config
        if config["in_channels"] != self.codec.channels or transformer.out_channels != config["in_channels"]:
            raise BadInput(
                f"model {name}: the transformer expects {config['in_channels']} channels and returns"
                f" {transformer.out_channels}, the vae has {self.codec.channels}; such models are not supported"
            )
        if tokenizer.model_max_length != tokenizer_2.model_max_length:
            raise BadInput(f"model {name}: its two CLIP tokenizers truncate prompts at different lengths")
        height, width = size or (config["sample_size"], config["sample_size"])
        patch, most = config["patch_size"], config["pos_embed_max_size"]
        if max(height, width) > most * patch:
            raise BadInput(
                f"model {name}: images may have at most {most * patch * self.codec.factor} pixels per side,"
                f" got {height * self.codec.factor}x{width * self.codec.factor}"
            )
        self._grid = height // patch, width // patch
        tokens = self._grid[0] * self._grid[1]
        self._time = load_component(name, "scheduler", lambda: FlowTime(scheduler, tokens, spaced=False))
        words = tokenizer.model_max_length + WORDS

        def call(copy: Any) -> object:
            return copy(
                hidden_states=torch.empty(1, self.codec.channels, height, width),
                timestep=torch.empty(1),
                encoder_hidden_states=torch.empty(1, words, config["joint_attention_dim"]),
                pooled_projections=torch.empty(1, config["pooled_projection_dim"]),
            )

        self.info = ModelInfo(
            name=name,
            family="stable-diffusion-3",
            latent=(self.codec.channels, height, width),
            image=(height * self.codec.factor, width * self.codec.factor),
            prices=prices_of(transformer, self.codec, (height, width), call, self.without_image(tokens, call)),
            scheduler=str(scheduler.get("_class_name", "")),
            defaults=defaults,
            patch=patch,
            confines=0 if compiled(transformer) else patch,
        )

    @classmethod
    def from_pretrained(cls, model: str, *, t5: bool = True, **options: Any) -> StableDiffusion3:
        """Load a model in diffusers format; safetensors only, no code from the model folder.

        Args:
            model: folder or Hub id.
            t5: load the T5 encoder; without it the model needs far less memory and follows prompts less closely.
            options: the fields of :class:`~lotts_search.backbones.load_options.LoadOptions`.

        Raises:
            BadInput: the model does not exist or is not a Stable Diffusion 3 model, or an option does not fit it.
            Failure: a file of the model is missing or broken; the message names the component.
        """
        load = Loader(model, "StableDiffusion3Pipeline", options, plugin=cls is not StableDiffusion3)
        scheduler = load.scheduler(FlowMatchEulerDiscreteScheduler)
        codec = load.autoencoder()
        patch = load.config("transformer").get("patch_size", 2)
        size = load.latent_size(codec.factor * patch, codec.factor)
        transformer = load.weights("transformer", SD3Transformer2DModel)
        # diffusers needs this to compile blocks; FLUX and the U-Nets set it themselves.
        transformer._repeated_blocks = transformer._repeated_blocks or ["JointTransformerBlock"]
        text = load.weights("text_encoder", CLIPTextModelWithProjection)
        tokenizer = load.tokenizer("tokenizer", CLIPTokenizer, text.config.max_position_embeddings)
        text_2 = load.weights("text_encoder_2", CLIPTextModelWithProjection)
        tokenizer_2 = load.tokenizer("tokenizer_2", CLIPTokenizer, text_2.config.max_position_embeddings)
        text_3, tokenizer_3, absent = None, None, {"text_encoder_3": None, "tokenizer_3": None}
        if t5 and (load.index.get("text_encoder_3") or [None])[0] is not None:
            text_3, absent = load.weights("text_encoder_3", T5EncoderModel), {}
            tokenizer_3 = load.tokenizer("tokenizer_3", T5TokenizerFast)
        load.settle(scheduler=None, **absent)
        parts = transformer, codec, text, tokenizer, text_2, tokenizer_2, text_3, tokenizer_3, scheduler
        return cls(load.name, *parts, load.defaults(STABLE_DIFFUSION_3), size, load.device)

    def readers(self) -> list[tuple[Any, int]]:
        clip = [(tokenizer, tokenizer.model_max_length) for tokenizer in (self.tokenizer, self.tokenizer_2)]
        return clip if self.text_encoder_3 is None else [*clip, (self.tokenizer_3, WORDS)]

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str]) -> list[SD3Text]:
        """Return text states and pooled text of each prompt, as StableDiffusion3Pipeline computes them."""
        states, pooled = [], []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            output = encoder(clip_tokens(tokenizer, prompts).input_ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip, width = torch.cat(states, dim=-1), self.transformer.config["joint_attention_dim"]
        if self.text_encoder_3 is None:
            long = clip.new_zeros(len(prompts), WORDS, width)
        else:
            ids = self.tokenizer_3(
                prompts, padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt"
            ).input_ids
            long = self.text_encoder_3(ids.to(self.device))[0]
        text = torch.cat([functional.pad(clip, (0, width - clip.shape[-1])), long.to(clip.dtype)], dim=1)
        rows = text.to(self.transformer.dtype), torch.cat(pooled, dim=-1).to(self.transformer.dtype)
        return [SD3Text(*row) for row in zip(*rows, strict=True)]

    def stack(self, conditionings: list[SD3Text]) -> SD3Text:
        return SD3Text(
            torch.stack([one.text for one in conditionings]), torch.stack([one.pooled for one in conditionings])
        )

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: SD3Text) -> Tensor:
        output: Tensor = self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning.text,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]
        return output.float()

    # ReadsAttention, see lotts_search.backbones.attention.base:

    def tokens(self, prompt: str) -> list[int]:
        """Return CLIP's token ids of the prompt's words, without BOS, EOS and padding; their positions are 1, 2, …"""
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        return list(ids[: self.tokenizer.model_max_length - 2])

    first_token = 1
    """Position of the first word's token, after BOS."""

    def grids(self) -> dict[int, tuple[int, int]]:
        return {min(self._grid): self._grid}

    @torch.inference_mode()
    def attend(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: SD3Text,
        positions: list[list[int]],
        queries: list[bool],
        grid: tuple[int, int],
    ) -> list[RowAttention]:
        blocks = min(12, -(-len(self.transformer.transformer_blocks) // 2))
        with capture_sd3(self.transformer, positions, queries, grid, blocks) as record:
            self.predict(latents, timesteps, conditioning)
        return [row.to(latents.device) for row in record.rows()]
