"""Stable Diffusion 1.x and 2.x in diffusers format, with ε- or v-prediction."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.defaults import STABLE_DIFFUSION
from lotts_search.backbones.discrete import corrected
from lotts_search.backbones.loading import Loader
from lotts_search.backbones.unet import UNetBackbone, clip_tokens
from lotts_search.work.model import Defaults


class StableDiffusion(UNetBackbone):
    """A Stable Diffusion model as a :class:`~lotts_search.backbones.base.Backbone`.

    Build it with :meth:`from_pretrained`, or directly from loaded diffusers and transformers objects.

    Args:
        name: name of the model.
        unet, vae, text_encoder, tokenizer: UNet2DConditionModel, AutoencoderKL (or a codec around one), CLIPTextModel
            and CLIPTokenizer, in evaluation mode.
        scheduler: the scheduler's config.
        defaults: settings of the model.
        size: latent height and width, None = the size that the U-Net was trained on.
        device: device of the computation, None = that of the U-Net.
        own_timesteps: use the steps of the folder's scheduler instead of those of DPM-Solver++.
    """

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: dict[str, Any],
        defaults: Defaults = STABLE_DIFFUSION,
        size: tuple[int, int] | None = None,
        device: torch.device | None = None,
        own_timesteps: bool = False,
    ):
        self.text_encoder = text_encoder
        self._length = tokenizer.model_max_length
        codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae, device)
        parts = unet, codec, tokenizer, corrected(scheduler) if own_timesteps else scheduler
        super().__init__(name, "stable-diffusion", *parts, defaults, size, device, own_timesteps)

    @classmethod
    def from_pretrained(cls, model: str, *, own_timesteps: bool = False, **options: Any) -> StableDiffusion:
        """Load a model in diffusers format; safetensors only, no code from the model folder.

        Args:
            model: folder or Hub id.
            own_timesteps: see the class.
            options: the fields of :class:`~lotts_search.backbones.load_options.LoadOptions`.

        Raises:
            BadInput: the model does not exist or is not a Stable Diffusion model, or an option does not fit it.
            Failure: a file of the model is missing or broken; the message names the component.
        """
        load = Loader(model, "StableDiffusionPipeline", options, plugin=cls is not StableDiffusion)
        scheduler = load.scheduler(DPMSolverMultistepScheduler)
        codec = load.autoencoder()
        size = load.latent_size(codec.factor, codec.factor)
        unet = load.weights("unet", UNet2DConditionModel)
        text = load.weights("text_encoder", CLIPTextModel)
        tokenizer = load.tokenizer("tokenizer", CLIPTokenizer, text.config.max_position_embeddings)
        load.settle(scheduler=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        defaults = load.defaults(STABLE_DIFFUSION)
        return cls(load.name, unet, codec, text, tokenizer, scheduler, defaults, size, load.device, own_timesteps)

    def readers(self) -> list[tuple[Any, int]]:
        return [(self.tokenizer, self._length)]

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str]) -> list[Tensor]:
        """Return the text encoder's last hidden state [L, D] of each prompt, as StableDiffusionPipeline computes it."""
        tokens = clip_tokens(self.tokenizer, prompts)
        attended = getattr(self.text_encoder.config, "use_attention_mask", None)
        mask = tokens.attention_mask.to(self.device) if attended else None
        states = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return list(states.to(self._dtype).unbind())

    def stack(self, conditionings: list[Tensor]) -> Tensor:
        return torch.stack(conditionings)

    def _call(self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        output: Tensor = network(latents, timesteps, conditioning, return_dict=False)[0]
        return output

    def _example(self) -> Tensor:
        return torch.empty(1, self._length, self.unet.config["cross_attention_dim"])
