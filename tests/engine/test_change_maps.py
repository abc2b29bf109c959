"""The change maps that trajectories leave: against predictions computed one by one, however they are run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lotts_search.engine.engine import Engine
from lotts_search.work.requests import Encode, Floats, Predict, Region, Sampling, Segment, State
from tests.engine.test_engine import Watched
from tests.tiny import run, sample, tiny_backbone

SAMPLING = Sampling("a red circle", 7, 4.0)
MASK = np.random.default_rng(1).random((8, 8)) < 0.5


def state(work: Segment | Predict | Encode) -> State:
    (result,) = run(Engine(tiny_backbone(), 4), work)
    assert result.state is not None
    return result.state


def change(one: State) -> Floats:
    assert one.change is not None
    return one.change


@torch.no_grad()
def prediction(one: State, sampling: Sampling) -> Floats:
    """Call the network by itself, without the engine."""
    backbone, at = tiny_backbone(), torch.from_numpy(one.latent)[None]
    times = backbone.schedule(sampling.steps)
    prompt, empty = backbone.encode_prompts([sampling.prompt, ""])
    time = torch.tensor(float(times.timestep[one.step]))
    with_prompt, without = (backbone.unet(at, time, text[None]).sample for text in (prompt, empty))
    scale = torch.tensor([times.alpha[one.step], times.sigma[one.step]]).view(2, 1, 1, 1, 1).float()
    output = without + sampling.guidance * (with_prompt - without)
    found: Floats = backbone.to_x0(output, at, scale[0], scale[1])[0].numpy()
    return found


def summed(predictions: list[Floats], first: int) -> Floats:
    """Sum the squared differences that end at the indices ``first``, …"""
    differences = np.diff(np.stack(predictions).astype(np.float64), axis=0)[first - 1 :]
    total: Floats = (differences**2).mean(1).sum(0)
    return total


def refinement(parent: State, stop: int, start: int = 2, sampling: Sampling = SAMPLING) -> Segment:
    lineage = ("seed 0", f"refine@{start} 1")
    region = Region(MASK, parent.latent, lineage, 1)
    return Segment(1, sampling, lineage, stop, state=parent, renoise=start, region=region)


@pytest.mark.parametrize("steps", [2, 6, 7])
@pytest.mark.parametrize("solver", ["dpm", "ddim"])
def test_it_sums_the_changes_of_the_prediction_in_the_second_half(steps: int, solver: str) -> None:
    sampling = replace(SAMPLING, steps=steps, solver=solver)
    seen = [prediction(state(sample(0, sampling, stop=stop)), sampling) for stop in range(steps)]
    want = summed(seen, max(1, steps // 2))
    found = change(state(sample(0, sampling)))
    assert found.dtype == np.float32 and found.shape == (8, 8)
    assert np.abs(found - want).max() <= 1e-4 * want.max()


def test_one_step_has_nothing_to_compare() -> None:
    assert state(sample(0, replace(SAMPLING, steps=1))).change is None


def test_the_first_half_leaves_it_empty() -> None:
    assert not change(state(sample(0, SAMPLING, stop=3))).any()
    assert change(state(sample(0, SAMPLING, stop=4))).all()


@pytest.mark.parametrize("looked_at", [False, True])
def test_it_is_the_same_bitwise_in_parts_and_among_others(looked_at: bool) -> None:
    whole = state(sample(0, SAMPLING))
    part = state(sample(0, SAMPLING, stop=0))
    while not part.complete:
        if looked_at:  # the step then starts from a known prediction
            part = state(Predict(part, SAMPLING))
        part = state(Segment(1, SAMPLING, ("seed 0",), part.step + 1, state=part))
    assert np.array_equal(change(part), change(whole)) and np.array_equal(part.latent, whole.latent)
    works = [sample(seed, replace(SAMPLING, steps=3 + seed % 5)) for seed in range(7)]
    works += [sample(0, SAMPLING), refinement(whole, 7), refinement(whole, 7, start=5)]
    for work, result in zip(works, run(Engine(tiny_backbone(), 4), *works), strict=True):
        assert result.state is not None and np.array_equal(change(result.state), change(state(work)))


def test_a_refinement_keeps_its_parents_map_outside_the_mask() -> None:
    parent = state(sample(0, SAMPLING))
    seen = [prediction(state(refinement(parent, stop)), SAMPLING) for stop in range(2, 7)]
    found = change(state(refinement(parent, 7)))
    assert np.array_equal(found[~MASK], change(parent)[~MASK])
    want = summed(seen, 1)[MASK]  # of the steps 3 to 6
    assert np.abs(found[MASK] - want).max() <= 1e-4 * want.max()


def test_a_late_refinement_has_its_parents_share_of_the_steps_that_it_does_not_compare() -> None:
    """From step 5 of 7 it compares the step 6 alone, one of the four that its parent compared."""
    parent = state(sample(0, SAMPLING))
    seen = [prediction(state(refinement(parent, stop, start=5)), SAMPLING) for stop in (5, 6)]
    want = (0.75 * change(parent) + summed(seen, 1))[MASK]
    found = change(state(refinement(parent, 7, start=5)))
    assert np.abs(found[MASK] - want).max() <= 1e-4 * want.max()
    last = change(state(refinement(parent, 7, start=6)))  # compares nothing
    assert np.array_equal(last, change(parent))


def test_refinements_in_parts_are_the_same_bitwise() -> None:
    parent = state(sample(0, SAMPLING))
    whole = state(refinement(parent, 7))
    for stop in (2, 4, 6):
        part = state(refinement(parent, stop))
        rest = state(Segment(1, SAMPLING, part.region.lineage if part.region else (), 7, state=part))
        assert np.array_equal(change(rest), change(whole))


def test_an_encoded_image_and_its_refinements_have_none() -> None:
    encoded = state(Encode(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), 7))
    assert encoded.change is None and state(refinement(encoded, 7)).change is None


def test_a_slot_that_a_refinement_left_has_no_mask() -> None:
    """The sample takes the slot of the refinement, in an engine that has room for one of them."""
    parent = state(sample(0, SAMPLING))
    engine = Engine(tiny_backbone(), 2)
    run(engine, refinement(parent, 7))
    (result,) = run(engine, sample(0, SAMPLING))
    assert result.state is not None and np.array_equal(change(result.state), change(parent))


def test_it_costs_no_network_row() -> None:
    watched = Watched(tiny_backbone())
    run(Engine(watched, 2), sample(0, SAMPLING))
    assert len(watched.rows) == SAMPLING.steps
