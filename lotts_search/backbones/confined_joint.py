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
from torch import Tensor
from torch.nn import functional

from lotts_search.backbones.attention.recorder import normal
from lotts_search.backbones.confined import Frozen, attentions, gathered, processed, recorded

Rotary = tuple[Tensor, Tensor]


class _Call:
    """What the blocks of one call share.

    Args:
        frozen: of each row.
        order: [B, N] the image tokens of each row, active ones first.
    """

    def __init__(self, frozen: list[Frozen], order: Tensor):
        self._frozen, self._order = frozen, order
        self._rotations: Rotary | None = None

    def keys(self, index: int) -> Tensor:
        return torch.stack([row.keys[index] for row in self._frozen])

    def values(self, index: int) -> Tensor:
        return torch.stack([row.values[index] for row in self._frozen])

    def rotations(self, rotary: Rotary) -> Rotary:
        """Return the cosines and sines [B, L + N, 1, d] in the order of each row from those [L + N, d] of the model."""
        if self._rotations is None:
            cosines, sines = rotary
            batch, tokens = self._order.shape
            text = len(cosines) - tokens
            first = torch.arange(text, device=self._order.device).expand(batch, -1)
            places = torch.cat([first, text + self._order], 1)
            self._rotations = cosines[places][:, :, None], sines[places][:, :, None]
        return self._rotations


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
        text, hidden = encoder_hidden_states, hidden_states

        def heads(flat: Tensor) -> Tensor:
            return flat.view(*flat.shape[:-1], attn.heads, flat.shape[-1] // attn.heads)

        query = normal(attn.norm_q, heads(attn.to_q(hidden)))
        key = normal(attn.norm_k, heads(torch.cat([attn.to_k(hidden), self._call.keys(self._index)], 1)))
        value = heads(torch.cat([attn.to_v(hidden), self._call.values(self._index)], 1))
        if text is not None:
            query = torch.cat([normal(attn.norm_added_q, heads(attn.add_q_proj(text))), query], 1)
            key = torch.cat([normal(attn.norm_added_k, heads(attn.add_k_proj(text))), key], 1)
            value = torch.cat([heads(attn.add_v_proj(text)), value], 1)
        if image_rotary_emb is not None:
            cosines, sines = self._call.rotations(image_rotary_emb)
            count = query.shape[1]
            query, key = _rotate(query, cosines[:, :count], sines[:, :count]), _rotate(key, cosines, sines)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        seen = functional.scaled_dot_product_attention(query, key, value)
        seen = seen.transpose(1, 2).flatten(2)
        if getattr(attn, "pre_only", False):  # of FLUX's single-stream blocks, which project later
            return seen
        # Of a view, a linear layer would copy its weights for each row.
        image = seen if text is None else seen[:, text.shape[1] :].contiguous()
        for part in attn.to_out:
            image = part(image)
        if text is None:
            return image
        words = seen[:, : text.shape[1]].contiguous()
        return image, words if attn.context_pre_only else attn.to_add_out(words)


def _rotate(values: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels of [B, S, heads, d], as the transformer does."""
    real, imaginary = values.view(*values.shape[:-1], values.shape[-1] // 2, 2).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return (values.float() * cosines + turned.float() * sines).to(values.dtype)


class JointConfined:
    """The part of a backbone that makes it one of :class:`~lotts_search.backbones.confined.Confines`."""

    transformer: Any
    _embedder: str
    """Name of the module that embeds the image tokens."""
    _grid: tuple[int, int]

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Call the network, see :class:`~lotts_search.backbones.base.Backbone`."""
        raise NotImplementedError

    @property
    def frozen_bytes(self) -> int:
        widths = [module.to_k.out_features + module.to_v.out_features for module in attentions(self.transformer)]
        return int(sum(widths) * torch.empty(0, dtype=self.transformer.dtype).element_size())

    @torch.inference_mode()
    def record(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: Mapping[int, Frozen]) -> Tensor:
        with recorded(attentions(self.transformer), self._tokens, frozen):
            return self.predict(latents, timesteps, conditioning)

    @torch.inference_mode()
    def predict_confined(self, latents: Tensor, timesteps: Tensor, conditioning: Any, frozen: list[Frozen]) -> Tensor:
        with confined(self.transformer, self._embedder, self._tokens, frozen):
            return self.predict(latents, timesteps, conditioning)

    def without_image(self, tokens: int, call: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return a function that calls a copy of the transformer on the meta device without any active token, to count what does
        not depend on their number."""

        def least(copy: Any) -> None:
            everything = torch.arange(tokens)
            frozen = Frozen(everything[:0], everything)
            for module in attentions(copy):
                frozen.keys.append(torch.empty(tokens, module.to_k.out_features))
                frozen.values.append(torch.empty(tokens, module.to_v.out_features))
            with confined(copy, self._embedder, tokens, [frozen]):
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
    modules = attentions(transformer)
    active = torch.stack([row.active for row in frozen])
    call = _Call(frozen, torch.cat([active, torch.stack([row.places for row in frozen])], 1))
    processors = [_Processor(index, call) for index in range(len(modules))]
    entry = getattr(transformer, embedder)
    with gathered(entry, transformer.proj_out, active, tokens), processed(modules, processors):
        yield
