"""Plans of localizations: what a mask source needs from the network, and how a mask follows from it.

A mask source names its method (:class:`~lotts_search.work.masks.MaskSource`). The method is called once per
localization, with the backbone, the work and the source, and returns a plan of one of the four kinds below, or the
:class:`~lotts_search.work.requests.Located` itself where nothing is needed from the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from lotts_search.backbones.attention.base import Concept, ReadsAttention, ReadsConcepts, RowAttention
from lotts_search.backbones.base import Backbone, device_of
from lotts_search.errors import BadInput
from lotts_search.plugins import misnamed
from lotts_search.work.masks import method_of
from lotts_search.work.requests import Floats, Locate, Located


@dataclass(frozen=True)
class PredictionRow:
    """One network row whose raw output is read.

    Attributes:
        latent: [C, H, W].
        timestep: training timestep 0..999 that the network is given.
        prompt: text prompt of the row.
    """

    latent: Floats
    timestep: float
    prompt: str


@dataclass(frozen=True)
class AttentionRow:
    """One network row whose attention is read.

    Attributes:
        latent: [C, H, W].
        timestep: training timestep 0..999 that the network is given.
        prompt: text prompt of the row.
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


@runtime_checkable
class PredictionPlan(Protocol):
    """A localization by plain network calls; its rows run together with all other work of the engine.

    Attributes:
        rows: one or more, as many as the source's ``rows()``.
    """

    rows: list[PredictionRow]

    def finish(self, outputs: list[Tensor]) -> Located:
        """Return the mask from the raw network outputs [C, H, W] of the rows."""


@runtime_checkable
class AttentionPlan(Protocol):
    """A localization by network calls whose attention is read; it has all four attributes.

    Attributes:
        rows: one or more, as many as the source's ``rows()``.
        grid: (h, w) of the attention maps.
        blocks: how many of the last blocks are read where the rows have concepts; None where they have none.
    """

    rows: list[AttentionRow]
    grid: tuple[int, int]
    blocks: int | None

    def finish(self, seen: list[RowAttention]) -> Located:
        """Return the mask from the attention of the rows."""


@runtime_checkable
class FusionPlan(Protocol):
    """A localization made of others, which the engine runs side by side.

    Attributes:
        parts: one or more.
    """

    parts: list[Locate]

    def finish(self, found: list[Located]) -> Located:
        """Return the mask from the answers to the parts."""


@runtime_checkable
class CallPlan(Protocol):
    """A localization that waits for something else than the network, e.g. an endpoint. It runs in a thread of its own.

    Optional attributes:
        usage: the :class:`~lotts_search.work.requests.Usage` of the call, such as its scores; read after it.
        expected: the same as far as it is known before the call, so that a search can plan with it.
    """

    def call(self) -> Located:
        """Return the mask."""


Plan: TypeAlias = AttentionPlan | PredictionPlan | FusionPlan | CallPlan


def plan_of(backbone: Backbone, work: Locate) -> Plan | Located:
    """Call the method of the work's mask source.

    Raises:
        BadInput: the state is not complete, a setting of the source does not fit the model, or the method cannot be
            imported or returns something else.
    """
    if not work.state.complete:
        raise BadInput(f"only a finished image can be localized; this one is at step {work.state.step}")
    path, name = work.source.method, type(work.source).__name__
    made: Plan | Located = method_of(type(work.source))(backbone, work, work.source)
    if isinstance(made, Located | CallPlan):
        return made
    if isinstance(made, FusionPlan):
        needed: Sequence[object] = made.parts
    else:
        needed = made.rows if isinstance(made, PredictionPlan | AttentionPlan) else ()
    if not needed and hasattr(made, "rows") and not hasattr(made, "finish"):
        raise BadInput(f"the plan of {name} lacks the method finish(outputs){misnamed(made, 'finish')}")
    if not needed:
        raise BadInput(f"the method {path!r} of {name} must return a Located, or a plan with rows, parts or call()")
    return made


def prompts_of(plan: AttentionPlan | PredictionPlan) -> list[str]:
    """Return the prompts that a plan needs encoded, each once."""
    prompts = dict.fromkeys(row.prompt for row in plan.rows)
    if isinstance(plan, AttentionPlan):
        prompts |= dict.fromkeys(prompt for row in plan.rows for prompt, _, _ in row.concepts)
    return list(prompts)


def attend_rows(
    backbone: Backbone, rows: list[AttentionRow], plan: AttentionPlan, known: Sequence[Mapping[str, Any]]
) -> list[RowAttention]:
    """Read the attention of rows in one network call.

    Args:
        rows: of ``plan``, and of others with the same grid and blocks.
        known: for each row the conditionings by prompt.
    """
    latents, timesteps = row_inputs(backbone, rows)
    stacked = backbone.stack([texts[row.prompt] for row, texts in zip(rows, known, strict=True)])
    queries = [row.queries for row in rows]
    if plan.blocks is None:
        assert isinstance(backbone, ReadsAttention)
        return backbone.attend(latents, timesteps, stacked, [row.positions for row in rows], queries, plan.grid)
    concepts = [
        [Concept(texts[prompt], tokens, read) for prompt, tokens, read in row.concepts]
        for row, texts in zip(rows, known, strict=True)
    ]
    assert isinstance(backbone, ReadsConcepts)
    return backbone.attend_concepts(latents, timesteps, stacked, concepts, queries, plan.blocks)


def row_inputs(backbone: Backbone, rows: Sequence[AttentionRow | PredictionRow]) -> tuple[Tensor, Tensor]:
    """Return the latents [B, C, H, W] and timesteps [B] of rows on the device."""
    device = device_of(backbone)
    latents = torch.from_numpy(np.stack([row.latent for row in rows])).to(device)
    return latents, torch.tensor([row.timestep for row in rows], dtype=torch.float32, device=device)
