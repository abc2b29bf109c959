"""Localization outside of an engine, for studies of localization and tests."""

from __future__ import annotations

import torch
from torch import Tensor

from lotts_search.backbones.attention.base import RowAttention
from lotts_search.backbones.base import Backbone, embed_guidance
from lotts_search.localization.plan import (
    AttentionPlan,
    CallPlan,
    FusionPlan,
    attend_rows,
    plan_of,
    prompts_of,
    row_inputs,
)
from lotts_search.localization.select import in_tokens, informed
from lotts_search.work.requests import Locate, Located


@torch.inference_mode()
def locate(backbone: Backbone, work: Locate, *, batch: int = 16) -> Located:
    """Find the region to resample.

    Args:
        backbone: the model.
        work: the finished state and the mask source.
        batch: most rows in one network call.

    Raises:
        BadInput: as :func:`~lotts_search.localization.plan.plan_of`.
    """
    found = in_tokens(_locate(backbone, work, batch), work.source.ratio, backbone.info.patch)
    return informed(found, work, backbone.info)[0]


def _locate(backbone: Backbone, work: Locate, batch: int) -> Located:
    plan = plan_of(backbone, work)
    if isinstance(plan, Located):
        return plan
    if isinstance(plan, CallPlan):
        return plan.call()
    if isinstance(plan, FusionPlan):
        return plan.finish([locate(backbone, part, batch=batch) for part in plan.parts])
    prompts = prompts_of(plan)
    texts = [embed_guidance(backbone, text, work.sampling.guidance) for text in backbone.encode_prompts(prompts)]
    known = dict(zip(prompts, texts, strict=True))
    starts = range(0, len(plan.rows), batch)
    if isinstance(plan, AttentionPlan):
        seen: list[RowAttention] = []
        for part in (plan.rows[start : start + batch] for start in starts):
            seen += attend_rows(backbone, part, plan, [known] * len(part))
        return plan.finish(seen)
    outputs: list[Tensor] = []
    for rows in (plan.rows[start : start + batch] for start in starts):
        stacked = backbone.stack([known[row.prompt] for row in rows])
        outputs += backbone.predict(*row_inputs(backbone, rows), stacked).unbind()
    return plan.finish(outputs)
