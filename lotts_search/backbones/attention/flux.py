"""Reading the attention of a FLUX transformer without changing what it computes.

The processor of each double-stream block is wrapped for one call (``set_attn_processor``, per module, restored
afterwards). The original still computes the output. Beside it, :class:`JointRecorder` takes the probabilities of the
image queries to the text, and :class:`ConceptRecorder` runs the words of other prompts along, in the manner of
ConceptAttention (Helbling et al. 2025). The call ends after the last double-stream block: the single-stream blocks, two
thirds of the depth, are not read.

Memory beyond that of the call: one map per row and prompt; the image queries of the rows that keep them, rows × blocks
× tokens × width numbers in the network's dtype (FLUX at 1024 pixels, one row, 10 blocks: 252 MB in bfloat16); a second
copy of one block's keys and values; and probabilities up to
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
from lotts_search.backbones.attention.recorder import uncompiled
from lotts_search.errors import BadInput

Rotary = tuple[Tensor, Tensor]


class Enough(Exception):
    """Ends a call after the last block that is read."""


class BlockRecorder(Protocol):
    """Records the attention of the double-stream blocks."""

    def see(self, index: int, block: Any, image: Tensor, text: Tensor, rotary: Rotary, outputs: Tensor) -> None:
        """Record one attention call.

        Args:
            index: of the block.
            block: the FluxTransformerBlock.
            image, text: normalised hidden states [B, N, D] and [B, L, D].
            rotary: cosines and sines [L + N, d].
            outputs: the image's attention outputs before projection, [B, N, D].
        """


def default_blocks(blocks: int) -> int:
    """Return how many of the last blocks are read: ConceptAttention's 10 of FLUX's 19, or half of fewer blocks."""
    return 10 if blocks >= 19 else -(-blocks // 2)


class JointRecorder:
    """Records attention probabilities of the image queries to text positions, averaged over positions, heads and
    blocks.

    Args:
        positions: for each row the text positions that count.
        queries: for each row whether the image queries are kept.
        grid: (h, w) of the image tokens.
        read: the blocks that are read.
    """

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
        self._words = found if self._words is None else self._words.to(found.device) + found

    def rows(self) -> list[RowAttention]:
        """Return what was recorded, one entry per row."""
        assert self._words is not None
        return _rows(self._words / len(self._read), self._grid, self._queries, self._wanted)


class ConceptRecorder:
    """Records maps of P prompts per row: mean dot products of the attention outputs of the image and of the prompts'
    words.

    The words start from the output of the text encoder. In each block they attend to the words of the same prompt and
    to the image, under the modulation of that prompt, and pass through the block's text side; nothing attends to them.

    Args:
        embed: returns the embedded words [B, P, n, D], padded to a common n, and the modulation [B, P, D] of each
            prompt; called within the network call, when offloaded weights are on the device.
        valid: [B, P, n], True where there is a word.
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
        # A word attends to the words of its prompt and to the whole image.
        same = torch.eye(prompts, dtype=torch.bool, device=valid.device).repeat_interleave(count, 0)
        own = same.repeat_interleave(count, 1) & valid.view(batch, 1, -1)
        image = own.new_ones(batch, prompts * count, grid[0] * grid[1])
        self._mask = torch.cat([own, image], dim=-1)[:, None]
        self._maps: Tensor | None = None
        self._queries: list[Tensor] = []

    def see(self, index: int, block: Any, image: Tensor, text: Tensor, rotary: Rotary, outputs: Tensor) -> None:
        if index == 0:
            self._words, self._modulation = self._embed()
        if self._words.device != image.device:  # of a network on several devices
            self._words, self._modulation = self._words.to(image.device), self._modulation.to(image.device)
            self._mask, self._weights = self._mask.to(image.device), self._weights.to(image.device)
        attn, (batch, prompts, count, width) = block.attn, self._words.shape
        words = self._words.view(batch * prompts, count, width)
        modulation = self._modulation.view(batch * prompts, -1)
        normal, gate, shift, scale, gate_2 = block.norm1_context(words, emb=modulation)

        def parts(flat: Tensor) -> Tensor:
            return _split(attn, flat).view(batch, prompts * count, attn.heads, -1)

        # Every text token has position 0, at which the rotation is the identity.
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
            self._maps = found if self._maps is None else self._maps.to(found.device) + found
            if self._wanted:
                self._queries.append(image_query[self._wanted].transpose(1, 2))
        words = words + gate[:, None] * attn.to_add_out(own.to(words.dtype).view(batch * prompts, count, -1))
        normal = block.norm2_context(words) * (1 + scale[:, None]) + shift[:, None]
        words = words + gate_2[:, None] * block.ff_context(normal)
        if words.dtype == torch.float16:
            words = words.clip(-65504, 65504)
        self._words = words.view(batch, prompts, count, width)

    def rows(self) -> list[RowAttention]:
        """Return what was recorded, one entry per row."""
        assert self._maps is not None
        return _rows(self._maps / len(self._read), self._grid, self._queries, self._wanted)


def embed_concepts(
    transformer: Any, states: Tensor, pooled: Tensor, timestep: Tensor, guidance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Embed words and modulations as the transformer embeds its prompt.

    Args:
        states: [B, P, n, E] from the text encoder.
        pooled: [B, P, F] pooled text.
        timestep: [B], 0..1.
        guidance: [B], or None for a network without embedded guidance.

    Returns:
        [B, P, n, D] words and [B, P, D] modulations.
    """
    dtype, (batch, prompts) = states.dtype, states.shape[:2]

    def each(values: Tensor) -> Tensor:
        return (values.to(dtype) * 1000).repeat_interleave(prompts)

    inputs = (each(timestep),) if guidance is None else (each(timestep), each(guidance))
    modulation = transformer.time_text_embed(*inputs, pooled.flatten(0, 1))
    return transformer.context_embedder(states), modulation.view(batch, prompts, -1)


class _WatchedBlock:
    """An attention processor that does what the original does, then lets the recorder see."""

    def __init__(self, original: Any, record: BlockRecorder, index: int, block: Any, last: bool):
        self.original, self.record, self.index, self.block, self.last = original, record, index, block, last
        self.outputs: Tensor | None = None

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep the input of the image's output projection."""
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
def capture_joint(transformer: Any, record: BlockRecorder) -> Iterator[None]:
    """Let ``record`` see the attention of a FluxTransformer2DModel in the call inside the block. The call ends after
    the last double-stream block and returns nothing; all processors are restored at the end of the block.

    Raises:
        BadInput: the transformer's projections are fused.
    """
    blocks = transformer.transformer_blocks
    if any(block.attn.fused_projections for block in blocks):
        raise BadInput("attention cannot be read while the transformer's projections are fused")
    originals = dict(transformer.attn_processors)
    watching = {
        f"transformer_blocks.{index}.attn.processor": _WatchedBlock(
            block.attn.processor, record, index, block, index == len(blocks) - 1
        )
        for index, block in enumerate(blocks)
    }
    with contextlib.ExitStack() as hooks:
        for block, watch in zip(blocks, watching.values(), strict=True):
            hooks.enter_context(block.attn.to_out[0].register_forward_pre_hook(watch.note))
        transformer.set_attn_processor(originals | watching)
        try:
            with uncompiled(transformer), contextlib.suppress(Enough):
                yield
        finally:
            transformer.set_attn_processor(originals)


def _split(attn: Any, flat: Tensor) -> Tensor:
    return flat.view(*flat.shape[:-1], -1, attn.head_dim)


def _image_parts(attn: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [B, N, heads, d] of the image, before rotation."""
    query, key = attn.norm_q(_split(attn, attn.to_q(image))), attn.norm_k(_split(attn, attn.to_k(image)))
    return query, key, _split(attn, attn.to_v(image))


def _rotate(values: Tensor, rotary: Rotary) -> Tensor:
    rotated: Tensor = apply_rotary_emb(values, rotary, sequence_dim=1)
    return rotated


def _rows(maps: Tensor, grid: tuple[int, int], queries: list[Tensor], wanted: list[int]) -> list[RowAttention]:
    kept = {row: tuple(layer[i] for layer in queries) for i, row in enumerate(wanted)}
    return [RowAttention(found.view(*found.shape[:-1], *grid), kept.get(row, ())) for row, found in enumerate(maps)]
