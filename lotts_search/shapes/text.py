"""Text side of the shapes models: a word-level CLIPTokenizer and a small CLIPTextModel.

The encoder is pretrained to tell, from the caption alone, which object stands where (:func:`pretrain_text`), and is
then trained on jointly with the U-Net. Without that the U-Net spends most of its training on learning to read.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lotts_search.shapes.data import HIGH, LOW, WORD_SHARE
from lotts_search.shapes.scene import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, random_scene
from lotts_search.shapes.training import Trainer

TEXT_LENGTH = 56
"""Tokens a caption is padded to; the longest caption with a quality word takes 49."""

END = "</w>"
_OTHER_WORDS = "a an the image picture photo of high low good bad best worst quality on in with and , - ."


def new_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer that keeps every word of the captions whole and spells out any other word.

    Always the same one: its merges are written down word by word, where a trained BPE numbers ties by chance.
    """
    words = set(_OTHER_WORDS.split()) | set(COLOURS) | set(SHAPES) | set(BACKGROUNDS)
    words |= {word for place in PLACES for word in place.split()}
    letters = sorted({c.lower() for c in string.printable if not c.isspace()})
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(c + END for c in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words):
        pieces = _apply([*word[:-1], word[-1] + END], list(merges))
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces = _apply(pieces, list(merges))
    tokens += ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=TEXT_LENGTH)


def _apply(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: merge the pair of the lowest rank until none is left."""
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in rank]
        if not pairs:
            return pieces
        chosen = min(pairs, key=rank.__getitem__)
        at = next(i for i, pair in enumerate(itertools.pairwise(pieces)) if pair == chosen)
        pieces = [*pieces[:at], chosen[0] + chosen[1], *pieces[at + 2 :]]


def new_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    """An untrained text encoder over the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Iterable[str]) -> Tensor:
    """Token ids [N, TEXT_LENGTH] of captions, padded and cut as StableDiffusionPipeline does."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


class _Reader(nn.Module):
    """Nine queries, one a cell, that look at the encoded caption and name the cell's colour and shape."""

    def __init__(self, encoder: CLIPTextModel, width: int = 128):
        super().__init__()
        self.encoder = encoder
        self.queries = nn.Parameter(torch.randn(9, width) * 0.2)
        self.keys, self.values = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.colour, self.shape = nn.Linear(width, len(COLOURS) + 1), nn.Linear(width, len(SHAPES) + 1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        text = self.encoder(ids)[0]
        queries = self.queries.expand(len(ids), -1, -1)
        seen = functional.scaled_dot_product_attention(queries, self.keys(text), self.values(text))
        return self.colour(seen), self.shape(seen)


def _labels(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    colours, shapes = torch.zeros(len(scenes), 9, dtype=torch.long), torch.zeros(len(scenes), 9, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            colours[i, o.cell] = 1 + list(COLOURS).index(o.colour)
            shapes[i, o.cell] = 1 + SHAPES.index(o.shape)
    return colours, shapes


def pretrain_text(
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    count: int = 24_000,
    batch: int = 64,
    describe: Callable[[str], None] = print,
) -> CLIPTextModel:
    """Pretrain the encoder on ``count`` captions of training scenes: name what stands in each cell."""
    reader = _Reader(new_text_encoder(tokenizer))
    trainer = Trainer(reader, folder, count // batch, 2e-3, ema=0.99, describe=describe)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([13, step])
        scenes = [random_scene(rng, "train", (1, 9)) for _ in range(batch)]
        words = [(HIGH, LOW)[rng.integers(2)] if rng.random() < WORD_SHARE else "{}" for _ in scenes]
        ids = token_ids(tokenizer, (w.format(s.caption) for w, s in zip(words, scenes, strict=True)))
        colours, shapes = _labels(scenes)
        by_colour, by_shape = reader(ids)
        value = functional.cross_entropy(by_colour.flatten(0, 1), colours.flatten())
        value = value + functional.cross_entropy(by_shape.flatten(0, 1), shapes.flatten())
        right = (by_colour.argmax(-1) == colours) & (by_shape.argmax(-1) == shapes)
        return value, {"loss": float(value.detach()), "right": float(right.float().mean())}

    trainer.run(loss)
    trained = trainer.averaged()
    assert isinstance(trained, _Reader)
    return trained.encoder
