"""Confined calls of U-Nets, Stable Diffusion and SDXL: only the active tokens, which are latent cells, pass the network.

The model's own ``forward`` runs on the active tokens of each grid as if they were an image of A by 1 pixels, with another
``forward`` of the layers that look further than one pixel. A convolution takes the neighbours of its active tokens from its
frozen inputs; a group norm takes sums over the frozen ones; self-attention takes their keys and values. All of them are those
of the last whole call. At coarser grids than the latent's the tokens that hold most active cells are active, the same share of
all. Memory per frozen cell and row: the inputs of convolutions, keys and values (in bfloat16 29 kB for Stable Diffusion 2.1
and 43 kB for SDXL).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
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

Grid = tuple[int, int]
BLOCKS = (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UNetMidBlock2D",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
)

CACHED = 12 << 20
"""Bytes of gathered inputs that a CPU multiplies at once, or as many as the weights have: more leave its cache."""


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
        if type(block).__name__ not in BLOCKS or not all(isinstance(one, kind) for many, kind in kinds for one in many):
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


def around(frozen: Frozen, layer: Layer, latent: Grid) -> Tensor:
    """Return where the 3 by 3 neighbours [A, 9] of a convolution's active outputs are among its inputs: active ones, frozen ones,
    and a zero outside of the image."""
    (high, wide), to = layer.grid, layer.to
    convolution = layer.convolution
    padding, stride = getattr(layer.module, "padding", 1), convolution.stride[0]
    padding = padding if isinstance(padding, int) else padding[0]
    active = active_at(frozen, to, latent)[0]
    steps = torch.arange(3, device=active.device) - padding
    rows = (active // to[1] * stride)[:, None, None] + steps[:, None]
    columns = (active % to[1] * stride)[:, None, None] + steps
    bounds = to if isinstance(layer.module, Upsample2D) else layer.grid
    outside = (rows < 0) | (rows >= bounds[0]) | (columns < 0) | (columns >= bounds[1])
    places = rows * high // bounds[0] * wide + columns * wide // bounds[1]
    order = torch.cat(active_at(frozen, layer.grid, latent))
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return torch.where(outside, len(order), rank[places.clamp(0, len(order) - 1)]).flatten(1)


class UNetConfined:
    """The part of a backbone that makes it one of :class:`~lotts_search.backbones.confined.Confines`."""

    unet: Any
    _size: Grid
    """Height and width of the latent."""

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call the network, see :class:`~lotts_search.backbones.base.Backbone`."""
        raise NotImplementedError

    @property
    def frozen_bytes(self) -> int:
        numbers = sum(math.prod(layer.grid) * layer.kept for layer in layers(self.unet, self._size))
        size = torch.empty(0, dtype=self.unet.dtype).element_size()
        return -(-numbers * size // math.prod(self._size))

    @torch.inference_mode()
    def record(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: Mapping[int, Frozen]) -> Tensor:
        with recorded(self.unet, self._size, frozen):
            return self.predict(latents, timesteps, conditioning)

    @torch.inference_mode()
    def predict_confined(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: list[Frozen]) -> Tensor:
        with confined(self.unet, self._size, frozen):
            return self.predict(latents, timesteps, conditioning)

    def without_image(self, call: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return a function that calls a copy of the U-Net on the meta device without any active token, to count what does not
        depend on their number."""

        def least(copy: Any) -> None:
            with confined(copy, self._size, [unrecorded(copy, self._size, 0)]):
                call(copy)

        return least


def unrecorded(unet: Any, latent: Grid, active: int) -> Frozen:
    """Return what the frozen tokens of a row would give, with numbers that mean nothing: for counting on the meta device.

    Args:
        active: number of active cells.
    """
    everything = torch.arange(math.prod(latent))
    frozen = Frozen(everything[:active], everything[active:])
    for layer in layers(unet, latent):
        if isinstance(layer.module, nn.GroupNorm):
            frozen.kept[layer.module] = torch.empty(2, layer.module.num_groups)
        elif layer.kept:
            tokens = len(active_at(frozen, layer.grid, latent)[1])
            frozen.kept[layer.module] = torch.empty(tokens, layer.kept, dtype=unet.dtype)
    return frozen


@contextlib.contextmanager
def recorded(unet: Any, latent: Grid, frozen: Mapping[int, Frozen]) -> Iterator[None]:
    """Keep what frozen tokens give in the call inside the block.

    Args:
        latent: its height and width.
        frozen: by row of the call.
    """

    def keep(layer: Layer, values: Tensor) -> None:
        """Keep values [B, C, h, w] or [B, N, C] of all tokens."""
        for row, one in frozen.items():
            tokens = values[row].flatten(1).T if values.ndim == 4 else values[row]
            tokens = tokens[active_at(one, layer.grid, latent)[1].to(tokens.device)]
            one.kept[layer.module] = _sums(layer.module, tokens) if _normal(layer) else tokens

    with contextlib.ExitStack() as hooks:
        for layer in layers(unet, latent):
            if layer.convolution is None and not _normal(layer):
                hook = layer.module.register_forward_hook(lambda _, __, output, layer=layer: keep(layer, output))
            elif layer.kept or _normal(layer):
                hook = layer.module.register_forward_pre_hook(lambda _, inputs, layer=layer: keep(layer, inputs[0]))
            else:
                continue
            hooks.enter_context(hook)
        yield


@contextlib.contextmanager
def confined(unet: Any, latent: Grid, frozen: list[Frozen]) -> Iterator[None]:
    """Confine the U-Net in the call inside the block to the active tokens of its rows.

    Args:
        latent: its height and width.
        frozen: of each row.
    """
    active, neighbours = torch.stack([row.active for row in frozen]), _Neighbours(latent, frozen)

    def enter(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return _image(_tokens(output).gather(1, active[:, :, None].expand(-1, -1, output.shape[1])))

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        batch, channels = output.shape[:2]
        everywhere = output.new_zeros(batch, channels, math.prod(latent))
        everywhere = everywhere.scatter(2, active[:, None].expand(-1, channels, -1), output[..., 0])
        return everywhere.view(batch, channels, *latent)

    with contextlib.ExitStack() as stack:
        for layer in layers(unet, latent):
            module = layer.module
            if _normal(layer):
                stack.enter_context(_replaced(module, _norm(layer, frozen)))
            elif layer.convolution is None:
                stack.enter_context(module.register_forward_hook(_beside(module, frozen)))
            else:
                stack.enter_context(_replaced(layer.convolution, _convolve(layer, neighbours, frozen)))
                if module is not layer.convolution:
                    stack.enter_context(
                        _replaced(module, lambda image, *_, layer=layer, **__: layer.convolution(image))
                    )
        stack.enter_context(unet.conv_in.register_forward_hook(enter))
        stack.enter_context(unet.conv_out.register_forward_hook(leave))
        yield


def _normal(layer: Layer) -> bool:
    return isinstance(layer.module, nn.GroupNorm)


def _tokens(image: Tensor) -> Tensor:
    """Return [B, C, h, w] as tokens [B, N, C]."""
    return image.flatten(2).transpose(1, 2)


def _image(tokens: Tensor) -> Tensor:
    """Return tokens [B, A, C] as an image [B, C, A, 1] in channels-last format."""
    return tokens[:, :, None].permute(0, 3, 1, 2)


def _sums(norm: Any, tokens: Tensor) -> Tensor:
    """Return sums and sums of squares [2, G] of the groups of tokens [N, C] of a row."""
    # In one pass, and because of weights in float32 as well, whatever the dtype of the tokens is.
    one = torch.ones(norm.num_channels, device=tokens.device)
    _, mean, scale = torch.native_batch_norm(tokens, one, one, None, None, True, 0.0, norm.eps)
    moments = torch.stack([mean, scale**-2 - norm.eps + mean.square()])
    return len(tokens) * moments.view(2, norm.num_groups, -1).sum(2)


def _norm(layer: Layer, frozen: list[Frozen]) -> Callable[[Tensor], Tensor]:
    """Return the ``forward`` of a group norm whose statistics are those of active and frozen tokens together."""
    norm = layer.module
    each = norm.num_channels // norm.num_groups

    def forward(image: Tensor) -> Tensor:
        tokens = _tokens(image).contiguous()
        found, weight, bias = torch.empty_like(tokens), norm.weight.float(), norm.bias.float()
        for row, one, to in zip(tokens, frozen, found, strict=True):
            sums = (_sums(norm, row) + one.kept[norm]) / (each * math.prod(layer.grid))
            mean, square = sums.repeat_interleave(each, 1)
            variance = (square - mean.square()).clamp(min=0)
            to.copy_(functional.batch_norm(row, mean, variance, weight, bias, eps=norm.eps))
        return _image(found)

    return forward


def _beside(module: nn.Module, frozen: list[Frozen]) -> Any:
    """Return a hook that adds the keys or values of frozen tokens to those of the active ones."""

    def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return _joined(output, [row.kept[module] for row in frozen])

    return hook


def _joined(tokens: Tensor, others: list[Tensor], zeros: int = 0) -> Tensor:
    """Return tokens [B, A, C] with others [F, C] of each row and zeros behind them, [B, A + F + zeros, C]."""
    active = tokens.shape[1]
    joined = tokens.new_empty(len(tokens), active + len(others[0]) + zeros, tokens.shape[2])
    joined[:, :active] = tokens
    joined[:, joined.shape[1] - zeros :] = 0
    for row, other in zip(joined, others, strict=True):
        row[active : active + len(other)] = other
    return joined


class _Neighbours:
    """Where the neighbours of the active outputs of convolutions are in the rows of one call."""

    def __init__(self, latent: Grid, frozen: list[Frozen]):
        self._latent, self._frozen = latent, frozen
        self._places: dict[Any, Tensor] = {}

    def places(self, layer: Layer, device: torch.device) -> Tensor:
        """Return the places [B·A·9] among the inputs of all rows, one after another, on the device of the layer."""
        key = layer.grid, layer.to, device
        if key not in self._places:
            for one in self._frozen:
                if key not in one.neighbours:
                    one.neighbours[key] = around(one, layer, self._latent).to(device)
            every = torch.stack([one.neighbours[key] for one in self._frozen])
            first = torch.arange(len(every), device=device) * (math.prod(layer.grid) + 1)
            self._places[key] = (every + first[:, None, None]).flatten()
        return self._places[key]


def _convolve(layer: Layer, neighbours: _Neighbours, frozen: list[Frozen]) -> Callable[..., Tensor]:
    """Return the ``forward`` of a convolution, perhaps with another grid before or behind it, at its active outputs."""
    convolution = layer.convolution

    def forward(image: Tensor) -> Tensor:
        tokens = _tokens(image)
        weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # copies nothing of weights in channels-last format
        if convolution.kernel_size == (1, 1):
            return _image(functional.linear(tokens.contiguous(), weight, convolution.bias))
        every = _joined(tokens, [one.kept[layer.module] for one in frozen], zeros=1).flatten(0, 1)
        places = neighbours.places(layer, every.device)
        outputs = every.new_empty(len(image), len(places) // (9 * len(image)), len(weight))
        most = len(places) // 9
        if every.device.type == "cpu":
            most = max(CACHED, weight.nbytes) // (weight.shape[1] * weight.element_size())
        for part in _portions(len(image), outputs.shape[1], most):
            found = every.index_select(0, places[9 * part.start : 9 * part.stop]).view(-1, weight.shape[1])
            outputs.flatten(0, 1)[part] = functional.linear(found, weight, convolution.bias)
        return _image(outputs)

    return forward


def _portions(rows: int, outputs: int, most: int) -> list[slice]:
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


@contextlib.contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the ``forward`` of a module in the call inside the block."""
    name = "_old_forward" if "_old_forward" in vars(module) else "forward"  # hooks of accelerate call the first
    before = vars(module).get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)
