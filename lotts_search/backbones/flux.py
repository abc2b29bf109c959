"""FLUX.1 (schnell, dev and their derivatives) in diffusers format."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from lotts_search.backbones.attention.base import Concept, RowAttention
from lotts_search.backbones.attention.flux import (
    ConceptRecorder,
    JointRecorder,
    capture_joint,
    default_blocks,
    embed_concepts,
)
from lotts_search.backbones.attention.recorder import compiled
from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.confined_joint import JointConfined
from lotts_search.backbones.defaults import FLUX_DEV, FLUX_SCHNELL
from lotts_search.backbones.flow import FlowTime
from lotts_search.backbones.loading import Loader
from lotts_search.backbones.model_folder import load_component
from lotts_search.backbones.network import NetworkBackbone, prices_of
from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults, ModelInfo

SCHNELL_WORDS, DEV_WORDS = 256, 512
"""T5 tokens per prompt, including padding, with which the two models were trained."""


@dataclass(frozen=True)
class FluxText:
    """The inputs of the network for a prompt: of one row, or stacked with a first dimension of rows.

    Attributes:
        states: [L, D], hidden states of T5, including padding.
        pooled: [P], pooled output of CLIP.
        guidance: the guidance weight; None for a network without that input.
    """

    states: Tensor
    pooled: Tensor
    guidance: Tensor | None = None


class Flux(JointConfined, NetworkBackbone):
    """A FLUX model as a :class:`~lotts_search.backbones.base.Backbone`.

    A latent is [C, H, W]; the network sees each 2×2 patch of it as one token of 4·C numbers. If the guidance weight is
    an input of the network (guidance-distilled models), a step takes one row. Any other model is unguided at weight 1
    and uses true classifier-free guidance above it, as FluxPipeline's ``true_cfg_scale``.

    Build it with :meth:`from_pretrained`, or directly from loaded diffusers and transformers objects.

    Args:
        name: name of the model.
        transformer, vae: FluxTransformer2DModel and AutoencoderKL (or a codec around one), in evaluation mode.
        text_encoder, tokenizer: CLIPTextModel and CLIPTokenizer.
        text_encoder_2, tokenizer_2: T5EncoderModel and its tokenizer.
        scheduler: the scheduler's config.
        defaults: settings of the model, None = those of dev with a guidance input, else those of schnell.
        size: latent height and width, even numbers; None = FluxPipeline's 128 by 128.
        words: T5 tokens per prompt, None = 512 with a guidance input and 256 without, at most the tokenizer's limit.
        compat: use the schedule of ``DPMSolverMultistepScheduler``, see :class:`~lotts_search.backbones.flow.FlowTime`.
        device: device of the computation, None = that of the transformer.

    Raises:
        BadInput: the network, the scheduler, the size or ``words`` is not supported.
    """

    _embedder = "x_embedder"

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
        device: torch.device | None = None,
    ):
        self.transformer = self.network = transformer
        self._device = device
        self.codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae, device)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.scheduler = scheduler
        channels = transformer.config["in_channels"]
        if (channels, transformer.config["out_channels"] or channels) != (4 * self.codec.channels, channels):
            raise BadInput(
                f"model {name}: the transformer expects {channels} channels, but the vae has 4x{self.codec.channels}"
                " per patch; fill, depth and control models are not supported"
            )
        embedded = bool(transformer.config["guidance_embeds"])
        height, width = size or (128, 128)
        if height % 2 or width % 2 or min(height, width) < 2:
            raise BadInput(f"height and width of the latent must be even numbers, got {height}x{width}")
        self._grid = height // 2, width // 2
        tokens = self._grid[0] * self._grid[1]
        self._cached_positions: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._time = load_component(name, "scheduler", lambda: FlowTime(scheduler, tokens, compat=compat))
        limit = min(tokenizer_2.model_max_length, DEV_WORDS if embedded else SCHNELL_WORDS)
        if words is not None and words < 1:
            raise BadInput(f"words must be 1 or more, got {words}")
        self.words = limit if words is None else words
        factor, call = self.codec.factor, functools.partial(_call_with_one_row, self._grid, self.words)
        self.info = ModelInfo(
            name=name,
            family="flux",
            latent=(channels // 4, height, width),
            image=(height * factor, width * factor),
            prices=prices_of(transformer, self.codec, (height, width), call, self.without_image(tokens, call)),
            scheduler=str(scheduler.get("_class_name", "")),
            defaults=defaults or (FLUX_DEV if embedded else FLUX_SCHNELL),
            embedded_guidance=embedded,
            patch=2,
            confines=0 if compiled(transformer) else 2,
        )

    @classmethod
    def from_pretrained(cls, model: str, *, words: int | None = None, compat: bool = False, **options: Any) -> Flux:
        """Load a model in diffusers format; safetensors only, no code from the model folder.

        The default image size is the autoencoder's ``sample_size``, 1024 by 1024 pixels for the published models.

        Args:
            model: folder or Hub id.
            words, compat: see the class.
            options: the fields of :class:`~lotts_search.backbones.load_options.LoadOptions`.

        Raises:
            BadInput: the model does not exist or is not a FLUX model, or an option does not fit it.
            Failure: a file of the model is missing or broken; the message names the component.
        """
        load = Loader(model, "FluxPipeline", options, plugin=cls is not Flux)
        scheduler = load.scheduler(FlowMatchEulerDiscreteScheduler)
        codec = load.autoencoder()
        side = 2 * (codec.vae.config["sample_size"] // (2 * codec.factor))
        size = load.latent_size(2 * codec.factor, codec.factor) or (side, side)
        transformer = load.weights("transformer", FluxTransformer2DModel)
        text = load.weights("text_encoder", CLIPTextModel)
        tokenizer = load.tokenizer("tokenizer", CLIPTokenizer, text.config.max_position_embeddings)
        text_2 = load.weights("text_encoder_2", T5EncoderModel)
        tokenizer_2 = load.tokenizer("tokenizer_2", _tokenizer_class(model, load.index))
        load.settle(scheduler=None)
        defaults = load.defaults(FLUX_DEV if transformer.config["guidance_embeds"] else FLUX_SCHNELL)
        parts = transformer, codec, text, tokenizer, text_2, tokenizer_2, scheduler
        return cls(load.name, *parts, defaults, size, words, compat, load.device)

    def readers(self) -> list[tuple[Any, int]]:
        return [(self.tokenizer, self.tokenizer.model_max_length), (self.tokenizer_2, self.words)]

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str]) -> list[FluxText]:
        """Return T5's last hidden states [L, D] and CLIP's pooled output [P] per prompt, as FluxPipeline computes them.

        Neither T5 nor the transformer masks padding, so results depend on L.
        """
        long = self._ids(self.tokenizer_2, prompts, self.words)
        states = self.text_encoder_2(long.to(self.device))[0]
        short = self._ids(self.tokenizer, prompts, self.tokenizer.model_max_length)
        pooled = self.text_encoder(short.to(self.device)).pooler_output
        place = self.device, self.transformer.dtype
        return [FluxText(*pair) for pair in zip(states.to(*place).unbind(), pooled.to(*place).unbind(), strict=True)]

    def _ids(self, tokenizer: Any, prompts: list[str], length: int) -> Tensor:
        tokens = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        assert isinstance(tokens, Tensor)
        return tokens

    def with_guidance(self, conditioning: FluxText, guidance: float) -> FluxText:
        """Return the conditioning of a row with a guidance weight."""
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
        """Return the arguments of one call of the transformer."""
        text_ids, image_ids = self._positions(conditioning.states.shape[1], latents.device)
        return {
            "hidden_states": pack(latents.to(self.transformer.dtype)),
            "timestep": timesteps / self._time.levels,
            "guidance": conditioning.guidance,
            "pooled_projections": conditioning.pooled,
            "encoder_hidden_states": conditioning.states,
            "txt_ids": text_ids,
            "img_ids": image_ids,
        }

    def _positions(self, words: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the positions of text and image tokens; cached, because a CUDA graph cannot record copies from the host."""
        if (words, device) not in self._cached_positions:
            places = torch.zeros(words, 3), image_ids(self._grid)
            self._cached_positions[words, device] = places[0].to(device), places[1].to(device)
        return self._cached_positions[words, device]

    # ReadsAttention and ReadsConcepts, see lotts_search.backbones.attention.base:

    def tokens(self, prompt: str) -> list[int]:
        """Return the T5 token ids of the prompt's words, without EOS and padding; their positions are 0, 1, …"""
        return list(self.tokenizer_2(prompt, add_special_tokens=False).input_ids[: self.words - 1])

    first_token = 0
    """Position of the first word's token; T5 has no BOS."""

    def grids(self) -> dict[int, tuple[int, int]]:
        """Return the only grid, that of the image tokens."""
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
        """Return the image queries' attention to the text in the last double-stream blocks, as many as the default of
        :meth:`concept_blocks`."""
        record = JointRecorder(positions, queries, grid, self._last(self.concept_blocks(None)))
        with capture_joint(self.transformer, record):
            self.transformer(**self.network_inputs(latents, timesteps, conditioning), return_dict=False)
        return [row.to(latents.device) for row in record.rows()]

    def concept_grid(self) -> tuple[int, int]:
        return self._grid

    def concept_blocks(self, wanted: int | None) -> int:
        count = len(self.transformer.transformer_blocks)
        blocks = default_blocks(count) if wanted is None else wanted
        if not 1 <= blocks <= count:
            raise BadInput(f"blocks must be within 1..{count}, got {wanted}")
        return blocks

    def _last(self, blocks: int) -> range:
        count = len(self.transformer.transformer_blocks)
        return range(count - blocks, count)

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
        embed = functools.partial(
            embed_concepts, self.transformer, states, pooled, inputs["timestep"], conditioning.guidance
        )
        record = ConceptRecorder(embed, valid, weights, queries, self._grid, self._last(blocks))
        with capture_joint(self.transformer, record):
            self.transformer(**inputs, return_dict=False)
        return [row.to(latents.device) for row in record.rows()]


def pack(latents: Tensor) -> Tensor:
    """Return [B, C, H, W] latents as [B, H/2·W/2, 4·C] tokens, one per 2×2 patch, row by row."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), 4 * channels)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Invert :func:`pack` for a grid of (H/2, W/2) tokens."""
    batch, _, size = tokens.shape
    patches = tokens.view(batch, *grid, size // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, size // 4, 2 * grid[0], 2 * grid[1])


def image_ids(grid: tuple[int, int]) -> Tensor:
    """Return the positions [h·w, 3] of the image tokens for the rotary embedding: (0, row, column)."""
    ids = torch.zeros(*grid, 3)
    ids[..., 1] += torch.arange(grid[0])[:, None]
    ids[..., 2] += torch.arange(grid[1])[None, :]
    return ids.view(-1, 3)


def _tokenizer_class(model: str, index: dict[str, Any]) -> Any:
    """Return the class of ``tokenizer_2`` that model_index.json names, which must be one of transformers."""
    library, name = (index.get("tokenizer_2") or ["transformers", "T5TokenizerFast"])[:2]
    found = getattr(transformers, str(name), None) if library == "transformers" else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
        raise BadInput(f"model {model}: tokenizer_2 is a {library}.{name}, not a tokenizer of transformers")
    return found


def _call_with_one_row(grid: tuple[int, int], words: int, network: Any) -> None:
    config, tokens = network.config, grid[0] * grid[1]
    network(
        hidden_states=torch.empty(1, tokens, config["in_channels"]),
        encoder_hidden_states=torch.empty(1, words, config["joint_attention_dim"]),
        pooled_projections=torch.empty(1, config["pooled_projection_dim"]),
        timestep=torch.empty(1),
        img_ids=torch.empty(tokens, 3),
        txt_ids=torch.empty(words, 3),
        guidance=torch.empty(1) if config["guidance_embeds"] else None,
    )
