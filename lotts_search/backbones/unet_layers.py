"""The layers of a U-Net that look further than one pixel: their grids, and which of their tokens a confined call needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.backbones.confined import Frozen
from lotts_search.backbones.image_size import CONFINED_BLOCKS

Grid = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A layer of a U-Net that looks further than one pixel, or that refuses an image of 0 pixels.

    Attributes:
        module: a convolution, Upsample2D, Downsample2D or GroupNorm, or ``to_k`` or ``to_v`` of self-attention.
        grid, to: (h, w) of its input and of its output.
    """

    module: Any
    grid: Grid
    to: Grid

    @property
    def convolution(self) -> Any:
        """The convolution in it; None = it has none."""
        found = self.module.conv if isinstance(self.module, Upsample2D | Downsample2D) else self.module
        return found if isinstance(found, nn.Conv2d) else None

    @property
    def kept(self) -> int:
        """Numbers of a frozen token that it needs."""
        if isinstance(self.module, nn.GroupNorm):
            return 0
        if (convolution := self.convolution) is None:
            return int(self.module.out_features)
        return 0 if convolution.kernel_size == (1, 1) else int(convolution.in_channels)


def layers(unet: Any, latent: Grid) -> list[Layer]:
    """Return the layers of a U-Net, for latents [H, W]; none where it cannot be confined, because it has blocks of other kinds."""
    deepest, found = len(unet.down_blocks) - 1, []
    grids = [(-(-latent[0] // 2**depth), -(-latent[1] // 2**depth)) for depth in range(deepest + 1)]
    for index, block in enumerate([*unet.down_blocks, unet.mid_block, *unet.up_blocks]):
        if block is None:
            continue
        depth = min(index, deepest) if index <= deepest + 1 else 2 * deepest + 2 - index
        attentions = [one for one in getattr(block, "attentions", ()) if one is not None]
        kinds = [(block.resnets, ResnetBlock2D), (attentions, Transformer2DModel)]
        if type(block).__name__ not in CONFINED_BLOCKS or not all(
            isinstance(one, kind) for many, kind in kinds for one in many
        ):
            return []
        alone: list[Any] = []
        for resnet in block.resnets:
            alone += [resnet.norm1, resnet.conv1, resnet.norm2, resnet.conv2]
            alone += [resnet.conv_shortcut] if resnet.conv_shortcut is not None else []
        for transformer in attentions:
            alone += [transformer.norm]
            alone += [one for one in (transformer.proj_in, transformer.proj_out) if isinstance(one, nn.Conv2d)]
            for part in transformer.transformer_blocks:
                alone += [part.attn1.to_k, part.attn1.to_v]
        found += [Layer(module, grids[depth], grids[depth]) for module in alone]
        found += [Layer(one, grids[depth], grids[depth + 1]) for one in getattr(block, "downsamplers", None) or ()]
        found += [Layer(one, grids[depth], grids[depth - 1]) for one in getattr(block, "upsamplers", None) or ()]
    return [*found, *(Layer(module, latent, latent) for module in (unet.conv_norm_out, unet.conv_out))]


def active_at(frozen: Frozen, grid: Grid, latent: Grid) -> tuple[Tensor, Tensor]:
    """Return the indices of the active and of the frozen tokens of a row at a grid: as many active ones, as a share of all, as on
    the latent, and those that hold most of its active cells."""
    if grid not in frozen.grids:
        cells = math.prod(latent)
        active = torch.zeros(cells, device=frozen.active.device).index_fill(0, frozen.active, 1.0)
        held = functional.adaptive_avg_pool2d(active.view(1, *latent), grid).flatten()
        count = -(-len(frozen.active) * len(held) // cells)
        order = held.argsort(descending=True, stable=True)
        frozen.grids[grid] = order[:count], order[count:]
    return frozen.grids[grid]


def around(frozen: Frozen, layer: Layer, latent: Grid) -> tuple[Tensor, Tensor]:
    """Return what the active outputs of a 3 by 3 convolution read: where their neighbours [A, 9] are among its active inputs, the
    frozen ones beside them and a zero, one after another, and the indices of the frozen ones, ascending. Outside of the image they
    read the zero."""
    if (key := (layer.grid, layer.to)) not in frozen.neighbours:
        (high, wide), to = layer.grid, layer.to
        convolution = layer.convolution
        padding, stride = getattr(layer.module, "padding", 1), convolution.stride[0]
        padding = padding if isinstance(padding, int) else padding[0]
        outputs, inputs = (active_at(frozen, grid, latent)[0] for grid in (to, layer.grid))
        steps = torch.arange(3, device=inputs.device) - padding
        rows = (outputs // to[1] * stride)[:, None, None] + steps[:, None]
        columns = (outputs % to[1] * stride)[:, None, None] + steps
        bounds = to if isinstance(layer.module, Upsample2D) else layer.grid
        outside = (rows < 0) | (rows >= bounds[0]) | (columns < 0) | (columns >= bounds[1])
        places = rows * high // bounds[0] * wide + columns * wide // bounds[1]
        places = torch.where(outside, high * wide, places).flatten(1)
        read = torch.zeros(high * wide + 1, dtype=torch.bool, device=places.device)
        read[places], read[inputs], read[-1] = True, False, False
        beside = read.nonzero().flatten()
        order = functional.pad(torch.cat([inputs, beside]), (0, 1), value=high * wide)
        rank = order.new_zeros(len(read)).scatter(0, order, torch.arange(len(order), device=order.device))
        frozen.neighbours[key] = rank[places], beside
    return frozen.neighbours[key]


def kept_at(frozen: Frozen, layer: Layer, latent: Grid) -> Tensor:
    """Return the indices of the frozen tokens of a row of which a layer keeps something: those that a convolution reads, or all."""
    if layer.convolution is None:
        return active_at(frozen, layer.grid, latent)[1]
    return around(frozen, layer, latent)[1]
