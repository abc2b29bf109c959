"""The network of ``shapes-reward``, which estimates how much of an image matches its prompt.

A text tower turns the prompt into one query per cell, a convolutional tower turns the pixels of each cell into
features, and a small head compares the two. It is trained on renders with known truth
(:mod:`lotts_search.shapes.reward.training`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from lotts_search.errors import BadInput, Failure
from lotts_search.shapes.world.render import EDGES, SIZE
from lotts_search.shapes.world.scene import BACKGROUNDS, COLOURS, PLACES, SHAPES
from lotts_search.work.requests import Bytes

WORDS: tuple[str, ...] = (
    *dict.fromkeys(word for place in PLACES for word in place.split()), *COLOURS, *SHAPES, *BACKGROUNDS, "on", ",",
)  # fmt: skip
"""The vocabulary of the text tower; id 0 is padding, word ``i`` has id ``i + 1``."""
MAX_WORDS = 44
_IDS = {word: i + 1 for i, word in enumerate(WORDS)}
_TOKEN = re.compile(r"[a-z]+|,")
_CROP, _MARGIN = 24, 1
TARGETS = 10
"""Number of outputs: nine cells and the background."""


def word_ids(prompt: str) -> npt.NDArray[np.int64]:
    """Return the ids of the known words of a prompt, in order [MAX_WORDS]; unknown and surplus words are skipped."""
    known = [_IDS[token] for token in _TOKEN.findall(prompt.lower()) if token in _IDS][:MAX_WORDS]
    ids = np.zeros(MAX_WORDS, dtype=np.int64)
    ids[: len(known)] = known
    return ids


@dataclass(frozen=True)
class RewardConfig:
    """Sizes of the network."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    features: int = 128
    channels: tuple[int, int, int] = (32, 64, 96)


class _TextTower(nn.Module):
    """Word ids [B, L] → queries [B, TARGETS, features]."""

    def __init__(self, config: RewardConfig):
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 1, config.width)
        self.places = nn.Parameter(torch.randn(MAX_WORDS, config.width) * 0.1)
        self.seeds = nn.Parameter(torch.randn(TARGETS, config.width) * 0.5)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 2 * config.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.out = nn.Linear(config.width, config.features)

    def forward(self, ids: Tensor) -> Tensor:
        # The queries are additional tokens, so that each finds the words about its cell by self-attention.
        seeds = self.seeds.expand(len(ids), -1, -1)
        tokens = torch.cat([seeds, self.words(ids) + self.places], dim=1)
        unused = torch.cat([torch.zeros(len(ids), TARGETS, dtype=torch.bool, device=ids.device), ids == 0], dim=1)
        encoded: Tensor = self.out(self.encoder(tokens, src_key_padding_mask=unused)[:, :TARGETS])
        return encoded


class _ImageTower(nn.Module):
    """Images [B, 3, 64, 64] in -1..1 → features [B, 9, features], independently for each cell."""

    def __init__(self, config: RewardConfig):
        super().__init__()
        a, b, c = config.channels
        self.net = nn.Sequential(
            nn.Conv2d(3, a, 4, stride=2, padding=1), nn.GroupNorm(8, a), nn.SiLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU(),
            nn.Conv2d(b, c, 3, padding=1), nn.GroupNorm(8, c), nn.SiLU(),
            nn.Flatten(), nn.Linear(c * (_CROP // 4) ** 2, config.features), nn.SiLU(),
            nn.Linear(config.features, config.features),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(next(self.parameters()).dtype)
        padded = functional.pad(images, (_MARGIN, EDGES[2] + _CROP - _MARGIN - SIZE) * 2, mode="replicate")
        crops = torch.stack([padded[..., y : y + _CROP, x : x + _CROP] for y in EDGES[:3] for x in EDGES[:3]], dim=1)
        features: Tensor = self.net(crops.flatten(0, 1))
        return features.reshape(len(images), 9, -1).float()


class RewardNet(nn.Module):
    """Images [B, 3, 64, 64] in -1..1 and word ids [B, MAX_WORDS] → logits [B, TARGETS] that each cell and the
    background match the words."""

    def __init__(self, config: RewardConfig):
        super().__init__()
        self.config = config
        self.text = _TextTower(config)
        self.picture = _ImageTower(config)  # its name in the embedded weights
        width = config.features
        self.common = nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, 160), nn.SiLU(), nn.Linear(160, 1))

    def towers(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the cells [B, 9, F] and the queries [B, TARGETS, F]."""
        return self.picture(images), self.text(ids)

    def match(self, features: Tensor, queries: Tensor) -> Tensor:
        """Return logits [B, TARGETS]; cells also see the mean over all cells, the background sees only the mean."""
        mean = features.mean(dim=1, keepdim=True)
        seen = torch.cat([features, torch.zeros_like(mean)], dim=1) + self.common(mean)
        logits: Tensor = self.head(torch.cat([seen, queries, seen * queries], dim=-1))
        return logits[..., 0].float()

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.match(*self.towers(images, ids))


def quality(logits: Tensor) -> Tensor:
    """Return the expected quality [B] in 0..1: the mean probability over the cells and the background."""
    return logits.sigmoid().mean(dim=-1)


def save_reward(net: RewardNet, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(net.config), indent=2) + "\n")
    save_file({k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors")


def load_reward(folder: Path) -> RewardNet:
    """Load the network in a folder, in evaluation mode.

    Raises:
        BadInput: the folder has no such model.
        Failure: its files are broken.
    """
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise BadInput(f"no shapes-reward model in {folder}: expected config.json and model.safetensors")
    try:
        config = json.loads((folder / "config.json").read_text())
        net = RewardNet(RewardConfig(**(config | {"channels": tuple(config["channels"])})))
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:
        raise Failure(f"the shapes-reward model in {folder} is broken: {error}") from error
    return net.eval()


def pixels(images: Bytes, device: torch.device | str) -> Tensor:
    """Return uint8 images [B, 64, 64, 3] as the network takes them: [B, 3, 64, 64] in -1..1."""
    # Cutting crops is slow where the channels are last, so they are moved while they are bytes.
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float() / 127.5 - 1


def encode(net: RewardNet, prompt: str) -> Tensor:
    """Return the queries of a prompt [TARGETS, F]."""
    ids = torch.from_numpy(word_ids(prompt))[None].to(next(net.parameters()).device)
    with torch.inference_mode():
        queries: Tensor = net.text(ids)[0]
    return queries


def predict(net: RewardNet, queries: Sequence[Tensor], images: Bytes) -> Tensor:
    """Return logits [B, TARGETS] of images.

    Args:
        queries: of each image's prompt, from :func:`encode`.
        images: uint8 [B, 64, 64, 3].

    Raises:
        BadInput: the images have another shape or type, or there is not one prompt per image.
    """
    if images.dtype != np.uint8 or images.shape != (len(queries), SIZE, SIZE, 3):
        raise BadInput(
            f"shapes-reward expects {len(queries)} uint8 images [64, 64, 3], not {images.dtype} {list(images.shape)}"
        )
    seen = pixels(images, next(net.parameters()).device)
    with torch.inference_mode():
        return net.match(net.picture(seen), torch.stack(list(queries)))
