"""The one entry to localization: which rows a piece of work needs from the network, and its mask."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from lotts_search.backbones.attention.base import Attentive, Concept, Conceptual, RowAttention
from lotts_search.backbones.base import Backbone, device_of, tell
from lotts_search.errors import BadInput
from lotts_search.localization.disagreement import DisagreementLocalization
from lotts_search.localization.error_contrast import ErrorContrastLocalization, PredictionRow
from lotts_search.localization.fusion import FusionLocalization
from lotts_search.localization.maskgen import AttentionLocalization, AttentionRow
from lotts_search.localization.quality import locate_quality
from lotts_search.localization.select import blocks, given, in_tokens, whole
from lotts_search.work.masks import (
    AttentionMask,
    ConceptMask,
    DisagreementMask,
    ErrorContrastMask,
    FusionMask,
    GivenMask,
    QualityMask,
    RandomMask,
    WholeMask,
)
from lotts_search.work.noise import draw
from lotts_search.work.requests import Locate, Located


class PredictionLocalization(Protocol):
    """A localization by plain network calls; that of a plug-in is one, too, or answers at once."""

    rows: list[PredictionRow]
    """As many as the source's ``rows()``."""

    def finish(self, outputs: list[Tensor]) -> Located:
        """The mask from the raw network outputs [C, H, W] of the rows."""


Localization: TypeAlias = AttentionLocalization | PredictionLocalization | FusionLocalization


def begin(backbone: Backbone, work: Locate) -> Localization | Located:
    """A localization that needs network rows, or its answer at once where none are needed.

    Raises:
        BadInput: the state is not complete, or a setting of the source does not fit the model.
    """
    if not work.state.complete:
        raise BadInput(f"only a finished image can be localized; this one is at step {work.state.step}")
    size, patch = backbone.info.latent[1:], backbone.info.patch
    match work.source:
        case AttentionMask():
            if not hasattr(backbone, "attend"):
                raise BadInput(f"model {backbone.info.name} gives no attention; choose another mask source")
            return AttentionLocalization(cast(Attentive, backbone), work, work.source)
        case ConceptMask():
            if not hasattr(backbone, "attend_concepts"):
                raise BadInput(f"model {backbone.info.name} gives no maps of concepts; choose another mask source")
            return AttentionLocalization(cast(Conceptual, backbone), work, work.source)
        case ErrorContrastMask():
            return ErrorContrastLocalization(backbone, work, work.source)
        case DisagreementMask():
            return DisagreementLocalization(backbone, work, work.source)
        case QualityMask():
            return locate_quality(backbone, work, work.source)
        case FusionMask():
            return FusionLocalization(work, work.source)
        case RandomMask(ratio, block):
            # One number a cell suffices for any block size.
            noise = draw(work.search_seed, work.lineage, "locate", 0, size)
            return blocks(noise, ratio, block, size, patch)
        case WholeMask():
            return whole(size)
        case GivenMask(png):
            return given(png, size, patch)
        case plugin:
            try:
                method = pkgutil.resolve_name(plugin.method)
            except (ImportError, AttributeError, ValueError) as error:
                name = type(plugin).__name__
                raise BadInput(f"the method {plugin.method!r} of {name} cannot be imported: {error}") from error
            made: Localization | Located = method(backbone, work, plugin)
            return made


def prompts_of(task: AttentionLocalization | PredictionLocalization) -> list[str]:
    """The prompts whose conditionings a localization needs."""
    return task.prompts if isinstance(task, AttentionLocalization) else [row.prompt for row in task.rows]


def attend_rows(
    backbone: Backbone, rows: list[AttentionRow], task: AttentionLocalization, known: Sequence[Mapping[str, Any]]
) -> list[RowAttention]:
    """One attention call.

    Args:
        rows: of ``task`` and of localizations that go with it.
        known: for each row the conditionings by prompt.
    """
    latents, timesteps = _inputs(backbone, rows)
    stacked = backbone.stack([texts[row.prompt] for row, texts in zip(rows, known, strict=True)])
    queries = [row.queries for row in rows]
    if task.blocks is None:
        positions = [row.positions for row in rows]
        return cast(Attentive, backbone).attend(latents, timesteps, stacked, positions, queries, task.grid)
    concepts = [
        [Concept(texts[prompt], tokens, read) for prompt, tokens, read in row.concepts]
        for row, texts in zip(rows, known, strict=True)
    ]
    shared = cast(Conceptual, backbone)
    return shared.attend_concepts(latents, timesteps, stacked, concepts, queries, task.blocks)


@torch.inference_mode()
def locate(backbone: Backbone, work: Locate, *, batch: int = 16) -> Located:
    """Find the region to resample, outside an engine: studies of localization and tests.

    Args:
        backbone: the model.
        work: the finished state and the mask source.
        batch: most rows in one network call.
    """
    return in_tokens(_locate(backbone, work, batch), work.source.ratio, backbone.info.patch)


def _locate(backbone: Backbone, work: Locate, batch: int) -> Located:
    task = begin(backbone, work)
    if isinstance(task, Located):
        return task
    if isinstance(task, FusionLocalization):
        return task.finish([locate(backbone, part, batch=batch) for part in task.parts])
    prompts = list(dict.fromkeys(prompts_of(task)))
    texts = [tell(backbone, text, work.sampling.guidance) for text in backbone.encode_prompts(prompts)]
    known = dict(zip(prompts, texts, strict=True))
    starts = range(0, len(task.rows), batch)
    if isinstance(task, AttentionLocalization):
        seen: list[RowAttention] = []
        for part in (task.rows[start : start + batch] for start in starts):
            seen += attend_rows(backbone, part, task, [known] * len(part))
        return task.finish(seen)
    outputs: list[Tensor] = []
    for chunk in (task.rows[start : start + batch] for start in starts):
        outputs += predict_rows(backbone, chunk, backbone.stack([known[row.prompt] for row in chunk]))
    return task.finish(outputs)


def predict_rows(backbone: Backbone, rows: list[PredictionRow], stacked: object) -> list[Tensor]:
    """One plain network call for ``rows`` with their stacked conditioning; raw outputs [C, H, W]."""
    latents, timesteps = _inputs(backbone, rows)
    return list(backbone.predict(latents, timesteps, stacked).unbind())


def _inputs(backbone: Backbone, rows: Sequence[AttentionRow | PredictionRow]) -> tuple[Tensor, Tensor]:
    device = device_of(backbone)
    latents = torch.from_numpy(np.stack([row.latent for row in rows])).to(device)
    return latents, torch.tensor([row.timestep for row in rows], dtype=torch.float32, device=device)
