"""The pretraining that teaches a FLUX transformer where words belong, against the attention of the transformer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from lotts_search.shapes.denoisers.base import train_denoiser
from lotts_search.shapes.denoisers.flux import ShapesFlux
from lotts_search.shapes.denoisers.reading import GRID, BlockReader, cells, neutralize_modulation
from lotts_search.shapes.denoisers.text import TEXT_LENGTH
from lotts_search.shapes.world.render import SIZE, cell_box


@pytest.fixture(scope="module")
def model() -> ShapesFlux:
    torch.manual_seed(4)
    return ShapesFlux().eval()


def test_a_token_belongs_to_the_cell_that_covers_most_of_it() -> None:
    side = SIZE // GRID
    for token, cell in enumerate(cells().tolist()):
        row, column = divmod(token, GRID)
        covered = torch.zeros(9)
        for other in range(9):
            pixels = torch.zeros(SIZE, SIZE)
            pixels[cell_box(other)] = 1
            covered[other] = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side].sum()
        assert covered[cell] == covered.max()


def test_the_reader_computes_what_the_first_block_computes(model: ShapesFlux) -> None:
    reader = BlockReader(model.text_2, model.transformer)
    ids = model.token_ids(["top left red circle, center blue star on gray", "left pink ring on black"])[:, 1]
    attention = model.transformer.transformer_blocks[0].attn
    places = FluxPipeline._prepare_latent_image_ids(1, GRID, GRID, "cpu", torch.float32)
    rotary = model.transformer.pos_embed(torch.cat([torch.zeros(TEXT_LENGTH, 3), places]))
    with torch.no_grad():
        words = reader.norm(model.transformer.context_embedder(model.text_2(ids)[0]))
        # Only the words are attended to; the image tokens are zero, so that the query is its bias, as in the reader.
        seen, _ = attention(
            hidden_states=torch.zeros(2, GRID * GRID, words.shape[-1]),
            encoder_hidden_states=words,
            image_rotary_emb=rotary,
            attention_mask=torch.arange(TEXT_LENGTH + GRID * GRID)[None] < TEXT_LENGTH,
        )
        expected = reader.names(seen)
        found = torch.cat(reader(ids), dim=-1)
    assert found.std(dim=1).min() > 1e-3
    assert torch.allclose(found, expected, atol=1e-5)


def test_neutral_modulation_makes_a_plain_transformer(model: ShapesFlux) -> None:
    transformer = model.transformer
    neutralize_modulation(transformer)
    block = transformer.transformer_blocks[1]
    states = torch.randn(2, 5, transformer.inner_dim, generator=torch.Generator().manual_seed(1))
    embedded = torch.randn(2, transformer.inner_dim, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        normed, gate, shift, scale, gate_mlp = block.norm1(states, emb=embedded)
        assert torch.equal(normed, torch.nn.functional.layer_norm(states, states.shape[-1:], eps=1e-6))
        assert (gate == 1).all() and (gate_mlp == 1).all() and not shift.any() and not scale.any()
        _, gate = transformer.single_transformer_blocks[0].norm(states, emb=embedded)
        assert (gate == 1).all()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        latents = torch.randn(2, 8, 16, 16)
        with torch.no_grad():
            loss = model.loss(latents, model.token_ids(["top red star on gray"] * 2), torch.zeros(2, dtype=torch.bool))
        losses.append(float(loss))
    # The prediction is zero, so the loss is the mean square of noise minus latents, both with variance 1.
    assert losses == pytest.approx([2.0, 2.0], rel=0.1)


def test_training_the_denoiser_does_not_change_the_frozen_parts(tmp_path: Path) -> None:
    torch.manual_seed(6)
    model = ShapesFlux()
    parts = {f"{i}.{n}": p for i, part in enumerate(model.frozen()) for n, p in part.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_denoiser(
        model, np.random.default_rng(0).normal(size=(40, 16, 16, 16)).astype(np.float16), ["top red star on gray"] * 40,
        tmp_path, scale=1.0, count=6, batch=2, lr=1e-3, describe=lambda _: None,
    )  # fmt: skip
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    held = {id(p) for p in parts.values()}
    assert {name for name, p in model.named_parameters() if id(p) in held} <= kept
    blocks = [n for n in before if "blocks.3." in n and n.endswith("to_q.weight")]
    assert blocks and not kept & set(blocks)


@pytest.mark.slow
def test_a_block_learns_to_read(tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = ShapesFlux()
    lines: list[str] = []
    model.pretrain(tmp_path, "cpu", lines.append)
    words = lines[-1].split()
    assert float(words[words.index("object") + 1]) > 0.98 and float(words[words.index("place") + 1]) > 0.98
