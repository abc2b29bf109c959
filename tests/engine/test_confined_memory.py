"""Confined calls that do not fit into memory are halved, and so are the whole calls that record for them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from lotts_search.core.costs import Costs
from lotts_search.engine.engine import Engine
from lotts_search.errors import Failure, Notice
from lotts_search.work.requests import Region, Result, Sampling, Segment
from tests.tiny import run, sample
from tests.tiny_flux import flux_of, shared_flux, tiny_flux

STEPS, START, TOKENS, ROWS = 8, 2, 16, 4


def refinements() -> list[Segment]:
    """Four refinements of a quarter of the image; their calls are whole, confined twice, and whole three times."""
    backbone, sampling = shared_flux(), Sampling("a red circle", STEPS, 1.0)
    (parent,) = run(Engine(backbone, 2), sample(0, sampling))
    assert parent.state is not None
    mask = np.zeros((8, 8), np.bool_)
    mask[:4, :4] = True
    costs, works = Costs.of(backbone.info, sampling), []
    for seed in range(ROWS):
        lineage = ("seed 0", f"refine@{START} {seed}")
        confined = costs.confine(costs.touched(mask), refresh=3, warmup=1, ring=0)
        region = Region(mask, parent.state.latent, lineage, 2, confined=confined)
        works.append(Segment(1, sampling, lineage, STEPS, state=parent.state, renoise=START, region=region))
    return works


@pytest.mark.parametrize("where", ["confined", "whole"])
def test_calls_of_refinements_that_do_not_fit_into_memory_are_halved(where: str) -> None:
    works = refinements()
    whole: list[Result] = run(Engine(shared_flux(), ROWS), *works)
    backbone, calls = flux_of(tiny_flux()), list[tuple[str, int]]()

    def limited(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        """Run out of memory in the last block with two streams, when those before it have left something behind."""
        rows, tokens = options["hidden_states"].shape[:2]
        calls.append(("whole" if tokens == TOKENS else "confined", rows))
        if calls[-1][0] == where and rows > 1:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {rows} rows")

    backbone.transformer.transformer_blocks[-1].register_forward_pre_hook(limited, with_kwargs=True)
    with pytest.warns(
        Notice, match="out of memory: the network of tiny-flux takes at most 1 rows at a time from now on"
    ):
        parts = run(Engine(backbone, ROWS), *works)
    first = calls.index((where, ROWS))
    assert calls[first : first + 7] == [(where, 4), (where, 2), *[(where, 1)] * 4, calls[first + 6]]
    assert {rows for kind, rows in calls[first + 2 :]} == {1}
    for want, found in zip(whole, parts, strict=True):
        assert want.state is not None and found.state is not None
        assert np.allclose(found.state.latent, want.state.latent, atol=1e-4)
        assert (found.usage.nfe, found.usage.rows) == (want.usage.nfe, want.usage.rows)


@pytest.mark.parametrize(("kept", "most"), [(4, 4), (3.9, 3), (2, 2), (0.5, 1)])
def test_no_more_is_kept_of_frozen_tokens_than_there_is_memory_for(kept: float, most: int) -> None:
    """``kept``: the memory of how many of the four rows, of each of which a quarter of the tokens is active. One row alone may take more."""
    backbone, rows = flux_of(tiny_flux()), list[int]()

    def count(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        if options["hidden_states"].shape[1] < TOKENS:
            rows.append(options["hidden_states"].shape[0])

    backbone.transformer.transformer_blocks[-1].register_forward_pre_hook(count, with_kwargs=True)
    memory = int(kept * TOKENS * 3 / 4 * backbone.frozen_bytes())
    run(Engine(backbone, ROWS, pad=False, frozen_bytes=memory), *refinements())
    assert max(rows) == most and sum(rows) == 2 * ROWS


def test_a_refinement_of_which_no_row_fits_fails_alone() -> None:
    works = refinements()
    backbone = flux_of(tiny_flux())

    def never(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        if options["hidden_states"].shape[1] < TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory")

    backbone.transformer.transformer_blocks[-1].register_forward_pre_hook(never, with_kwargs=True)
    engine = Engine(backbone, ROWS)
    futures = [engine.submit(work) for work in (*works, sample(7, works[0].sampling))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        while engine.tick():
            pass
    assert [isinstance(future.exception(0), Failure) for future in futures] == [True] * ROWS + [False]
