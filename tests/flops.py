"""An independent count of floating-point operations: by hooks on the layers of real modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.models.clip.modeling_clip import CLIPAttention


def by_hooks(module: nn.Module, call: Callable[[], object]) -> float:
    """Return the FLOPs of the linear layers, convolutions and attentions of ``module`` during ``call``."""
    total = 0.0

    def count(part: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        nonlocal total
        hidden = inputs[0] if inputs else kwargs["hidden_states"]
        if isinstance(part, nn.Linear):
            total += 2 * output.numel() * part.in_features
        elif isinstance(part, nn.Conv2d):
            total += 2 * output.numel() * part.in_channels / part.groups * math.prod(part.kernel_size)
        elif isinstance(part, nn.MultiheadAttention):  # its projections are no layers that hooks see
            tokens, width = hidden.shape[1:]
            total += 2 * 4 * tokens * width**2 + 2 * 2 * tokens**2 * width
        else:
            queries = math.prod(hidden.shape[2:]) if hidden.ndim == 4 else hidden.shape[1]
            other = inputs[2] if isinstance(part, BlipTextSelfAttention) and len(inputs) > 2 else None
            other = kwargs.get("encoder_hidden_states") if other is None else other
            total += 2 * 2 * queries * (queries if other is None else other.shape[1]) * _width(part)

    kinds = (
        nn.Linear, nn.Conv2d, nn.MultiheadAttention, Attention, BlipAttention, BlipTextSelfAttention, CLIPAttention
    )  # fmt: skip
    hooks = [
        part.register_forward_hook(count, with_kwargs=True) for part in module.modules() if isinstance(part, kinds)
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return total


def _width(part: Any) -> int:
    """Return the width of all heads of an attention together."""
    if isinstance(part, BlipTextSelfAttention):
        return int(part.all_head_size)
    return int(part.inner_dim if isinstance(part, Attention) else part.embed_dim)
