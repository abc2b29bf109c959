"""Stable Diffusion XL in diffusers format: two text encoders, a pooled embedding and time ids; ε- or v-prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.defaults import STABLE_DIFFUSION_XL
from lotts_search.backbones.loading import Loader
from lotts_search.backbones.unet import UNetBackbone, clip_tokens
from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults


@dataclass(frozen=True)
class SDXLText:
    """The inputs of SDXL's network for a prompt: of one row, or stacked with a first dimension of rows.

    Attributes:
        text: [L, D], the concatenated states of the two encoders.
        pooled: [P], the second encoder's projected embedding.
        time_ids: [6], original height and width, crop top and left, target height and width.
    """

    text: Tensor
    pooled: Tensor
    time_ids: Tensor


class StableDiffusionXL(UNetBackbone):
    """An SDXL model as a :class:`~lotts_search.backbones.base.Backbone`.

    Build it with :meth:`from_pretrained`, or directly from loaded diffusers and transformers objects.

    Args:
        name: name of the model.
        unet, vae: UNet2DConditionModel and AutoencoderKL (or a codec around one), in evaluation mode.
        text_encoder, tokenizer: CLIPTextModel and CLIPTokenizer.
        text_encoder_2, tokenizer_2: CLIPTextModelWithProjection and CLIPTokenizer.
        scheduler: the scheduler's config.
        defaults: settings of the model.
        size: latent height and width, None = the size that the U-Net was trained on.
        device: device of the computation, None = that of the U-Net.
        own_timesteps: use the steps of the folder's scheduler instead of those of DPM-Solver++.
        zero_empty: ``force_zeros_for_empty_prompt`` of the model index: encode the prompt "" as zeros, as
            StableDiffusionXLPipeline does without a negative prompt.
    """

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        scheduler: dict[str, Any],
        defaults: Defaults = STABLE_DIFFUSION_XL,
        size: tuple[int, int] | None = None,
        device: torch.device | None = None,
        own_timesteps: bool = False,
        *,
        zero_empty: bool = True,
    ):
        if unet.config.get("addition_embed_type") != "text_time":
            raise BadInput(
                f"model {name}: the unet has no inputs for pooled text and time ids, so it is not an SDXL unet"
            )
        if tokenizer.model_max_length != tokenizer_2.model_max_length:
            raise BadInput(f"model {name}: its two tokenizers truncate prompts at different lengths")
        self.text_encoder, self.text_encoder_2, self.tokenizer_2 = text_encoder, text_encoder_2, tokenizer_2
        self.zero_empty = zero_empty
        self._length = tokenizer.model_max_length
        codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae, device)
        parts = unet, codec, tokenizer, scheduler
        super().__init__(name, "stable-diffusion-xl", *parts, defaults, size, device, own_timesteps)

    @classmethod
    def from_pretrained(cls, model: str, *, own_timesteps: bool = False, **options: Any) -> StableDiffusionXL:
        """Load a model in diffusers format; safetensors only, no code from the model folder.

        Args:
            model: folder or Hub id.
            own_timesteps: see the class.
            options: the fields of :class:`~lotts_search.backbones.load_options.LoadOptions`.

        Raises:
            BadInput: the model does not exist or is not an SDXL model, or an option does not fit it.
            Failure: a file of the model is missing or broken; the message names the component.
        """
        load = Loader(model, "StableDiffusionXLPipeline", options, plugin=cls is not StableDiffusionXL)
        scheduler = load.scheduler(DPMSolverMultistepScheduler)
        codec = load.autoencoder()
        size = load.latent_size(codec.factor, codec.factor)
        unet = load.weights("unet", UNet2DConditionModel)
        text = load.weights("text_encoder", CLIPTextModel)
        tokenizer = load.tokenizer("tokenizer", CLIPTokenizer, text.config.max_position_embeddings)
        text_2 = load.weights("text_encoder_2", CLIPTextModelWithProjection)
        tokenizer_2 = load.tokenizer("tokenizer_2", CLIPTokenizer, text_2.config.max_position_embeddings)
        load.settle(scheduler=None, add_watermarker=False)
        return cls(
            load.name,
            unet,
            codec,
            text,
            tokenizer,
            text_2,
            tokenizer_2,
            scheduler,
            load.defaults(STABLE_DIFFUSION_XL),
            size,
            load.device,
            own_timesteps,
            zero_empty=bool(load.index.get("force_zeros_for_empty_prompt", True)),
        )

    def readers(self) -> list[tuple[Any, int]]:
        return [(self.tokenizer, self._length), (self.tokenizer_2, self._length)]

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str]) -> list[SDXLText]:
        """Return the second-to-last hidden states of both encoders and the pooled text of each prompt, as
        StableDiffusionXLPipeline computes them."""
        states, pooled = [], torch.empty(0)
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            ids = clip_tokens(tokenizer, prompts).input_ids.to(self.device)
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled = output[0]  # that of the second encoder remains
        text, pooled = torch.cat(states, dim=-1).to(self._dtype), pooled.to(self._dtype)
        if self.zero_empty:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=text.device)
            text, pooled = text.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
        size = self.info.image
        ids = torch.tensor([*size, 0, 0, *size], dtype=text.dtype, device=text.device)
        return [SDXLText(row, vector, ids) for row, vector in zip(text, pooled, strict=True)]

    def stack(self, conditionings: list[SDXLText]) -> SDXLText:
        return SDXLText(
            torch.stack([one.text for one in conditionings]),
            torch.stack([one.pooled for one in conditionings]),
            torch.stack([one.time_ids for one in conditionings]),
        )

    def _call(self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: SDXLText) -> Tensor:
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
        output: Tensor = network(latents, timesteps, conditioning.text, added_cond_kwargs=added, return_dict=False)[0]
        return output

    def _example(self) -> SDXLText:
        text = torch.empty(1, self._length, self.unet.config["cross_attention_dim"])
        pooled = torch.empty(1, self.text_encoder_2.config.projection_dim)
        return SDXLText(text, pooled, torch.empty(1, 6))
