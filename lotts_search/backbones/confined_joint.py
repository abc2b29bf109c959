"""Confined calls of transformers with joint attention over text and image, FLUX and Stable Diffusion 3.

The model's own ``forward`` runs, with hooks where tokens enter and leave it and with an attention processor of ours. Text
tokens are always computed. Memory per frozen token and row: keys and values of all blocks in the network's dtype (FLUX.1 in
bfloat16: 57 blocks, 700 kB; Stable Diffusion 3 medium: 24 blocks, 147 kB).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.backbones.attention.recorder import normal
from lotts_search.backbones.confined import Frozen, Taken, attentions, gathered, processed

Rotary = tuple[Tensor, Tensor]


class _Call:
    """What the blocks of one confined call share.

    Args:
        frozen: of each row.
    """

    def __init__(self, frozen: list[Frozen]):
        self._frozen = frozen
        self._rotations: dict[torch.device, Tensor] = {}
        self._memory: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

    def places(self, index: int, computed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return memory for the queries [B, S, heads, d] of a block's S computed tokens and for the keys and values
        [B, S + F, heads, d], where those of the F frozen tokens are at the end. The next block of the device gets the same memory.

        Args:
            index: of the attention module in the order of the network.
            computed: S.
        """
        first = self._frozen[0].keys[index]
        kind = computed, first.shape, first.device
        if kind not in self._memory:
            query = first.new_empty(len(self._frozen), computed, *first.shape[1:])
            key, value = (query.new_empty(len(query), computed + len(first), *first.shape[1:]) for _ in range(2))
            self._memory[kind] = query, key, value
        query, key, value = self._memory[kind]
        for row, frozen in enumerate(self._frozen):
            key[row, computed:], value[row, computed:] = frozen.keys[index], frozen.values[index]
        return query, key, value

    def rotations(self, rotary: Rotary) -> Tensor:
        """Return the rotations [B, L + A, 1, d/2] of the text and the active tokens from those of the model."""
        device = rotary[0].device
        if device not in self._rotations:
            active = torch.stack([row.active for row in self._frozen]).to(device)
            tokens = active.shape[1] + len(self._frozen[0].places)
            every = _rotations(rotary)
            text = every[: len(every) - tokens].expand(len(active), -1, -1, -1)
            self._rotations[device] = torch.cat([text, every[len(every) - tokens :][active]], 1)
        return self._rotations[device]


class _Processor:
    """Joint attention whose queries are the text and the active tokens, in this order; the frozen tokens are keys and values
    after them."""

    def __init__(self, index: int, call: _Call):
        self._index, self._call = index, call

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        text = encoder_hidden_states
        words = 0 if text is None else text.shape[1]
        computed = words + hidden_states.shape[1]
        query, key, value = self._call.places(self._index, computed)
        turns = None if image_rotary_emb is None else self._call.rotations(image_rotary_emb)

        def fill(place: slice, states: Tensor, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any) -> None:
            turn = None if turns is None else turns[:, place]
            query[:, place] = _turned(normal(norm_q, _heads(attn, to_q(states))), turn)
            key[:, place] = _turned(normal(norm_k, _heads(attn, to_k(states))), turn)
            value[:, place] = _heads(attn, to_v(states))

        if text is not None:
            added = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.norm_added_q, attn.norm_added_k
            fill(slice(words), text, *added)
        fill(slice(words, computed), hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        if getattr(attn, "pre_only", False):  # of FLUX's single-stream blocks, which project later
            return seen
        # Of a view, a linear layer would copy its weights for each row.
        image = seen if text is None else seen[:, words:].contiguous()
        for part in attn.to_out:
            image = part(image)
        if text is None:
            return image
        seen = seen[:, :words].contiguous()
        return image, seen if attn.context_pre_only else attn.to_add_out(seen)


def _heads(attn: Any, flat: Tensor) -> Tensor:
    """Return [..., heads, d] of a projection [..., heads·d]."""
    return flat.view(*flat.shape[:-1], attn.heads, flat.shape[-1] // attn.heads)


def _rotations(rotary: Rotary) -> Tensor:
    """Return the complex rotations [N, 1, d/2] of cosines and sines [N, d], which come in equal pairs."""
    cosines, sines = rotary
    return torch.complex(cosines[:, ::2], sines[:, ::2])[:, None]


def _turned(values: Tensor, rotations: Tensor | None) -> Tensor:
    """Rotate pairs of neighbouring channels of [..., heads, d], as the transformer does, in float32; None = not at all."""
    if rotations is None:
        return values
    pairs = torch.view_as_complex(values.float().view(*values.shape[:-1], values.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2)


@contextlib.contextmanager
def recorded_joint(transformer: Any, tokens: int, frozen: Mapping[int, Frozen]) -> Iterator[None]:
    """Keep keys, after norm and rotation, and values of frozen tokens in the call of a transformer inside the block.

    Args:
        tokens: number of image tokens.
        frozen: by row of the call.
    """

    taken = Taken({row: one.places for row, one in frozen.items()}, tokens)
    projected: dict[str, Tensor] = {}
    turns: dict[torch.device, Tensor] = {}

    def project(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            projected[name] = taken.of(output)

        return hook

    def finish(attn: Any, inputs: Any, named: Mapping[str, Any], output: Any) -> None:
        key, value = (_heads(attn, projected.pop(name)) for name in ("to_k", "to_v"))
        rotary = named.get("image_rotary_emb")
        if rotary is not None and rotary[0].device not in turns:
            every = _rotations(rotary)[-tokens:]
            turns[every.device] = every[taken.places.to(every.device)]
        turned = _turned(normal(attn.norm_k, key), None if rotary is None else turns[rotary[0].device]).to(key.dtype)
        for one, keys, values in zip(frozen.values(), taken.apart(turned), taken.apart(value), strict=True):
            one.keys.append(keys)
            one.values.append(values)

    for one in frozen.values():
        one.keys, one.values = [], []
    with contextlib.ExitStack() as hooks:
        for module in attentions(transformer):
            for name in ("to_k", "to_v"):
                hooks.enter_context(getattr(module, name).register_forward_hook(project(name)))
            hooks.enter_context(module.register_forward_hook(finish, with_kwargs=True))
        yield


def unrecorded(transformer: Any, tokens: int, active: int) -> Frozen:
    """Return frozen tokens with made-up keys and values, to count a call with so many active tokens of one row."""
    everything = torch.arange(tokens)
    frozen = Frozen(everything[:active], everything[active:])
    for module in attentions(transformer):
        size = tokens - active, module.heads, module.to_k.out_features // module.heads
        frozen.keys.append(torch.empty(size, dtype=transformer.dtype))
        frozen.values.append(torch.empty(size, dtype=transformer.dtype))
    return frozen


class JointConfined:
    """The part of a backbone that makes it one of :class:`~lotts_search.backbones.confined.Confines`."""

    transformer: Any
    _embedder: str
    """Name of the module that embeds the image tokens."""
    _grid: tuple[int, int]

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call the network, see :class:`~lotts_search.backbones.base.Backbone`."""
        raise NotImplementedError

    def frozen_bytes(self) -> int:
        widths = [module.to_k.out_features + module.to_v.out_features for module in attentions(self.transformer)]
        return int(sum(widths) * torch.empty(0, dtype=self.transformer.dtype).element_size())

    @torch.inference_mode()
    def record(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: Mapping[int, Frozen]) -> Tensor:
        with recorded_joint(self.transformer, self._tokens, frozen):
            return self.predict(latents, timesteps, conditioning)

    @torch.inference_mode()
    def predict_confined(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: list[Frozen]) -> Tensor:
        with confined(self.transformer, self._embedder, self._tokens, frozen):
            return self.predict(latents, timesteps, conditioning)

    def without_image(self, tokens: int, call: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return a function that calls a copy of the transformer on the meta device without any active token, to count what does
        not depend on their number."""

        def least(copy: Any) -> None:
            with confined(copy, self._embedder, tokens, [unrecorded(copy, tokens, 0)]):
                call(copy)

        return least

    @property
    def _tokens(self) -> int:
        return self._grid[0] * self._grid[1]


@contextlib.contextmanager
def confined(transformer: Any, embedder: str, tokens: int, frozen: list[Frozen]) -> Iterator[None]:
    """Confine the call of a transformer inside the block to the active tokens of its rows.

    Args:
        embedder: name of the module that embeds the image tokens.
        tokens: number of image tokens.
        frozen: of each row.
    """
    modules, call = attentions(transformer), _Call(frozen)
    active = torch.stack([row.active for row in frozen])
    processors = [_Processor(index, call) for index in range(len(modules))]
    entry = getattr(transformer, embedder)
    with gathered(entry, transformer.proj_out, active, tokens), processed(modules, processors):
        yield
