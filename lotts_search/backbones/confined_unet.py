"""Confined calls of U-Nets, Stable Diffusion and SDXL: only the active tokens pass their transformers; convolutions are whole.

The model's own ``forward`` runs, with another ``forward`` of each transformer. It computes the active tokens and adds to the
frozen ones what the transformer added to them in the whole call. At coarser grids than the finest one with a transformer the
tokens that hold most active tokens are active, the same share of all. Memory per frozen token and row: keys and values of the
self-attention of all blocks and the output of each transformer (in bfloat16 17 kB for Stable Diffusion 2.1 and 113 kB for SDXL).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.backbones.confined import Frozen

Grid = tuple[int, int]


@dataclass(frozen=True)
class Place:
    """A transformer of a U-Net.

    Attributes:
        module: a Transformer2DModel.
        grid: (h, w) of its tokens.
        first: number of the self-attention modules before it.
    """

    module: Any
    grid: Grid
    first: int

    @property
    def attentions(self) -> list[Any]:
        """Its self-attention modules."""
        return [block.attn1 for block in self.module.transformer_blocks]


def places(unet: Any, latent: Grid) -> list[Place]:
    """Return the transformers of a U-Net in the order of the network, for latents [H, W]."""
    found: list[Place] = []
    first, deepest = 0, len(unet.down_blocks) - 1
    for index, block in enumerate([*unet.down_blocks, unet.mid_block, *unet.up_blocks]):
        scale = 2 ** (min(index, deepest) if index <= deepest + 1 else 2 * deepest + 2 - index)
        for module in getattr(block, "attentions", None) or ():
            if isinstance(module, Transformer2DModel):
                found.append(Place(module, (-(-latent[0] // scale), -(-latent[1] // scale)), first))
                first += len(module.transformer_blocks)
    return found


def finest(found: list[Place]) -> Grid:
    """Return the finest grid of transformers, whose tokens those of the other grids follow."""
    return max((place.grid for place in found), key=math.prod)


def side_of(unet: Any, latent: Grid) -> int:
    """Return the side in latent cells of a token of the finest grid, 0 where the U-Net cannot be confined: it has no transformer,
    or tokens do not divide the latent."""
    if not (found := places(unet, latent)):
        return 0
    grid = finest(found)
    side = latent[0] // grid[0]
    return side if (side * grid[0], side * grid[1]) == latent else 0


def active_at(frozen: Frozen, grid: Grid, finest: Grid) -> tuple[Tensor, Tensor]:
    """Return the indices of the active and of the frozen tokens of a row at a grid: as many active ones, as a share of all, as at
    the finest grid, and those that hold most of its active tokens."""
    if grid not in frozen.grids:
        tokens = math.prod(finest)
        active = torch.zeros(tokens, device=frozen.active.device).index_fill(0, frozen.active, 1.0)
        held = functional.adaptive_avg_pool2d(active.view(1, *finest), grid).flatten()
        count = -(-len(frozen.active) * len(held) // tokens)
        order = held.argsort(descending=True, stable=True)
        frozen.grids[grid] = order[:count], order[count:]
    return frozen.grids[grid]


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
        found = places(self.unet, self._size)
        numbers = 0
        for place in found:
            widths = [module.to_k.out_features + module.to_v.out_features for module in place.attentions]
            numbers += math.prod(place.grid) * (sum(widths) + place.module.out_channels)
        size = torch.empty(0, dtype=self.unet.dtype).element_size()
        return -(-numbers * size // math.prod(finest(found)))

    @torch.inference_mode()
    def record(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: Mapping[int, Frozen]) -> Tensor:
        with recorded(places(self.unet, self._size), frozen):
            return self.predict(latents, timesteps, conditioning)

    @torch.inference_mode()
    def predict_confined(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: list[Frozen]) -> Tensor:
        with confined(places(self.unet, self._size), frozen):
            return self.predict(latents, timesteps, conditioning)

    def without_image(self, call: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return a function that calls a copy of the U-Net on the meta device without any active token, to count what does not
        depend on their number."""

        def least(copy: Any) -> None:
            found = places(copy, self._size)
            with confined(found, [unrecorded(found, 0)]):
                call(copy)

        return least


def unrecorded(found: list[Place], active: int) -> Frozen:
    """Return what the frozen tokens of a row would give, with numbers that mean nothing: for counting on the meta device.

    Args:
        found: the transformers.
        active: number of active tokens at the finest grid.
    """
    everything = torch.arange(math.prod(grid := finest(found)))
    frozen = Frozen(everything[:active], everything[active:])
    for place in found:
        tokens, dtype = len(active_at(frozen, place.grid, grid)[1]), place.module.dtype
        frozen.keys += [torch.empty(tokens, one.to_k.out_features, dtype=dtype) for one in place.attentions]
        frozen.values += [torch.empty(tokens, one.to_v.out_features, dtype=dtype) for one in place.attentions]
        frozen.outputs.append(torch.empty(tokens, place.module.out_channels, dtype=dtype))
    return frozen


@contextlib.contextmanager
def recorded(found: list[Place], frozen: Mapping[int, Frozen]) -> Iterator[None]:
    """Keep what frozen tokens give in the call inside the block.

    Args:
        found: the transformers.
        frozen: by row of the call.
    """
    for one in frozen.values():
        one.keys, one.values, one.outputs = [], [], []

    def keep(name: str, place: Place) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.ndim == 4:  # of a convolution of 1 by 1
                output = output.flatten(2).transpose(1, 2)
            for row, one in frozen.items():
                getattr(one, name).append(output[row][active_at(one, place.grid, grid)[1]])

        return hook

    grid = finest(found)
    with contextlib.ExitStack() as hooks:
        for place in found:
            for module in place.attentions:
                hooks.enter_context(module.to_k.register_forward_hook(keep("keys", place)))
                hooks.enter_context(module.to_v.register_forward_hook(keep("values", place)))
            hooks.enter_context(place.module.proj_out.register_forward_hook(keep("outputs", place)))
        yield


@contextlib.contextmanager
def confined(found: list[Place], frozen: list[Frozen]) -> Iterator[None]:
    """Confine the transformers in the call inside the block to the active tokens of its rows.

    Args:
        found: the transformers.
        frozen: of each row.
    """

    def beside(name: str, index: int) -> Any:
        """Add the frozen keys or values to those of the active tokens."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return torch.cat([output, torch.stack([getattr(row, name)[index] for row in frozen])], 1)

        return hook

    grid = finest(found)
    with contextlib.ExitStack() as stack:
        for index, place in enumerate(found):
            splits = [active_at(row, place.grid, grid) for row in frozen]
            order = torch.stack([torch.cat(split) for split in splits])
            others = torch.stack([row.outputs[index] for row in frozen])
            stack.enter_context(_replaced(place.module, _forward(place.module, order, len(splits[0][0]), others)))
            for number, module in enumerate(place.attentions, place.first):
                stack.enter_context(module.to_k.register_forward_hook(beside("keys", number)))
                stack.enter_context(module.to_v.register_forward_hook(beside("values", number)))
        yield


def _forward(module: Any, order: Tensor, active: int, others: Tensor) -> Callable[..., tuple[Tensor]]:
    """Return the ``forward`` of a Transformer2DModel for active tokens.

    Args:
        order: [B, N] the tokens of each row, active ones first.
        active: number of active tokens.
        others: [B, N − A, C] what it adds to the frozen ones.
    """

    def project(projection: Any, tokens: Tensor) -> Any:
        if isinstance(projection, nn.Linear):
            return projection(tokens)
        if not tokens.shape[1]:  # which a convolution refuses
            return tokens.new_empty(len(tokens), 0, projection.out_channels)
        return projection(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    def forward(hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        everywhere = module.norm(hidden_states).flatten(2).transpose(1, 2)
        tokens = everywhere.gather(1, order[:, :active, None].expand(-1, -1, everywhere.shape[2]))
        tokens = project(module.proj_in, tokens)
        for block in module.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
        added = torch.cat([project(module.proj_out, tokens), others], 1)
        added = torch.empty_like(added).scatter(1, order[:, :, None].expand_as(added), added)
        return (hidden_states + added.transpose(1, 2).reshape(hidden_states.shape),)

    return forward


@contextlib.contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the ``forward`` of a module in the call inside the block."""
    before = vars(module).get("forward")  # hooks of accelerate replace it as well
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
