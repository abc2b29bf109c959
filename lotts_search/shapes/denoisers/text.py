"""The text side of the shapes models: word-level tokenizers and small text encoders, of CLIP's and of T5's kind.

The encoder is pretrained to predict from the caption which object is where (:func:`pretrain_text`), and then trained
jointly with the denoiser. Without pretraining, the denoiser would spend most of its training on learning to read.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from lotts_search.shapes.denoisers.data import TEMPLATES, WORD_SHARE
from lotts_search.shapes.denoisers.loop import Trainer
from lotts_search.shapes.world.scene import COLOURS, SHAPES, Scene, random_scene
from lotts_search.shapes.world.vocabulary import vocabulary

TEXT_LENGTH = 56
"""Captions are padded to this many tokens; the longest caption with a quality word has 49."""

Tokenizer: TypeAlias = CLIPTokenizer | T5Tokenizer
Encoder = TypeVar("Encoder", bound=nn.Module)
Read: TypeAlias = Callable[[Any, Tensor], Tensor]
"""A function of a text encoder and token ids [N, L] that returns hidden states [N, L, D]."""

END = "</w>"
_PREFIXES = [template for pair in TEMPLATES for template in pair]


def new_tokenizer() -> CLIPTokenizer:
    """Return a CLIPTokenizer that keeps every word of the captions whole and spells out any other word.

    It is always the same: its merges are listed word by word, whereas a trained BPE breaks ties at random.
    """
    words = vocabulary()
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
    """Encode by byte pairs: merge the pair with the lowest rank until none is left."""
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in rank]
        if not pairs:
            return pieces
        chosen = min(pairs, key=rank.__getitem__)
        at = next(i for i, pair in enumerate(itertools.pairwise(pieces)) if pair == chosen)
        pieces = [*pieces[:at], chosen[0] + chosen[1], *pieces[at + 2 :]]


def new_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    """Return an untrained text encoder over the tokenizer's vocabulary."""
    return CLIPTextModel(clip_config(tokenizer, width, layers))


def clip_config(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextConfig:
    """Return the configuration of a small CLIP text encoder over the tokenizer's vocabulary."""
    return CLIPTextConfig(
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


def renumbered(weights: dict[str, Tensor], old: CLIPTokenizer, new: CLIPTokenizer) -> dict[str, Tensor]:
    """Return the weights of a CLIP text encoder for a tokenizer with the same words under other ids."""
    order = [old.convert_tokens_to_ids(token) for token in new.convert_ids_to_tokens(list(range(len(new))))]
    return {k: v[order] if k.endswith("token_embedding.weight") else v for k, v in weights.items()}


def new_t5_tokenizer() -> T5Tokenizer:
    """Return a T5Tokenizer with a piece for every word of the captions, and letters for any other word."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = sorted(vocabulary())
    pieces += [("▁" + word, -3.0) for word in [*words, "A"]] + [(word, -4.0) for word in words if len(word) > 1]
    pieces += [(letter, -9.0) for letter in string.printable if not letter.isspace()]
    return T5Tokenizer(vocab=list(dict(pieces).items()), extra_ids=0, model_max_length=TEXT_LENGTH)


def new_t5_encoder(tokenizer: T5Tokenizer, width: int = 128, layers: int = 2) -> T5EncoderModel:
    """Return an untrained T5 encoder over the tokenizer's vocabulary."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def token_ids(tokenizer: Tokenizer, captions: Iterable[str]) -> Tensor:
    """Return the token ids [N, TEXT_LENGTH] of captions, padded and truncated as in the pipelines of diffusers."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


class _CaptionReader(nn.Module):
    """Nine queries, one per cell, that attend to the encoded caption and predict the colour and shape of the cell."""

    def __init__(self, encoder: nn.Module, read: Read, width: int):
        super().__init__()
        self.encoder, self.read = encoder, read
        self.queries = nn.Parameter(torch.randn(9, width) * 0.2)
        self.keys, self.values = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.colour, self.shape = nn.Linear(width, len(COLOURS) + 1), nn.Linear(width, len(SHAPES) + 1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        text = self.read(self.encoder, ids)
        queries = self.queries.expand(len(ids), -1, -1)
        seen = functional.scaled_dot_product_attention(queries, self.keys(text), self.values(text))
        return self.colour(seen), self.shape(seen)


def labels_of(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Return the indices [N, 9] of the colour and of the shape in each cell, 0 in an empty cell."""
    colours, shapes = torch.zeros(len(scenes), 9, dtype=torch.long), torch.zeros(len(scenes), 9, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for o in scene.objects:
            colours[i, o.cell] = 1 + list(COLOURS).index(o.colour)
            shapes[i, o.cell] = 1 + SHAPES.index(o.shape)
    return colours, shapes


def captions_of(rng: np.random.Generator, count: int) -> tuple[list[Scene], list[str]]:
    """Draw training scenes of one to nine objects with a caption each, some with a quality word."""
    scenes = [random_scene(rng, "train", (1, 9)) for _ in range(count)]
    words = [str(rng.choice(_PREFIXES)) if rng.random() < WORD_SHARE else "{}" for _ in scenes]
    return scenes, [w.format(s.caption) for w, s in zip(words, scenes, strict=True)]


def pretrain_text(
    encoder: Encoder,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    width: int = 128,
    read: Read = lambda encoder, ids: encoder(ids)[0],
    count: int = 24_000,
    batch: int = 64,
    device: str = "cpu",
    describe: Callable[[str], None] = print,
) -> Encoder:
    """Pretrain an encoder in place on captions of training scenes: predict the object in each cell.

    Args:
        encoder: an untrained text encoder.
        tokenizer: its tokenizer.
        folder: folder of the checkpoints.
        width: width D of its states.
        read: returns the states [N, L, D] that the denoiser will read, from the encoder and token ids [N, L].
        count: number of captions to train on.
        batch: captions per step.
        device: torch device.
        describe: called with lines of progress.

    Returns:
        The encoder, on the CPU.
    """
    reader = _CaptionReader(encoder, read, width).to(device)
    trainer = Trainer(reader, folder, count // batch, 2e-3, ema=0.99, describe=describe)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        scenes, captions = captions_of(np.random.default_rng([13, step]), batch)
        ids = token_ids(tokenizer, captions).to(device)
        colours, shapes = (labels.to(device) for labels in labels_of(scenes))
        by_colour, by_shape = reader(ids)
        value = functional.cross_entropy(by_colour.flatten(0, 1), colours.flatten())
        value = value + functional.cross_entropy(by_shape.flatten(0, 1), shapes.flatten())
        right = (by_colour.argmax(-1) == colours) & (by_shape.argmax(-1) == shapes)
        return value, {"loss": float(value.detach()), "right": float(right.float().mean())}

    trainer.run(loss)
    trainer.averaged()
    return encoder.to("cpu")
