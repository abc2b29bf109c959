"""MaskGen: the contrast of attention under quality-aware prompts (LoTTS Algorithm 1, Eq. 5-8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from lotts_search.backbones.attention.base import Attentive, Conceptual, RowAttention, attention_map
from lotts_search.errors import BadInput
from lotts_search.localization.select import located, unit
from lotts_search.work.masks import AttentionMask, ConceptMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Locate, Located


@dataclass(frozen=True)
class AttentionRow:
    """One network row whose attention is read.

    Attributes:
        latent: [C, H, W].
        timestep: training timestep that the network is told.
        prompt: what it is told to draw.
        positions: text positions that count; empty where concepts are read.
        queries: whether the image queries are kept.
        concepts: the prompts whose words run beside the image: prompt, positions of its words, indices of those
            that count.
    """

    latent: Floats
    timestep: float
    prompt: str
    positions: list[int]
    queries: bool
    concepts: tuple[tuple[str, list[int], list[int]], ...] = ()


def default_grid(grids: dict[int, tuple[int, int]], latent: tuple[int, int]) -> int:
    """The paper's choice for SD2.1, a quarter of the latent's side (24 of 96), or the nearest grid there is."""
    wanted = min(latent) / 4
    return min(grids, key=lambda side: (abs(side - wanted), side))


def quality_word(high: list[int], low: list[int]) -> tuple[list[int], list[int]]:
    """Indices, in each of two token lists, of the tokens in which they differ: between their common prefix and
    their common suffix."""
    start = 0
    while start < min(len(high), len(low)) and high[start] == low[start]:
        start += 1
    end = 0
    while end < min(len(high), len(low)) - start and high[-1 - end] == low[-1 - end]:
        end += 1
    return list(range(start, len(high) - end)), list(range(start, len(low) - end))


def _grid(backbone: Attentive, wanted: int | None) -> tuple[int, int]:
    grids = backbone.grids()
    height, width = backbone.info.latent[1:]
    side = default_grid(grids, (height, width)) if wanted is None else wanted
    if side not in grids:
        raise BadInput(f"grid must be one of {', '.join(map(str, sorted(grids)))}, got {side}")
    return grids[side]


class AttentionLocalization:
    """One localization by attention: which rows the network must see, and what follows from their attention.

    Attributes:
        rows: 3 a draw, in the order ori, pos, neg; of a :class:`ConceptMask` one a draw, with these three concepts.
        prompts: ori, pos and neg.
        grid: (h, w) of the attention maps.
        blocks: how many blocks a :class:`ConceptMask` reads; None for an :class:`AttentionMask`.
    """

    def __init__(self, backbone: Attentive | Conceptual, work: Locate, source: AttentionMask | ConceptMask):
        if not (source.original or source.contrast):
            raise BadInput("an attention mask without the original's attention and without the contrast is empty")
        if source.draws < 1:
            raise BadInput(f"draws must be 1 or more, got {source.draws}")
        if not source.alpha >= 0:
            raise BadInput(f"alpha must be 0 or more, got {source.alpha}")
        self.blocks: int | None = None
        if isinstance(source, ConceptMask):
            shared = cast(Conceptual, backbone)
            self.grid, self.blocks = shared.concept_grid(), shared.concept_blocks(source.blocks)
        else:
            self.grid = _grid(cast(Attentive, backbone), source.grid)
        self._source, self._size = source, backbone.info.latent[1:]

        prompt = work.sampling.prompt
        self.prompts = [prompt, source.high.replace("{}", prompt), source.low.replace("{}", prompt)]
        tokens = [backbone.tokens(text) for text in self.prompts]
        chosen = [list(range(len(ids))) for ids in tokens]
        if source.word_only:
            chosen[1], chosen[2] = quality_word(tokens[1], tokens[2])
            if not (chosen[1] and chosen[2]):
                raise BadInput("the quality templates do not differ in a word, so word_only has nothing to read")
        first = backbone.first_token

        alpha, sigma = backbone.train_level(source.level)
        self.rows: list[AttentionRow] = []
        for number in range(source.draws):
            latent = work.state.latent
            if source.noised:
                noise = draw(work.search_seed, work.lineage, "locate", number, latent.shape)
                latent = np.float32(alpha) * latent + np.float32(sigma) * noise
            if isinstance(source, ConceptMask):
                places = [[first + index for index in range(len(ids))] for ids in tokens]
                concepts = tuple(zip(self.prompts, places, chosen, strict=True))
                self.rows.append(AttentionRow(latent, float(source.level), prompt, [], source.propagate, concepts))
                continue
            for which, (text, indices) in enumerate(zip(self.prompts, chosen, strict=True)):
                wants, places_read = source.propagate and which == 0, [first + index for index in indices]
                self.rows.append(AttentionRow(latent, float(source.level), text, places_read, wants))

    def goes_with(self, other: AttentionLocalization) -> bool:
        """Whether rows of the two can be in one network call."""
        return (self.grid, self.blocks) == (other.grid, other.blocks)

    def finish(self, seen: list[RowAttention]) -> Located:
        """The five stages (module docstring of :mod:`lotts_search.work.masks` and DESIGN 6.1) from the rows' attention."""
        source = self._source
        words = torch.stack([row.words for row in seen]).view(-1, 3, *self.grid).mean(0)
        ori, pos, neg = words
        stages = {"ori": ori, "pos": pos, "neg": neg, "contrast": neg - pos}
        contrast, original = neg - pos, ori
        if source.propagate:
            layers = [layer for row in seen for layer in row.queries]
            if not layers:
                raise BadInput(f"the network has no self-attention at grid {self.grid[0]}x{self.grid[1]}")
            values = torch.stack([contrast, original], dim=-1).view(1, -1, 2)
            # S·A is attention with the queries as keys and A as values, averaged over heads, layers and draws.
            spread = torch.stack([attention_map(q[None], q[None], values)[0] for q in layers]).mean(0)
            contrast, original = spread[:, 0].view(self.grid), spread[:, 1].view(self.grid)
            stages |= {"propagated contrast": contrast, "propagated ori": original}
        maps = {name: value.cpu().numpy() for name, value in stages.items()}
        con, org = unit(contrast.cpu().numpy()), unit(original.cpu().numpy())
        if not source.contrast:
            heat = org
        elif not source.original:
            heat = con
        else:
            heat = (con + np.float32(source.alpha) * org).astype(np.float32)
        maps["reweighted"] = heat
        return located(heat, source.ratio, self._size, maps)
