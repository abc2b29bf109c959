"""Pretraining of a FLUX transformer's first block: which words belong to which place of the image.

FLUX encodes places by rotary embeddings only, and all its words have place 0. The first block must discover that the
words *bottom left red circle* matter to the image tokens at the bottom left, and until then the text is of no use. Here
the block learns this separately, in minutes: all its image tokens have the same query, rotated to their place, and from
the attended values a linear layer predicts the object and the place of each token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5EncoderModel, T5Tokenizer

from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.denoisers.text import captions_of, labels_of, token_ids
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, SHAPES, Scene

GRID = 8
"""Image tokens per side."""
MODULATIONS: dict[type[nn.Module], tuple[int, tuple[int, ...]]] = {
    AdaLayerNormZero: (6, (2, 5)),
    AdaLayerNormZeroSingle: (3, (2,)),
    AdaLayerNormContinuous: (2, ()),
}
"""For each kind of modulation: the number of its parts, and which of them are gates."""


def neutralize_modulation(transformer: FluxTransformer2DModel) -> None:
    """Initialize as a plain transformer: modulation has no effect yet, all gates are open, the output is zero."""
    for module in transformer.modules():
        if type(module) in MODULATIONS:
            parts, gates = MODULATIONS[type(module)]
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.linear.bias)
            for gate in gates:
                nn.init.ones_(module.linear.bias.data.chunk(parts)[gate])
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)


def reading_parts(transformer: FluxTransformer2DModel) -> list[nn.Module]:
    """Return the parts of a transformer that :func:`teach_reading` trains, and the layers that feed them."""
    first = transformer.transformer_blocks[0]
    return [transformer.context_embedder, first.attn, first.norm1, first.norm1_context]


def cells() -> Tensor:
    """Return the cell [GRID²] to which most of each image token belongs."""
    own = (np.arange(GRID) + 0.5) * 3 / GRID
    return torch.from_numpy((3 * own.astype(int)[:, None] + own.astype(int)[None]).ravel())


class BlockReader(nn.Module):
    """The text encoder, and the attention of the transformer's first block from image tokens to words."""

    def __init__(self, encoder: T5EncoderModel, transformer: FluxTransformer2DModel):
        super().__init__()
        self.encoder, self.embed = encoder, transformer.context_embedder
        self.attention = transformer.transformer_blocks[0].attn
        width = transformer.inner_dim
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.sizes = [len(COLOURS) + 1, len(SHAPES) + 1, GRID, GRID, len(BACKGROUNDS)]
        self.names = nn.Linear(width, sum(self.sizes))
        ids = FluxPipeline._prepare_latent_image_ids(1, GRID, GRID, "cpu", torch.float32)
        self.turns = transformer.pos_embed(ids)
        # A query that is strong in the rotations that separate eight places: the two fastest ones of each axis.
        start = transformer.config.axes_dims_rope[0]
        with torch.no_grad():
            query = torch.full((self.attention.head_dim,), 0.1)
            for axis in transformer.config.axes_dims_rope[1:]:
                query[start : start + 4] = 1.0
                start += axis
            self.attention.to_q.bias.copy_(query.repeat(self.attention.heads))
            self.attention.to_q.weight.zero_()
            self.attention.norm_q.weight.fill_(1.5)
            self.attention.norm_added_k.weight.fill_(1.5)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Return logits [N, GRID², classes] of each image token's colour, shape, row, column and background."""
        attention = self.attention
        text = self.norm(self.embed(self.encoder(ids)[0]))

        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:-1], attention.heads, attention.head_dim)

        query = attention.norm_q(heads(attention.to_q.bias)).expand(1, GRID * GRID, -1, -1)
        rotated = apply_rotary_emb(query, tuple(t.to(ids.device) for t in self.turns), sequence_dim=1)
        keys, values = attention.norm_added_k(heads(attention.add_k_proj(text))), heads(attention.add_v_proj(text))
        seen = functional.scaled_dot_product_attention(
            rotated.expand(len(ids), -1, -1, -1).transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        )
        out = attention.to_out[0](seen.transpose(1, 2).flatten(2))
        return list(self.names(out).split(self.sizes, dim=-1))


def _targets(scenes: list[Scene]) -> list[Tensor]:
    colours, shapes = (labels[:, cells()] for labels in labels_of(scenes))
    place = torch.arange(GRID * GRID).expand(len(scenes), -1)
    background = torch.tensor([list(BACKGROUNDS).index(s.background) for s in scenes])
    return [colours, shapes, place // GRID, place % GRID, background[:, None].expand(-1, GRID * GRID)]


def teach_reading(
    encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    transformer: FluxTransformer2DModel,
    folder: Path,
    *,
    count: int = 32_000,
    batch: int = 64,
    device: str = "cpu",
    describe: Callable[[str], None] = print,
) -> None:
    """Train a pretrained encoder and the first block of an untrained transformer in place.

    Args:
        encoder: the pretrained text encoder.
        tokenizer: its tokenizer.
        transformer: the untrained transformer.
        folder: folder of the checkpoints.
        count: number of captions to train on.
        batch: captions per step.
        device: torch device.
        describe: called with lines of progress.
    """
    neutralize_modulation(transformer)
    reader = BlockReader(encoder, transformer).to(device)
    trainer = Trainer(reader, folder, count // batch, 2e-3, ema=0.99, warmup=50, describe=describe)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, captions = captions_of(np.random.default_rng([23, step]), batch)
        targets = [t.to(device) for t in _targets(scenes)]
        logits = reader(token_ids(tokenizer, captions).to(device))
        value = torch.stack(
            [functional.cross_entropy(a.flatten(0, 1), t.flatten()) for a, t in zip(logits, targets, strict=True)]
        ).sum()
        hits = [a.argmax(-1) == t for a, t in zip(logits, targets, strict=True)]
        there = targets[0] > 0
        return value, {
            "loss": float(value.detach()),
            "object": float((hits[0] & hits[1])[there].float().mean()),
            "place": float((hits[2] & hits[3]).float().mean()),
        }

    trainer.run(loss)
    trainer.averaged()
    reader.to("cpu")
