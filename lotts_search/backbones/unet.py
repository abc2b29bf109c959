"""What Stable Diffusion and SDXL have in common: a U-Net on discrete timesteps, CLIP text, cross-attention to read."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lotts_search.backbones.attention.base import RowAttention
from lotts_search.backbones.attention.unet_sd3 import capture_unet, unet_grids
from lotts_search.backbones.codec import Coded, LatentCodec
from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults, ModelInfo, Schedule


class UNetBackbone(Coded):
    """A U-Net diffusion model behind the :class:`~lotts_search.backbones.base.Backbone` interface, but for its text.

    A family adds ``encode_prompts``, ``stack`` and :meth:`_ask`.

    Args:
        name: as the user named it.
        family: e.g. ``stable-diffusion``.
        unet: UNet2DConditionModel, in evaluation mode.
        codec: its autoencoder.
        tokenizer: CLIPTokenizer whose positions are those of the network's text.
        scheduler: the scheduler's config.
        defaults: the model's own settings.
        size: latent height and width, None = the size the U-Net was trained on.
        device: where it computes, None = where the U-Net is.
        own_timesteps: lay the steps as the folder's scheduler does, see :class:`DiscreteTime`; otherwise as
            DPM-Solver++ does.

    Raises:
        BadInput: a network or a scheduler of a kind that is not supported.
    """

    def __init__(
        self,
        name: str,
        family: str,
        unet: Any,
        codec: LatentCodec,
        tokenizer: Any,
        scheduler: dict[str, Any],
        defaults: Defaults,
        size: tuple[int, int] | None,
        device: torch.device | None = None,
        own_timesteps: bool = False,
    ):
        self.unet, self.codec, self.vae, self.tokenizer = unet, codec, codec.vae, tokenizer
        self.scheduler = scheduler
        self._dtype = unet.dtype  # asked of the network, it is searched among all its weights
        self._device = device
        self._time = DiscreteTime(scheduler, name, own=own_timesteps)
        _check(name, unet, codec)
        side = unet.config["sample_size"]
        height, width = size or ((side, side) if isinstance(side, int) else side)
        self.info = ModelInfo(
            name=name,
            family=family,
            latent=(codec.channels, height, width),
            image=(height * codec.factor, width * codec.factor),
            flops_per_row=self._flops_per_row(height, width),
            defaults=defaults,
        )

    @property
    def device(self) -> torch.device:
        return self._device or torch.device(self.unet.device)

    def schedule(self, steps: int) -> Schedule:
        return self._time.schedule(steps)

    def train_level(self, timestep: int) -> tuple[float, float]:
        return self._time.train_level(timestep)

    def _ask(self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call ``network`` (the U-Net or a copy of it) with what the family's conditioning holds."""
        raise NotImplementedError

    def _example(self) -> Any:
        """A stacked conditioning of one row, of the right shapes, on the current default device."""
        raise NotImplementedError

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        return self._ask(self.unet, latents.to(self._dtype), timesteps, conditioning).float()

    def to_x0(self, output: Tensor, latents: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        match self._time.prediction:
            case "epsilon":
                return (latents - sigma * output) / alpha
            case "v_prediction":
                return alpha * latents - sigma * output
            case _:
                return output

    # What localization by attention needs beyond a backbone: see lotts_search.backbones.attention.base.ReadsAttention.

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
        conditioning: Any,
        positions: list[list[int]],
        queries: list[bool],
        grid: tuple[int, int],
    ) -> list[RowAttention]:
        with capture_unet(self.unet, positions, queries, grid) as record:
            self.predict(latents, timesteps, conditioning)
        return record.rows()

    def _flops_per_row(self, height: int, width: int) -> float:
        """Floating-point operations of one network row, counted on a copy without weights."""
        with torch.device("meta"):
            network: Any = UNet2DConditionModel
            shadow = network.from_config(dict(self.unet.config))
            latents = torch.empty(1, self.codec.channels, height, width)
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), counter:
                self._ask(shadow, latents, torch.empty(1), self._example())
        return float(counter.get_total_flops())


def clip_tokens(tokenizer: Any, prompts: list[str]) -> Any:
    """Prompts padded and cut as the Stable Diffusion pipelines do: ``input_ids`` and ``attention_mask`` [B, L]."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def _check(name: str, unet: Any, codec: LatentCodec) -> None:
    config = unet.config
    if config["in_channels"] != codec.channels:
        raise BadInput(
            f"model {name}: the unet takes {config['in_channels']} channels, the vae gives {codec.channels};"
            " inpainting and depth models are not supported"
        )
    if config["out_channels"] != config["in_channels"]:
        raise BadInput(f"model {name}: the unet predicts a variance as well; such models are not supported")
    if config.get("time_cond_proj_dim") is not None:
        raise BadInput(
            f"model {name}: the unet is told the guidance weight (a latent consistency model); not supported"
        )
