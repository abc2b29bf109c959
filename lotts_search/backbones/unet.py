"""The common part of Stable Diffusion and SDXL: a U-Net on discrete timesteps, CLIP text and cross-attention maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lotts_search.backbones.attention.base import RowAttention
from lotts_search.backbones.attention.recorder import compiled
from lotts_search.backbones.attention.unet import capture_unet, unet_grids
from lotts_search.backbones.codec import LatentCodec
from lotts_search.backbones.confined_unet import UNetConfined
from lotts_search.backbones.discrete import DiscreteTime
from lotts_search.backbones.model_folder import load_component
from lotts_search.backbones.network import NetworkBackbone, prices_of
from lotts_search.backbones.unet_layers import layers
from lotts_search.errors import BadInput
from lotts_search.work.model import Defaults, ModelInfo


class UNetBackbone(UNetConfined, NetworkBackbone):
    """A :class:`~lotts_search.backbones.base.Backbone` around a U-Net, except for its text.

    A family adds ``encode_prompts``, ``stack``, :meth:`_call` and :meth:`_example`.

    Args:
        name: name of the model.
        family: e.g. ``stable-diffusion``.
        unet: UNet2DConditionModel, in evaluation mode.
        codec: its autoencoder.
        tokenizer: CLIPTokenizer whose positions are those of the network's text.
        scheduler: the scheduler's config.
        defaults: settings of the model.
        size: latent height and width, None = the size that the U-Net was trained on.
        device: device of the computation, None = that of the U-Net.
        own_timesteps: use the steps of the folder's scheduler instead of those of DPM-Solver++, see
            :class:`DiscreteTime`.

    Raises:
        BadInput: the network or the scheduler is not supported.
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
        self.unet = self.network = unet
        self.codec, self.vae, self.tokenizer = codec, codec.vae, tokenizer
        self.scheduler = scheduler
        self._dtype = unet.dtype  # stored, because the network's own property searches all weights
        self._device = device
        self._time = load_component(name, "scheduler", lambda: DiscreteTime(scheduler, name, own=own_timesteps))
        _check(name, unet, codec)
        side = unet.config["sample_size"]
        height, width = self._size = size or ((side, side) if isinstance(side, int) else side)
        confines = int(bool(layers(unet, self._size)) and not compiled(unet))

        def call(copy: Any) -> None:
            self._call(copy, torch.empty(1, codec.channels, height, width), torch.empty(1), self._example())

        self.info = ModelInfo(
            name=name,
            family=family,
            latent=(codec.channels, height, width),
            image=(height * codec.factor, width * codec.factor),
            prices=prices_of(unet, codec, self._size, call, self.without_image(call) if confines else None),
            scheduler=str(scheduler.get("_class_name", "")),
            defaults=defaults,
            confines=confines,
        )

    def _call(self, network: Any, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call ``network`` (the U-Net or a copy of it) with the family's conditioning."""
        raise NotImplementedError

    def _example(self) -> Any:
        """Return a stacked conditioning of one row with the right shapes, on the current default device."""
        raise NotImplementedError

    @torch.inference_mode()
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        return self._call(self.unet, latents.to(self._dtype), timesteps, conditioning).float()

    # ReadsAttention, see lotts_search.backbones.attention.base:

    def tokens(self, prompt: str) -> list[int]:
        """Return the token ids of the prompt's words, without BOS, EOS and padding; their positions are 1, 2, …"""
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        return list(ids[: self.tokenizer.model_max_length - 2])

    first_token = 1
    """Position of the first word's token, after BOS."""

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
        return [row.to(latents.device) for row in record.rows()]


def clip_tokens(tokenizer: Any, prompts: list[str]) -> Any:
    """Pad and truncate prompts as the Stable Diffusion pipelines do: ``input_ids`` and ``attention_mask`` [B, L]."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def _check(name: str, unet: Any, codec: LatentCodec) -> None:
    config = unet.config
    if config["in_channels"] != codec.channels:
        raise BadInput(
            f"model {name}: the unet expects {config['in_channels']} channels, but the vae has {codec.channels};"
            " inpainting and depth models are not supported"
        )
    if config["out_channels"] != config["in_channels"]:
        raise BadInput(f"model {name}: the unet predicts a variance as well; such models are not supported")
    if config.get("time_cond_proj_dim") is not None:
        raise BadInput(
            f"model {name}: the guidance weight is an input of the unet (a latent consistency model); not supported"
        )
