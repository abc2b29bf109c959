"""What layers of a U-Net do in a confined call: the ``forward`` of group norms and convolutions, and the keys of self-attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.backbones.confined import Frozen
from lotts_search.backbones.unet_layers import Grid, Layer, active_at, around

CACHED = 12 << 20
"""Bytes of gathered inputs that a CPU multiplies at once, or as many as the weights have: more leave its cache."""


class Call:
    """What the layers of one confined call share.

    Args:
        latent: its height and width.
        frozen: of each row.
    """

    def __init__(self, latent: Grid, frozen: list[Frozen]):
        self.latent, self.frozen = latent, frozen
        self._places: dict[Any, Tensor] = {}
        self._memory: dict[torch.device, Tensor] = {}

    def memory(self, like: Tensor, tokens: int) -> Tensor:
        """Return memory [tokens, C] for tokens like those [..., C]. The next convolution gets the same memory, which the system
        need not map anew."""
        memory = self._memory.get(like.device)
        if memory is None or memory.numel() < tokens * like.shape[-1]:
            memory = self._memory[like.device] = like.new_empty(tokens * like.shape[-1])
        return memory[: tokens * like.shape[-1]].view(tokens, -1)

    def inputs(self, layer: Layer, tokens: Tensor) -> Tensor:
        """Return what a convolution reads of all rows, one after another: the active tokens [B, A, C], the frozen ones beside them, and a
        zero."""
        zero = tokens.new_zeros(1, tokens.shape[-1])
        kept = [frozen.kept[layer.module] for frozen in self.frozen]
        parts = [part for pair in zip(tokens.contiguous(), kept, strict=True) for part in (*pair, zero)]
        return torch.cat(parts, out=self.memory(tokens, sum(map(len, parts))))

    def places(self, layer: Layer, device: torch.device) -> Tensor:
        """Return the places [B·A·9] among :meth:`inputs` that the active outputs of a convolution read."""
        key = layer.grid, layer.to, device
        if key not in self._places:
            found, first = [], 0
            for frozen in self.frozen:
                places, beside = around(frozen, layer, self.latent)
                found.append((places + first).flatten())
                first += len(active_at(frozen, layer.grid, self.latent)[0]) + len(beside) + 1
            self._places[key] = torch.cat(found).to(device)
        return self._places[key]


def as_tokens(image: Tensor) -> Tensor:
    """Return [B, C, h, w] as tokens [B, N, C]."""
    return image.flatten(2).transpose(1, 2)


def as_image(tokens: Tensor) -> Tensor:
    """Return tokens [B, A, C] as an image [B, C, A, 1] in channels-last format."""
    return tokens[:, :, None].permute(0, 3, 1, 2)


def sums(norm: nn.GroupNorm, tokens: Tensor) -> Tensor:
    """Return sums and sums of squares [2, B, G] of the groups of tokens [B, N, C]."""
    # In one pass, and because of weights in float32 as well, whatever the dtype of the tokens is.
    one = torch.ones(norm.num_channels, device=tokens.device)
    found = [torch.native_batch_norm(row, one, one, None, None, True, 0.0, norm.eps)[1:] for row in tokens]
    mean, scale = torch.stack([torch.stack(pair) for pair in found], 1)
    moments = torch.stack([mean, scale**-2 - norm.eps + mean.square()])
    return tokens.shape[1] * moments.view(2, len(tokens), norm.num_groups, -1).sum(-1)


def normalize(layer: Layer, call: Call) -> Callable[[Tensor], Tensor]:
    """Return the ``forward`` of a group norm whose statistics are those of active and frozen tokens together."""
    norm = layer.module
    each = norm.num_channels // norm.num_groups

    def forward(image: Tensor) -> Tensor:
        tokens = as_tokens(image).contiguous()
        found, weight, bias = torch.empty_like(tokens), norm.weight.float(), norm.bias.float()
        kept = torch.stack([frozen.kept[norm] for frozen in call.frozen], 1)
        mean, square = (sums(norm, tokens) + kept) / (each * math.prod(layer.grid))
        moments = torch.stack([mean, (square - mean.square()).clamp(min=0)]).repeat_interleave(each, -1)
        for row, means, variances, to in zip(tokens, *moments, found, strict=True):
            to.copy_(functional.batch_norm(row, means, variances, weight, bias, eps=norm.eps))
        return as_image(found)

    return forward


def beside(module: nn.Module, call: Call) -> Any:
    """Return a hook that adds the keys or values of frozen tokens to those of the active ones."""

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept = [frozen.kept[module] for frozen in call.frozen]
        parts = [part for pair in zip(output, kept, strict=True) for part in pair]
        return torch.cat(parts).view(len(output), -1, output.shape[-1])

    return hook


def convolve(layer: Layer, call: Call) -> Callable[..., Tensor]:
    """Return the ``forward`` of a convolution, perhaps with another grid before or behind it, at its active outputs."""
    convolution = layer.convolution

    def forward(image: Tensor) -> Tensor:
        tokens = as_tokens(image)
        weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # copies nothing of weights in channels-last format
        if convolution.kernel_size == (1, 1):
            return as_image(functional.linear(tokens.contiguous(), weight, convolution.bias))
        every, places = call.inputs(layer, tokens), call.places(layer, image.device)
        outputs = every.new_empty(len(image), len(places) // (9 * len(image)), len(weight))
        most = len(places) // 9
        if every.device.type == "cpu":
            most = max(CACHED, weight.nbytes) // (weight.shape[1] * weight.element_size())
        for part in portions(len(image), outputs.shape[1], most):
            found = every.index_select(0, places[9 * part.start : 9 * part.stop]).view(-1, weight.shape[1])
            outputs.flatten(0, 1)[part] = functional.linear(found, weight, convolution.bias)
        return as_image(outputs)

    return forward


def portions(rows: int, outputs: int, most: int) -> list[slice]:
    """Divide the outputs of all rows into portions of at most ``most``; each row in the same way, so that its place does not matter."""
    if outputs > most:
        parts = -(-outputs // most)
        bounds = [row * outputs + outputs * part // parts for row in range(rows) for part in range(parts)]
        bounds.append(rows * outputs)
    else:
        together = max(
            some for some in range(1, rows + 1) if rows % some == 0 and (some == 1 or some * outputs <= most)
        )
        bounds = [row * outputs for row in range(0, rows + 1, together)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]
