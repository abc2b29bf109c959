"""MaskGen: the contrast of attention under quality-aware prompts (LoTTS Algorithm 1, Eq. 5-8).

1. Read the attention A of the image to the words of three prompts: A_ori of the original prompt p, A_pos of p+ and
   A_neg of p−.
2. Contrast: A_con = A_neg − A_pos.
3. Propagate: S·A_con and S·A_ori, where S is the self-attention among the image queries.
4. Reweight: heat = unit(A_con) + α·unit(A_ori), where ``unit`` is min-max normalisation.
5. Select the ⌈r·h·w⌉ highest cells.
"""

from __future__ import annotations

import numpy as np
import torch

from lotts_search.backbones.attention.base import ReadsAttention, ReadsConcepts, RowAttention, attention_map
from lotts_search.backbones.base import Backbone
from lotts_search.errors import BadInput
from lotts_search.localization.plan import AttentionRow
from lotts_search.localization.select import flat, from_heat, unit
from lotts_search.work.masks import AttentionMask, ConceptMask
from lotts_search.work.noise import draw
from lotts_search.work.requests import Floats, Locate, Located


def default_grid(grids: dict[int, tuple[int, int]], latent: tuple[int, int]) -> int:
    """Return the paper's choice for SD2.1, a quarter of the latent's side (24 of 96), or the nearest existing grid."""
    wanted = min(latent) / 4
    return min(grids, key=lambda side: (abs(side - wanted), side))


def quality_word(high: list[int], low: list[int]) -> tuple[list[int], list[int]]:
    """Return the indices, in each of two token lists, of the tokens in which they differ: between their common prefix
    and their common suffix."""
    start = 0
    while start < min(len(high), len(low)) and high[start] == low[start]:
        start += 1
    end = 0
    while end < min(len(high), len(low)) - start and high[-1 - end] == low[-1 - end]:
        end += 1
    return list(range(start, len(high) - end)), list(range(start, len(low) - end))


class _Prompts:
    """The three prompts of a localization, in the order ori, pos, neg.

    Attributes:
        texts: the prompts.
        words: for each the text positions of its words.
        chosen: for each the indices of the words that count.
    """

    def __init__(self, backbone: ReadsAttention | ReadsConcepts, work: Locate, source: AttentionMask | ConceptMask):
        prompt = work.sampling.prompt
        self.texts = [prompt, source.high.replace("{}", prompt), source.low.replace("{}", prompt)]
        tokens = [backbone.tokens(text) for text in self.texts]
        first = backbone.first_token
        self.words = [[first + index for index in range(len(ids))] for ids in tokens]
        self.chosen = [list(range(len(ids))) for ids in tokens]
        if source.word_only:
            self.chosen[1], self.chosen[2] = quality_word(tokens[1], tokens[2])
            if not (self.chosen[1] and self.chosen[2]):
                raise BadInput("the quality templates do not differ in a word, so word_only has nothing to read")


def _check(source: AttentionMask | ConceptMask) -> None:
    if not (source.original or source.contrast):
        raise BadInput("an attention mask without the original's attention and without the contrast is empty")
    if source.draws < 1:
        raise BadInput(f"draws must be 1 or more, got {source.draws}")
    if not source.alpha >= 0:
        raise BadInput(f"alpha must be 0 or more, got {source.alpha}")


def _latents(backbone: Backbone, work: Locate, source: AttentionMask | ConceptMask) -> list[Floats]:
    """Return the latent [C, H, W] of each draw."""
    alpha, sigma = backbone.train_level(source.level)
    if not source.noised:
        return [work.state.latent] * source.draws
    noise = [draw(work.search_seed, work.lineage, "locate", i, work.state.latent.shape) for i in range(source.draws)]
    return [np.float32(alpha) * work.state.latent + np.float32(sigma) * one for one in noise]


class AttentionLocalization:
    """One localization by cross-attention or joint attention; an :class:`~lotts_search.localization.plan.AttentionPlan`.

    Attributes:
        rows: 3 per draw, in the order ori, pos, neg.
        grid: (h, w) of the attention maps.
        blocks: None.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: AttentionMask):
        if not isinstance(backbone, ReadsAttention):
            raise BadInput(f"model {backbone.info.name} gives no attention; choose another mask source")
        _check(source)
        self._source, self._size = source, backbone.info.latent[1:]
        grids = backbone.grids()
        side = default_grid(grids, self._size) if source.grid is None else source.grid
        if side not in grids:
            raise BadInput(f"grid must be one of {', '.join(map(str, sorted(grids)))}, got {side}")
        self.grid, self.blocks = grids[side], None
        prompts = _Prompts(backbone, work, source)
        self.rows: list[AttentionRow] = []
        for latent in _latents(backbone, work, source):
            for which, (text, words, chosen) in enumerate(
                zip(prompts.texts, prompts.words, prompts.chosen, strict=True)
            ):
                positions, queries = [words[index] for index in chosen], source.propagate and which == 0
                self.rows.append(AttentionRow(latent, float(source.level), text, positions, queries))

    def finish(self, seen: list[RowAttention]) -> Located:
        """Return the mask from the rows' attention."""
        return _finish(seen, self.grid, self._source, self._size)


class ConceptLocalization:
    """One localization by maps of concepts; an :class:`~lotts_search.localization.plan.AttentionPlan`.

    Attributes:
        rows: one per draw, with the three prompts ori, pos and neg as concepts.
        grid: (h, w) of the image tokens.
        blocks: how many of the last blocks are read.
    """

    def __init__(self, backbone: Backbone, work: Locate, source: ConceptMask):
        if not isinstance(backbone, ReadsConcepts):
            raise BadInput(f"model {backbone.info.name} gives no maps of concepts; choose another mask source")
        _check(source)
        self._source, self._size = source, backbone.info.latent[1:]
        self.grid, self.blocks = backbone.concept_grid(), backbone.concept_blocks(source.blocks)
        prompts = _Prompts(backbone, work, source)
        concepts = tuple(zip(prompts.texts, prompts.words, prompts.chosen, strict=True))
        self.rows = [
            AttentionRow(latent, float(source.level), work.sampling.prompt, [], source.propagate, concepts)
            for latent in _latents(backbone, work, source)
        ]

    def finish(self, seen: list[RowAttention]) -> Located:
        """Return the mask from the rows' maps."""
        return _finish(seen, self.grid, self._source, self._size)


def _finish(
    seen: list[RowAttention], grid: tuple[int, int], source: AttentionMask | ConceptMask, size: tuple[int, int]
) -> Located:
    """Carry out steps 2-5."""
    ori, pos, neg = torch.stack([row.words for row in seen]).view(-1, 3, *grid).mean(0)
    contrast, original = neg - pos, ori
    stages = {"ori": ori, "pos": pos, "neg": neg, "contrast": contrast}
    if source.propagate:
        layers = [layer for row in seen for layer in row.queries]
        if not layers:
            raise BadInput(f"the network has no self-attention at grid {grid[0]}x{grid[1]}")
        values = torch.stack([contrast, original], dim=-1).view(1, -1, 2)
        # S·A is attention with the queries as keys and A as values, averaged over heads, layers and draws.
        spread = torch.stack([attention_map(q[None], q[None], values)[0] for q in layers]).mean(0)
        contrast, original = spread[:, 0].view(grid), spread[:, 1].view(grid)
        stages |= {"propagated contrast": contrast, "propagated ori": original}
    maps = {name: value.cpu().numpy() for name, value in stages.items()}
    con, org = unit(contrast.cpu().numpy()), unit(original.cpu().numpy())
    same = flat(maps["contrast"], float(max(np.abs(maps["pos"]).max(), np.abs(maps["neg"]).max())))
    if source.contrast and (same or not con.any()):
        heat = np.zeros_like(con)  # the original prompt's attention alone does not show a defect
    elif not source.contrast:
        heat = org
    elif not source.original:
        heat = con
    else:
        heat = (con + np.float32(source.alpha) * org).astype(np.float32)
    maps["reweighted"] = heat
    return from_heat(heat, source.ratio, size, maps)
