"""ImageReward: BLIP with a linear head, trained on rankings by experts. torch is imported when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lotts_search.backbones.model_folder import read_json
from lotts_search.verifiers.networks import Dtype, Tokens, distinct, in_batches, linear_stack, place
from lotts_search.verifiers.pixels import cropped, normalized
from lotts_search.verifiers.weights import fill, find_file
from lotts_search.work.requests import Bytes, Floats

if TYPE_CHECKING:
    import torch

PUBLISHED: Mapping[str, Any] = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {"num_attention_heads": 12},  # otherwise transformers' defaults, which are those of BERT-base
}
"""Sizes of BLIP-large as ImageReward uses it, in transformers' format."""
LENGTH = 35
"""Tokens of a prompt; shorter ones are padded."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the head's output in training, which the score removes."""
_NAMES = {
    r"^vision\.embeddings\.class_embedding": "blip.visual_encoder.cls_token",
    r"^vision\.embeddings\.position_embedding": "blip.visual_encoder.pos_embed",
    r"^vision\.embeddings\.patch_embedding\.": "blip.visual_encoder.patch_embed.proj.",
    r"^vision\.post_layernorm\.": "blip.visual_encoder.norm.",
    r"^vision\.encoder\.layers\.": "blip.visual_encoder.blocks.",
    r"\.layer_norm(\d)\.": r".norm\1.",
    r"\.self_attn\.projection\.": ".attn.proj.",
    r"\.self_attn\.": ".attn.",
    r"^text\.": "blip.text_encoder.",
    r"^head\.": "mlp.layers.",
}
"""What to replace in the names of our weights to get the published ones, in this order."""


class ImageReward:
    """``image-reward`` of Xu et al. 2023: a standardised estimate of human preference, about -3..3; above 0 is better than the
    average image of its training.
    """

    name = "image-reward"
    requirements: tuple[str, ...] = ()
    pad = False

    def __init__(self, network: torch.nn.ModuleDict, tokens: Tokens, batch: int):
        self.network: Any = network
        self.tokens = tokens
        self.batch = batch

    @classmethod
    def load(
        cls,
        *,
        weights: str = "THUDM/ImageReward",
        tokenizer: str | None = None,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch: int = 16,
    ) -> ImageReward:
        """Load the verifier. A config.json of transformers' BLIP beside the weights gives other sizes than BLIP-large.

        Args:
            weights: a .pt or .safetensors file, or a folder or Hub id with ImageReward.pt.
            tokenizer: folder or Hub id of BERT's tokenizer; none = that beside the weights, or bert-base-uncased.
            device: torch device, e.g. cpu or cuda.
            dtype: precision of the network; the head computes in float32.
            batch: most images in one call.

        Raises:
            BadInput, Failure: a file is missing or broken, or a setting is wrong.
        """
        file = find_file(cls.name, weights, "ImageReward.pt")
        where, precision = place(cls.name, device, dtype)
        sizes = read_json(str(file.parent), "config.json", optional=True)
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            network = _network(sizes if "vision_config" in sizes else PUBLISHED)
        fill(network, file, published)
        network.to(where, precision)["head"].float()
        tokens = Tokens(cls.name, "BertTokenizer", file.parent, tokenizer, "google-bert/bert-base-uncased", LENGTH)
        return cls(network, tokens, batch)

    @cached_property
    def flops(self) -> float:
        """Those of an image with its prompt."""
        vision, text = self.network["vision"].config, self.network["text"].config
        return flops({"vision_config": vision.to_dict(), "text_config": text.to_dict()})

    def score(self, prompts: list[str], images: Bytes) -> Floats:
        """Return the scores [B] of uint8 images [B, h, w, 3] for ``prompts`` [B]."""
        once, places = distinct(prompts)
        read = self.tokens(once, padding="max_length")
        ids, mask = read["input_ids"][places], read["attention_mask"][places]
        vision, text, head = (self.network[part] for part in ("vision", "text", "head"))
        where, side = vision.device, vision.config.image_size

        def call(rows: slice) -> torch.Tensor:
            pixels = normalized(cropped(images[rows], side, round)).to(where, vision.dtype)
            # The text attends to the patches in every layer, so that a prompt is encoded anew for each image.
            found = text(
                input_ids=ids[rows].to(where),
                attention_mask=mask[rows].to(where),
                encoder_hidden_states=vision(pixel_values=pixels).last_hidden_state,
                is_decoder=False,
            )
            rewards: torch.Tensor = head(found.last_hidden_state[:, 0].float())[:, 0]
            return (rewards - MEAN) / STD

        scores: Floats = in_batches(call, len(images), self.batch).cpu().numpy()
        return scores.astype(np.float32, copy=False)


def flops(sizes: Mapping[str, Any] = PUBLISHED) -> float:
    """Count the floating-point operations of one score by a network of these sizes."""
    import torch

    from lotts_search.backbones.flops import count_flops

    def call(network: Any) -> None:
        side = network["vision"].config.image_size
        patches = network["vision"](pixel_values=torch.empty(1, 3, side, side)).last_hidden_state
        words = torch.ones(1, LENGTH, dtype=torch.int64)
        found = network["text"](input_ids=words, encoder_hidden_states=patches, is_decoder=False)
        network["head"](found.last_hidden_state[:, 0])

    return count_flops(lambda: _network(sizes), call)


def published(name: str) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the name of a weight in the published checkpoint, which has the same shape."""
    for pattern, replacement in _NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name, lambda value: value


def _network(sizes: Mapping[str, Any]) -> torch.nn.ModuleDict:
    """Return vision tower, text tower and head."""
    from torch import nn
    from transformers import BlipConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    config = BlipConfig(vision_config=dict(sizes["vision_config"]), text_config=dict(sizes["text_config"]))
    return nn.ModuleDict(
        {
            "vision": BlipVisionModel(config.vision_config),
            "text": BlipTextModel(config.text_config, add_pooling_layer=False),
            "head": linear_stack(config.text_config.hidden_size),
        }
    )
