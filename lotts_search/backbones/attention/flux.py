"""Reading attention out of a FLUX transformer without changing what it computes.

The processor of each double-stream block is wrapped for the length of one call (``set_attn_processor``, per module,
restored afterwards). The original still computes the output; beside it either the probabilities of the image queries
to the text are taken (:class:`JointRecorder`) or the words of other prompts are carried along, in the manner of
ConceptAttention (:class:`ConceptRecorder`). The call ends with the last double-stream block: the single-stream blocks,
two thirds of the depth, would show nothing more.

Memory beyond the call's own: one map a row and prompt; the image queries of the rows that want them, rows × blocks ×
tokens × width numbers in the network's dtype (FLUX at 1024 pixels, one row, 10 blocks: 252 MB in bfloat16); one block's
keys and values again; and probabilities as bounded by
:data:`~lotts_search.backbones.attention.base.MOST_PROBABILITIES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.backbones.attention.base import RowAttention, attention_map
from lotts_search.backbones.attention.unet_sd3 import uncompiled
from lotts_search.errors import BadInput

Rotary = tuple[Tensor, Tensor]


class Enough(Exception):
    """The last block that is read has been read."""


class Recorder(Protocol):
    """What looks at the attention of the double-stream blocks."""

    def see(self, index: int, block: Any, image: Tensor, text: Tensor, rotary: Rotary, outputs: Tensor) -> None:
        """Note one attention call.

        Args:
            index: of the block.
            block: the FluxTransformerBlock.
            image, text: normalised hidden states [B, N, D] and [B, L, D].
            rotary: cosines and sines [L + N, d].
            outputs: the image's attention outputs before projection, [B, N, D].
        """


def default_blocks(blocks: int) -> int:
    """ConceptAttention's choice for FLUX, the last 10 of 19, or the last half of fewer."""
    return 10 if blocks >= 19 else -(-blocks // 2)


class JointRecorder:
    """Attention probabilities of the image queries to text positions, averaged over positions, heads and blocks."""

    def __init__(self, positions: list[list[int]], queries: list[bool], grid: tuple[int, int], read: range):
        self._positions, self._grid, self._read = positions, grid, read
        self._wanted = [row for row, wanted in enumerate(queries) if wanted]
        self._words: Tensor | None = None
        self._queries: list[Tensor] = []

    def see(self, index: int, block: Any, image: Tensor, text: Tensor, rotary: Rotary, outputs: Tensor) -> None:
        if index not in self._read:
            return
        attn, length = block.attn, text.shape[1]
        query, key, _ = _image_parts(attn, image)
        words = attn.norm_added_k(_split(attn, attn.add_k_proj(text)))
        if self._wanted:
            self._queries.append(query[self._wanted].transpose(1, 2))
        keys = _rotate(torch.cat([words, key], dim=1), rotary).transpose(1, 2)
        queries = _rotate(query, (rotary[0][length:], rotary[1][length:])).transpose(1, 2)
        weights = torch.zeros(len(image), keys.shape[2], 1, device=image.device)
        for row, places in enumerate(self._positions):
            weights[row, places] = 1 / max(1, len(places))
        found = attention_map(queries, keys, weights)[..., 0]
        self._words = found if self._words is None else self._words + found

    def rows(self) -> list[RowAttention]:
        """What was seen, one entry a row."""
        assert self._words is not None
        return _rows(self._words / len(self._read), self._grid, self._queries, self._wanted)


class ConceptRecorder:
    """Maps of P prompts a row: mean dot products of the image's and of their words' attention outputs.

    The words start as the text encoder gives them. In each block they attend to the words of their own prompt and to
    the image, under the modulation of their own prompt, and go through the block's text side; nothing attends to
    them.

    Args:
        embed: gives the embedded words [B, P, n, D], padded to a common n, and the modulation [B, P, D] of each prompt;
            called within the network's call, when offloaded weights are there.
        valid: [B, P, n], where there is a word.
        weights: [B, P, n], how much each word counts for its prompt's map.
        queries: for each row whether the image queries are kept.
        grid: (h, w) of the image tokens.
        read: the blocks that are read.
    """

    def __init__(
        self,
        embed: Callable[[], tuple[Tensor, Tensor]],
        valid: Tensor,
        weights: Tensor,
        queries: list[bool],
        grid: tuple[int, int],
        read: range,
    ):
        self._embed, self._weights = embed, weights
        self._grid, self._read = grid, read
        self._wanted = [row for row, wanted in enumerate(queries) if wanted]
        batch, prompts, count = valid.shape
        # A word sees the words of its own prompt, and the whole image.
        same = torch.eye(prompts, dtype=torch.bool, device=valid.device).repeat_interleave(count, 0)
        own = same.repeat_interleave(count, 1) & valid.view(batch, 1, -1)
        image = own.new_ones(batch, prompts * count, grid[0] * grid[1])
        self._mask = torch.cat([own, image], dim=-1)[:, None]
        self._maps: Tensor | None = None
        self._queries: list[Tensor] = []

    def see(self, index: int, block: Any, image: Tensor, text: Tensor, rotary: Rotary, outputs: Tensor) -> None:
        if index == 0:
            self._words, self._modulation = self._embed()
        attn, (batch, prompts, count, width) = block.attn, self._words.shape
        words = self._words.view(batch * prompts, count, width)
        modulation = self._modulation.view(batch * prompts, -1)
        normal, gate, shift, scale, gate_2 = block.norm1_context(words, emb=modulation)

        def parts(flat: Tensor) -> Tensor:
            return _split(attn, flat).view(batch, prompts * count, attn.heads, -1)

        # The text has position 0 for every token, where the rotation is none.
        query = attn.norm_added_q(parts(attn.add_q_proj(normal)))
        key = attn.norm_added_k(parts(attn.add_k_proj(normal)))
        value = parts(attn.add_v_proj(normal))
        image_query, image_key, image_value = _image_parts(attn, image)
        length = text.shape[1]
        image_key = _rotate(image_key, (rotary[0][length:], rotary[1][length:]))
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            torch.cat([key, image_key], dim=1).transpose(1, 2),
            torch.cat([value, image_value], dim=1).transpose(1, 2),
            attn_mask=self._mask,
        )
        own = seen.transpose(1, 2).reshape(batch, prompts, count, -1)
        if index in self._read:
            # The mean of dot products is the dot product with the mean.
            mean = torch.einsum("bpn,bpnd->bpd", self._weights, own.float())
            found = torch.einsum("bpd,bnd->bpn", mean, outputs.float())
            self._maps = found if self._maps is None else self._maps + found
            if self._wanted:
                self._queries.append(image_query[self._wanted].transpose(1, 2))
        words = words + gate[:, None] * attn.to_add_out(own.to(words.dtype).view(batch * prompts, count, -1))
        normal = block.norm2_context(words) * (1 + scale[:, None]) + shift[:, None]
        words = words + gate_2[:, None] * block.ff_context(normal)
        if words.dtype == torch.float16:
            words = words.clip(-65504, 65504)
        self._words = words.view(batch, prompts, count, width)

    def rows(self) -> list[RowAttention]:
        """What was seen, one entry a row."""
        assert self._maps is not None
        return _rows(self._maps / len(self._read), self._grid, self._queries, self._wanted)


def embed_concepts(
    transformer: Any, states: Tensor, pooled: Tensor, timestep: Tensor, guidance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Words and modulations as the transformer makes them of its own text: ([B, P, n, D], [B, P, D]).

    Args:
        states: [B, P, n, E] of the text encoder.
        pooled: [B, P, F] pooled text.
        timestep: [B], 0..1.
        guidance: [B], or None for a network that is told none.
    """
    dtype, (batch, prompts) = states.dtype, states.shape[:2]

    def each(values: Tensor) -> Tensor:
        return (values.to(dtype) * 1000).repeat_interleave(prompts)

    told = (each(timestep),) if guidance is None else (each(timestep), each(guidance))
    modulation = transformer.time_text_embed(*told, pooled.flatten(0, 1))
    return transformer.context_embedder(states), modulation.view(batch, prompts, -1)


class _Watching:
    """An attention processor that does what the original does, then lets the recorder see."""

    def __init__(self, original: Any, record: Recorder, index: int, block: Any, last: bool):
        self.original, self.record, self.index, self.block, self.last = original, record, index, block, last
        self.outputs: Tensor | None = None

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep what goes into the image's output projection."""
        self.outputs = inputs[0]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        made = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        assert encoder_hidden_states is not None and image_rotary_emb is not None and self.outputs is not None
        self.record.see(self.index, self.block, hidden_states, encoder_hidden_states, image_rotary_emb, self.outputs)
        self.outputs = None
        if self.last:
            raise Enough
        return made


@contextlib.contextmanager
def capture_joint(transformer: Any, record: Recorder) -> Iterator[None]:
    """Let ``record`` see the attention of a FluxTransformer2DModel in the call inside the block, which ends with the
    last double-stream block and returns nothing; everything is put back at the block's end.

    Raises:
        BadInput: the transformer's projections are fused.
    """
    blocks = transformer.transformer_blocks
    if any(block.attn.fused_projections for block in blocks):
        raise BadInput("attention cannot be read while the transformer's projections are fused")
    originals = dict(transformer.attn_processors)
    watching = {
        f"transformer_blocks.{index}.attn.processor": _Watching(
            block.attn.processor, record, index, block, index == len(blocks) - 1
        )
        for index, block in enumerate(blocks)
    }
    hooks = [
        block.attn.to_out[0].register_forward_pre_hook(watch.note)
        for block, watch in zip(blocks, watching.values(), strict=True)
    ]
    transformer.set_attn_processor(originals | watching)
    try:
        with uncompiled(transformer), contextlib.suppress(Enough):
            yield
    finally:
        transformer.set_attn_processor(originals)
        for hook in hooks:
            hook.remove()


def _split(attn: Any, flat: Tensor) -> Tensor:
    return flat.view(*flat.shape[:-1], -1, attn.head_dim)


def _image_parts(attn: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, N, heads, d] of the image, before rotation."""
    query, key = attn.norm_q(_split(attn, attn.to_q(image))), attn.norm_k(_split(attn, attn.to_k(image)))
    return query, key, _split(attn, attn.to_v(image))


def _rotate(values: Tensor, rotary: Rotary) -> Tensor:
    rotated: Tensor = apply_rotary_emb(values, rotary, sequence_dim=1)
    return rotated


def _rows(maps: Tensor, grid: tuple[int, int], queries: list[Tensor], wanted: list[int]) -> list[RowAttention]:
    kept = {row: tuple(layer[i] for layer in queries) for i, row in enumerate(wanted)}
    return [RowAttention(found.view(*found.shape[:-1], *grid), kept.get(row, ())) for row, found in enumerate(maps)]
