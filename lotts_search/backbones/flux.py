"""FLUX.1 (schnell, dev and models of their kind): any diffusers-format FluxPipeline folder or hub id."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from lotts_search.backbones.base import Defaults, ModelInfo, Schedule
from lotts_search.backbones.flow import FlowTime
from lotts_search.backbones.folder import defaults_of, load_component, load_weights, read_json
from lotts_search.errors import BadInput
from lotts_search.localization.attention import Concept, RowAttention
from lotts_search.localization.joint import (
    ConceptRecorder,
    JointRecorder,
    capture_joint,
    default_blocks,
    embed_concepts,
)
from lotts_search.masks import ConceptMask

SCHNELL = Defaults(steps=10, guidance=1.0, t0=1, integrate=1, mask=ConceptMask())
"""The paper's settings for FLUX.1-schnell (LoTTS, implementation details)."""
DEV = Defaults(steps=28, guidance=3.5, t0=3, integrate=3, mask=ConceptMask())
"""For models that are told a guidance weight: diffusers' steps and weight, the paper's shares of t0 and tg."""
SCHNELL_WORDS, DEV_WORDS = 256, 512
"""T5 tokens of a prompt, padding included, as the two models were trained."""


@dataclass(frozen=True)
class FluxText:
    """The conditioning of a row, or with a leading dimension of a call.

    Attributes:
        states: [L, D], of T5; padding is part of it.
        pooled: [P], of CLIP.
        guidance: weight that the network is told; None for a network that is told none.
    """

    states: Tensor
    pooled: Tensor
    guidance: Tensor | None = None


class Flux:
    """A FLUX model behind the :class:`~lotts_search.backbones.base.Backbone` interface.

    A latent of the search is [C, H, W]; inside the network each 2×2 patch of it is one token of 4·C numbers. A model
    with a guidance embedding is told the weight, one row a step; any other is unguided at weight 1 and takes true
    classifier-free guidance above it, as FluxPipeline's ``true_cfg_scale``.

    Build it with :meth:`from_pretrained`, or directly from loaded diffusers and transformers objects.

    Args:
        name: as the user named it.
        transformer, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2: FluxTransformer2DModel, AutoencoderKL,
            CLIPTextModel and CLIPTokenizer, T5EncoderModel and its tokenizer, on their device and in evaluation mode.
        scheduler: the scheduler's config.
        defaults: the model's own settings, None = those of its kind.
        size: latent height and width, even numbers; None = FluxPipeline's 128 by 128.
        words: T5 tokens of a prompt, None = 512 with a guidance embedding and 256 without, at most the tokenizer's.
        compat: the schedule of ``DPMSolverMultistepScheduler``, see :class:`~lotts_search.backbones.flow.FlowTime`.
    """

    def __init__(
        self,
        name: str,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        scheduler: dict[str, Any],
        defaults: Defaults | None = None,
        size: tuple[int, int] | None = None,
        words: int | None = None,
        compat: bool = False,
    ):
        self.transformer, self.vae = transformer, vae
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.scheduler = scheduler
        channels = transformer.config["in_channels"]
        if (
            channels != 4 * vae.config["latent_channels"]
            or (transformer.config["out_channels"] or channels) != channels
        ):
            raise BadInput(
                f"model {name}: the transformer takes {channels} channels, the vae gives 4x"
                f"{vae.config['latent_channels']} a patch; fill, depth and control models are not supported"
            )
        embedded = bool(transformer.config["guidance_embeds"])
        height, width = size or (128, 128)
        if height % 2 or width % 2 or min(height, width) < 2:
            raise BadInput(f"height and width of the latent must be even numbers, got {height}x{width}")
        self._grid = height // 2, width // 2
        self._time = FlowTime(scheduler, self._grid[0] * self._grid[1], compat=compat)
        most = min(tokenizer_2.model_max_length, DEV_WORDS if embedded else SCHNELL_WORDS)
        if words is not None and words < 1:
            raise BadInput(f"words must be 1 or more, got {words}")
        self.words = most if words is None else words
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.info = ModelInfo(
            name=name,
            family="flux",
            latent=(channels // 4, height, width),
            image=(height * factor, width * factor),
            flops_per_row=_flops_per_row(transformer, self._grid, self.words),
            defaults=defaults or (DEV if embedded else SCHNELL),
            embedded_guidance=embedded,
            patch=2,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str | None = None,
        dtype: str | torch.dtype = "float32",
        size: tuple[int, int] | None = None,
        revision: str | None = None,
        variant: str | None = None,
        name: str | None = None,
        words: int | None = None,
        compat: bool = False,
    ) -> Flux:
        """Load a diffusers-format folder or hub id; safetensors only, never code from outside.

        Args:
            model: folder or hub id.
            device: torch device, None = CUDA where there is one.
            dtype: of network, text encoders and autoencoder: float32, bfloat16 or float16.
            size: height and width of the pictures in pixels, None = the ``sample_size`` of the autoencoder (1024 by
                1024 for the published models).
            revision, variant: as in diffusers.
            name: what to call the model, None = ``model``.
            words, compat: see the class.

        Raises:
            BadInput: no such model, not a FLUX folder, or an option that does not fit it.
            Failure: a file of the folder is missing or broken; the message names the component.
        """
        index = read_json(model, "model_index.json", revision=revision)
        if index.get("_class_name") != "FluxPipeline":
            raise BadInput(f"model {model} is a {index.get('_class_name')}, not a FluxPipeline")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        number = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if number not in (torch.float32, torch.bfloat16, torch.float16):
            raise BadInput(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        source = {} if revision is None else {"revision": revision}
        weights = source | ({} if variant is None else {"variant": variant})
        transformer = load_weights(model, "transformer", FluxTransformer2DModel, torch_dtype=number, **weights).to(
            place
        )
        vae = load_weights(model, "vae", AutoencoderKL, torch_dtype=number, **weights).to(place)
        text = load_weights(model, "text_encoder", CLIPTextModel, dtype=number, **weights).to(place)
        text_2 = load_weights(model, "text_encoder_2", T5EncoderModel, dtype=number, **weights).to(place)
        clip: Any = CLIPTokenizer
        t5 = _tokenizer_class(model, index)
        tokenizer = load_component(model, "tokenizer", lambda: _tokenizer(clip, model, "tokenizer", **source))
        tokenizer_2 = load_component(model, "tokenizer_2", lambda: _tokenizer(t5, model, "tokenizer_2", **source))
        tokenizer.model_max_length = min(tokenizer.model_max_length, text.config.max_position_embeddings)
        plan: Any = FlowMatchEulerDiscreteScheduler
        scheduler = load_component(model, "scheduler", lambda: plan.load_config(model, subfolder="scheduler", **source))
        factor = 2 * 2 ** (len(vae.config["block_out_channels"]) - 1)
        if size is not None and (min(size) < factor or size[0] % factor or size[1] % factor):
            raise BadInput(f"height and width must be multiples of {factor} pixels, got {size[0]}x{size[1]}")
        side = vae.config["sample_size"]
        latent = (2 * size[0] // factor, 2 * size[1] // factor) if size is not None else (2 * side // factor,) * 2
        defaults = defaults_of(model, DEV if transformer.config["guidance_embeds"] else SCHNELL, revision)
        parts = transformer, vae, text, tokenizer, text_2, tokenizer_2, scheduler
        return cls(name or model, *parts, defaults, latent, words, compat)

    @property
    def device(self) -> torch.device:
        return torch.device(self.transformer.device)

    def schedule(self, steps: int) -> Schedule:
        return self._time.schedule(steps)

    def train_level(self, timestep: int) -> tuple[float, float]:
        return self._time.train_level(timestep)

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str]) -> list[FluxText]:
        """T5's last hidden states [L, D] and CLIP's pooled output [P] of each prompt, as FluxPipeline computes them.

        T5 is not told which tokens are padding, and neither is the transformer, so L is part of the model.
        """
        long = self._ids(self.tokenizer_2, prompts, self.words)
        states = self.text_encoder_2(long.to(self.text_encoder_2.device))[0]
        short = self._ids(self.tokenizer, prompts, self.tokenizer.model_max_length)
        pooled = self.text_encoder(short.to(self.text_encoder.device)).pooler_output
        place = self.device, self.transformer.dtype
        return [FluxText(*pair) for pair in zip(states.to(*place).unbind(), pooled.to(*place).unbind(), strict=True)]

    def _ids(self, tokenizer: Any, prompts: list[str], length: int) -> Tensor:
        tokens = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        assert isinstance(tokens, Tensor)
        return tokens

    def with_guidance(self, conditioning: FluxText, guidance: float) -> FluxText:
        """The conditioning of a row that is told this guidance weight."""
        return replace(conditioning, guidance=torch.tensor(guidance, device=self.device))

    def stack(self, conditionings: list[FluxText]) -> FluxText:
        weights = [text.guidance for text in conditionings]
        return FluxText(
            torch.stack([text.states for text in conditionings]),
            torch.stack([text.pooled for text in conditionings]),
            torch.stack([self._weight(weight) for weight in weights]) if self.info.embedded_guidance else None,
        )

    def _weight(self, weight: Tensor | None) -> Tensor:
        return torch.tensor(self.info.defaults.guidance, device=self.device) if weight is None else weight

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: FluxText) -> Tensor:
        output: Tensor = self.transformer(**self.network_inputs(latents, timesteps, conditioning), return_dict=False)[0]
        return unpack(output.float(), self._grid)

    def network_inputs(self, latents: Tensor, timesteps: Tensor, conditioning: FluxText) -> dict[str, Any]:
        """The arguments of one call of the transformer."""
        return {
            "hidden_states": pack(latents.to(self.transformer.dtype)),
            "timestep": timesteps / self._time.levels,
            "guidance": conditioning.guidance,
            "pooled_projections": conditioning.pooled,
            "encoder_hidden_states": conditioning.states,
            "txt_ids": torch.zeros(conditioning.states.shape[1], 3, device=latents.device),
            "img_ids": image_ids(self._grid).to(latents.device),
        }

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return latents - sigma * output

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        scaled = latents / self.vae.config["scaling_factor"] + self._shift
        pictures = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()
        pictures = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy())

    @torch.inference_mode()
    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        pictures = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        posterior = self.vae.encode((pictures.float() / 127.5 - 1).to(self.vae.dtype)).latent_dist
        latents: Tensor = (posterior.mean.float() - self._shift) * self.vae.config["scaling_factor"]
        return latents

    @property
    def _shift(self) -> float:
        return float(self.vae.config["shift_factor"] or 0.0)

    # What localization by attention needs beyond a backbone: see lotts_search.localization.attention.

    def tokens(self, prompt: str) -> list[int]:
        """T5 token ids of the prompt's words, without EOS and padding; their positions are 0, 1, …"""
        return list(self.tokenizer_2(prompt, add_special_tokens=False).input_ids[: self.words - 1])

    first_token = 0
    """Position of the first word's token: T5 has no BOS."""

    def grids(self) -> dict[int, tuple[int, int]]:
        """The one grid there is, that of the image tokens."""
        return {min(self._grid): self._grid}

    @torch.inference_mode()
    def attend(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: FluxText,
        positions: list[list[int]],
        queries: list[bool],
        grid: tuple[int, int],
    ) -> list[RowAttention]:
        """As of :class:`~lotts_search.localization.attention.Attentive`: the image queries' attention to the text in
        the last double-stream blocks, as many as :meth:`concept_blocks` has by default."""
        record = JointRecorder(positions, queries, grid, self._last(self.concept_blocks(None)))
        with capture_joint(self.transformer, record):
            self.transformer(**self.network_inputs(latents, timesteps, conditioning), return_dict=False)
        return record.rows()

    def concept_grid(self) -> tuple[int, int]:
        return self._grid

    def concept_blocks(self, wanted: int | None) -> int:
        there = len(self.transformer.transformer_blocks)
        blocks = default_blocks(there) if wanted is None else wanted
        if not 1 <= blocks <= there:
            raise BadInput(f"blocks must be within 1..{there}, got {wanted}")
        return blocks

    def _last(self, blocks: int) -> range:
        there = len(self.transformer.transformer_blocks)
        return range(there - blocks, there)

    @torch.inference_mode()
    def attend_concepts(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: FluxText,
        concepts: list[list[Concept]],
        queries: list[bool],
        blocks: int,
    ) -> list[RowAttention]:
        inputs = self.network_inputs(latents, timesteps, conditioning)
        count = max(1, *(len(concept.tokens) for row in concepts for concept in row))
        valid = torch.zeros(len(concepts), len(concepts[0]), count, dtype=torch.bool, device=latents.device)
        weights = torch.zeros(valid.shape, device=latents.device)
        states = conditioning.states.new_zeros(*valid.shape, conditioning.states.shape[-1])
        for i, row in enumerate(concepts):
            for j, concept in enumerate(row):
                states[i, j, : len(concept.tokens)] = concept.conditioning.states[concept.tokens]
                valid[i, j, : len(concept.tokens)] = True
                weights[i, j, concept.read] = 1 / max(1, len(concept.read))
        pooled = torch.stack([torch.stack([concept.conditioning.pooled for concept in row]) for row in concepts])
        words = embed_concepts(self.transformer, states, pooled, inputs["timestep"], conditioning.guidance)
        record = ConceptRecorder(*words, valid, weights, queries, self._grid, self._last(blocks))
        with capture_joint(self.transformer, record):
            self.transformer(**inputs, return_dict=False)
        return record.rows()


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] latents → [B, H/2·W/2, 4·C] tokens, one a 2×2 patch, row by row."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), 4 * channels)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`pack` for a grid of (H/2, W/2) tokens."""
    batch, _, size = tokens.shape
    patches = tokens.view(batch, *grid, size // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, size // 4, 2 * grid[0], 2 * grid[1])


def image_ids(grid: tuple[int, int]) -> Tensor:
    """Positions [h·w, 3] of the image tokens for the rotary embedding: (0, row, column)."""
    ids = torch.zeros(*grid, 3)
    ids[..., 1] += torch.arange(grid[0])[:, None]
    ids[..., 2] += torch.arange(grid[1])[None, :]
    return ids.view(-1, 3)


def _tokenizer_class(model: str, index: dict[str, Any]) -> Any:
    """What the folder's model_index.json calls the class of ``tokenizer_2``, one of transformers' own."""
    library, name = (index.get("tokenizer_2") or ["transformers", "T5TokenizerFast"])[:2]
    found = getattr(transformers, str(name), None) if library == "transformers" else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
        raise BadInput(f"model {model}: tokenizer_2 is a {library}.{name}, not a tokenizer of transformers")
    return found


def _tokenizer(cls: Any, model: str, folder: str, **source: str) -> Any:
    tokenizer = cls.from_pretrained(model, subfolder=folder, **source)
    # Without its files the tokenizer loads all the same, with special tokens only.
    if len(tokenizer) < 10:
        raise ValueError("its vocabulary is missing")
    return tokenizer


def _flops_per_row(transformer: Any, grid: tuple[int, int], words: int) -> float:
    """Floating-point operations of one network row, counted on a copy without weights."""
    config = transformer.config
    with torch.device("meta"):
        network: Any = FluxTransformer2DModel
        shadow = network.from_config(dict(config))
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            shadow(
                hidden_states=torch.empty(1, grid[0] * grid[1], config["in_channels"]),
                encoder_hidden_states=torch.empty(1, words, config["joint_attention_dim"]),
                pooled_projections=torch.empty(1, config["pooled_projection_dim"]),
                timestep=torch.empty(1),
                img_ids=torch.empty(grid[0] * grid[1], 3),
                txt_ids=torch.empty(words, 3),
                guidance=torch.empty(1) if config["guidance_embeds"] else None,
            )
    return float(counter.get_total_flops())
