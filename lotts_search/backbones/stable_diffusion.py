"""Stable Diffusion 1.x and 2.x: any diffusers-format folder or hub id, ε- and v-prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, CLIPTokenizer

from lotts_search.backbones.base import Defaults, ModelInfo, Schedule
from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.backbones.folder import defaults_of, load_component, load_weights, read_json
from lotts_search.errors import BadInput
from lotts_search.localization.attention import RowAttention
from lotts_search.localization.capture import capture_unet, unet_grids

DEFAULTS = Defaults(steps=50, guidance=7.5, t0=25, integrate=5)
"""The paper's settings for SD2.1 (LoTTS, implementation details)."""


class StableDiffusion:
    """A Stable Diffusion model behind the :class:`~lotts_search.backbones.base.Backbone` interface.

    Build it with :meth:`from_pretrained`, or directly from loaded diffusers and transformers objects.

    Args:
        name: as the user named it.
        unet, vae, text_encoder, tokenizer: UNet2DConditionModel, AutoencoderKL, CLIPTextModel and CLIPTokenizer, on
            their device and in evaluation mode.
        scheduler: the scheduler's config.
        defaults: the model's own settings.
        size: latent height and width, None = the size the U-Net was trained on.
    """

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: dict[str, Any],
        defaults: Defaults = DEFAULTS,
        size: tuple[int, int] | None = None,
    ):
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.scheduler = scheduler
        self._time = DiscreteTime(scheduler)
        if self._time.prediction not in ("epsilon", "v_prediction", "sample"):
            raise BadInput(f"model {name}: prediction type {self._time.prediction!r} is not supported")
        if unet.config["in_channels"] != vae.config["latent_channels"]:
            raise BadInput(
                f"model {name}: the unet takes {unet.config['in_channels']} channels, the vae gives"
                f" {vae.config['latent_channels']}; inpainting and depth models are not supported"
            )
        side = unet.config["sample_size"]
        height, width = size or ((side, side) if isinstance(side, int) else side)
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.info = ModelInfo(
            name=name,
            family="stable-diffusion",
            latent=(unet.config["in_channels"], height, width),
            image=(height * factor, width * factor),
            flops_per_row=_flops_per_row(unet, (height, width), tokenizer.model_max_length),
            defaults=defaults,
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
    ) -> StableDiffusion:
        """Load a diffusers-format folder or hub id; safetensors only, never code from outside.

        Args:
            model: folder or hub id.
            device: torch device, None = CUDA where there is one.
            dtype: of network, text encoder and autoencoder: float32, bfloat16 or float16.
            size: height and width of the pictures in pixels, None = the model's own.
            revision, variant: as in diffusers.
            name: what to call the model, None = ``model``.

        Raises:
            BadInput: no such model, not a Stable Diffusion folder, or an option that does not fit it.
            Failure: a file of the folder is missing or broken; the message names the component.
        """
        index = read_json(model, "model_index.json", revision=revision)
        if index.get("_class_name") != "StableDiffusionPipeline":
            raise BadInput(f"model {model} is a {index.get('_class_name')}, not a StableDiffusionPipeline")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        number = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if number not in (torch.float32, torch.bfloat16, torch.float16):
            raise BadInput(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        source = {} if revision is None else {"revision": revision}
        weights = source | ({} if variant is None else {"variant": variant})
        unet = load_weights(model, "unet", UNet2DConditionModel, torch_dtype=number, **weights).to(place)
        vae = load_weights(model, "vae", AutoencoderKL, torch_dtype=number, **weights).to(place)
        text = load_weights(model, "text_encoder", CLIPTextModel, dtype=number, **weights).to(place)
        tokenizer = load_component(model, "tokenizer", lambda: _tokenizer(model, text, **source))
        plan: Any = DPMSolverMultistepScheduler
        scheduler = load_component(model, "scheduler", lambda: plan.load_config(model, subfolder="scheduler", **source))
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        if size is not None and (min(size) < factor or size[0] % factor or size[1] % factor):
            raise BadInput(f"height and width must be multiples of {factor} pixels, got {size[0]}x{size[1]}")
        latent = None if size is None else (size[0] // factor, size[1] // factor)
        defaults = defaults_of(model, DEFAULTS, revision)
        return cls(name or model, unet, vae, text, tokenizer, scheduler, defaults, latent)

    @property
    def device(self) -> torch.device:
        return torch.device(self.unet.device)

    def schedule(self, steps: int) -> Schedule:
        return self._time.schedule(steps)

    def train_level(self, timestep: int) -> tuple[float, float]:
        return self._time.train_level(timestep)

    @torch.inference_mode()
    def encode_prompts(self, prompts: list[str]) -> list[Tensor]:
        """The text encoder's last hidden state [L, D] of each prompt, as StableDiffusionPipeline computes it."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        attended = getattr(self.text_encoder.config, "use_attention_mask", None)
        mask = tokens.attention_mask.to(self.device) if attended else None
        states = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return list(states.to(self.unet.dtype).unbind())

    def stack(self, conditionings: list[Tensor]) -> Tensor:
        return torch.stack(conditionings)

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        output = self.unet(latents.to(self.unet.dtype), timesteps, conditioning, return_dict=False)[0]
        predicted: Tensor = output.float()
        return predicted

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        match self._time.prediction:
            case "epsilon":
                return (latents - sigma * output) / alpha
            case "v_prediction":
                return alpha * latents - sigma * output
            case _:
                return output

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        scaled = latents / self.vae.config["scaling_factor"]
        pictures = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()
        pictures = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy())

    @torch.inference_mode()
    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        pictures = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        posterior = self.vae.encode((pictures.float() / 127.5 - 1).to(self.vae.dtype)).latent_dist
        latents: Tensor = posterior.mean.float() * self.vae.config["scaling_factor"]
        return latents

    # What localization by attention needs beyond a backbone: see lotts_search.localization.attention.Attentive.

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of the prompt's words, without BOS, EOS and padding; their positions are 1, 2, …"""
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        return list(ids[: self.tokenizer.model_max_length - 2])

    first_token = 1
    """Position of the first word's token: BOS comes before it."""

    def grids(self) -> dict[int, tuple[int, int]]:
        return unet_grids(self.unet, self.info.latent[1:])

    @torch.inference_mode()
    def attend(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Tensor,
        positions: list[list[int]],
        queries: list[bool],
        grid: tuple[int, int],
    ) -> list[RowAttention]:
        with capture_unet(self.unet, positions, queries, grid) as record:
            self.predict(latents, timesteps, conditioning)
        return record.rows()


def _tokenizer(model: str, text_encoder: Any, **source: str) -> Any:
    cls: Any = CLIPTokenizer
    tokenizer = cls.from_pretrained(model, subfolder="tokenizer", **source)
    # Without its files the tokenizer loads all the same, with special tokens only.
    if len(tokenizer) < 10:
        raise ValueError("its vocabulary is missing")
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    return tokenizer


def _flops_per_row(unet: Any, size: tuple[int, int], words: int) -> float:
    """Floating-point operations of one network row, counted on a copy without weights."""
    with torch.device("meta"):
        network: Any = UNet2DConditionModel
        shadow = network.from_config(dict(unet.config))
        latents = torch.empty(1, unet.config["in_channels"], *size)
        text = torch.empty(1, words, unet.config["cross_attention_dim"])
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            shadow(latents, torch.empty(1), text)
    return float(counter.get_total_flops())
