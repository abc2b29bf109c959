"""Mosaics: images put together by region, and candidates composed by region."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lotts_search.core.strategy import gather_completed, scored
from lotts_search.engine.solver import NOISE, coefficients
from lotts_search.errors import BadInput
from lotts_search.testing.analytic import Mixture, analytic_info
from lotts_search.testing.mixture import schedule
from lotts_search.work.mosaics import mosaic, upsample
from lotts_search.work.noise import draw
from tests.scripted import run

CHOICE = np.array([[0, 1, 2], [2, 0, 1]])


def test_a_mosaic_shows_in_each_cell_what_the_chosen_layer_shows():
    layers = np.random.default_rng(0).integers(0, 256, (3, 7, 8, 3), np.uint8)
    put = mosaic(layers, CHOICE)
    cells = upsample(CHOICE, (7, 8))
    for i, j in itertools.product(range(7), range(8)):
        assert (put[i, j] == layers[cells[i, j], i, j]).all()
    assert (mosaic(np.moveaxis(layers, 3, 1), CHOICE, axis=2) == np.moveaxis(put, 2, 0)).all()


async def family(search, count=3, step=3):
    """Return a parent and its scored children."""
    parent = await search.sample(0, stop=step)
    await search.score(parent)
    found = await scored(search, [search.child(parent, step + 1, number) for number in range(count)])
    return parent, [one.candidate for one in found]


async def finish(search):
    """Complete any image, for a search must end with one."""
    await search.sample(99)


def test_a_composed_candidate_has_the_latents_and_the_predictions_of_the_chosen_children():
    kept = {}

    async def script(search):
        parent, children = await family(search)
        composed = await search.compose(children, CHOICE)
        kept.update(book=search._book, parent=parent, children=children, composed=composed)
        await search.advance(composed)

    result = run(script)
    book, children, composed = kept["book"], kept["children"], kept["composed"]
    state, states = book.states[composed.key], [book.states[child.key] for child in children]
    for name in ("latent", "predicted"):
        parts = np.stack([getattr(one, name) for one in states])
        assert np.array_equal(getattr(state, name), mosaic(parts, CHOICE, axis=2)), name
    assert np.array_equal(state.previous, states[0].previous)
    # Children compare their parent's prediction with the one before, so their change maps are the same.
    assert all(np.array_equal(state.change, one.change) for one in states)
    assert (composed.step, composed.parent, composed.kind) == (4, kept["parent"], "compose")
    assert composed.lineage[:-1] == kept["parent"].lineage and composed.lineage[-1].startswith("compose@4 ")
    # The parent's four NFE once, and those of three children.
    assert composed.nfe == 4 + 3
    assert result.ledger.nfe == 4 + 3 + 3  # the first step after the composed prediction is paid for
    (row,) = [trial for trial in result.trials if trial.kind == "compose"]
    assert (row.nfe, row.start, row.stop, row.parent_id) == (0, 3, 4, kept["parent"].key)


def test_an_exact_composed_candidate_pays_for_its_own_prediction():
    async def script(search):
        _, children = await family(search)
        composed = await search.compose(children, CHOICE, exact=True)
        await search.score(composed)
        assert search._book.states[composed.key].predicted is not None
        assert composed.nfe == 8
        await search.advance(composed)

    assert run(script).ledger.nfe == 8 + 3


def test_the_noise_of_a_composed_step_is_standard_normal_and_independent_between_cells():
    noises = []
    info = analytic_info()
    table = coefficients(schedule(8), 1.0, "dpm")
    scale = table[1, 3, NOISE]

    async def script(search):
        await finish(search)
        parent, children = await family(search)
        composed = await search.compose(children, CHOICE)
        book = search._book
        # A step is linear in its noise: child 0 without its own noise is the part that all children share.
        own = draw(search.seed, parent.lineage, "step", 3, info.latent)
        shared = book.states[children[0].key].latent - np.float32(scale) * own
        noises.append((book.states[composed.key].latent - shared)[0] / scale)

    for seed in range(400):
        run(script, seed=seed)
    found = np.array(noises).reshape(400, -1)
    count = found.size
    assert abs(found.mean()) < 4 / count**0.5
    assert abs(found.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((found**4).mean() - 3) < 4 * (96 / count) ** 0.5
    correlation = np.corrcoef(found.T)[np.triu_indices(36, 1)]
    assert np.abs(correlation).max() < 4.5 / 400**0.5


def test_start_noises_compose():
    async def script(search):
        starts = await gather_completed(*(search.sample(seed, stop=0) for seed in range(3)))
        composed = await search.compose(starts, CHOICE)
        assert (composed.step, composed.nfe, composed.parent) == (0, 0, None)
        await search.advance(composed)

    assert run(script).ledger.nfe == 8


def test_a_choice_of_one_child_is_that_child_and_no_trial():
    async def script(search):
        await finish(search)
        _, children = await family(search)
        assert await search.compose(children, np.full((2, 2), 1)) is children[1]

    assert {trial.kind for trial in run(script).trials} == {"sample", "score", "advance"}


def test_mosaics_are_scored_as_the_images_that_they_are():
    found = {}

    async def script(search):
        await finish(search)
        _, children = await family(search)
        choices = np.array([CHOICE, np.full((2, 3), 1), 2 - CHOICE])
        found["scores"] = await search.compare(children, choices)
        images = [search._book.images[search._calls._shown[child.key, False]] for child in children]
        found["expected"] = [Mixture().score(mosaic(np.stack(images), choice)) for choice in choices]
        assert found["scores"][1] == children[1].score

    result = run(script)
    assert found["scores"] == found["expected"] and len(set(found["scores"])) > 1
    (row,) = [trial for trial in result.trials if trial.kind == "compare"]
    assert (row.scores, row.nfe) == (3, 0)


def test_complete_images_compare_too_but_do_not_compose():
    async def script(search):
        images = await gather_completed(*(search.sample(seed) for seed in range(3)))
        scores = await search.compare(images, np.array([[[0]], [[1]], [[2]]]))
        assert scores == [image.score for image in images]
        with pytest.raises(BadInput, match="not complete"):
            search.compose(images, CHOICE)

    run(script)


def test_what_does_not_differ_by_white_noise_alone_is_not_composed():
    async def script(search):
        parent, children = await family(search)
        _, strangers = await family(search, step=2)
        whole = await search.sample(5)
        mask = await search.localize(whole)
        refined = [await search.refine(whole, mask, seed=seed, start=3, stop=4) for seed in range(2)]
        revised = await search.advance(parent, 4, seed=9, prompt="blue star")
        later = await search.advance(parent, 5, seed=9)
        for one in (strangers[0], refined[0], later):
            with pytest.raises(BadInput, match="one step after the same parent"):
                search.compose([children[0], one], [[0, 1]])
        with pytest.raises(BadInput, match="one step after the same parent"):
            search.compose(refined, [[0, 1]])  # their backgrounds differ as well
        with pytest.raises(BadInput, match="another prompt"):
            search.compose([children[0], revised], [[0, 1]])

    run(script)


def test_a_refinement_in_progress_composes_inside_its_mask():
    async def script(search):
        whole = await search.sample(5)
        mask = await search.localize(whole)
        root = await search.refine(whole, mask, seed=0, start=3, stop=4)
        await search.score(root)
        children = await scored(search, [search.child(root, 5, number) for number in range(3)])
        composed = await search.compose([one.candidate for one in children], CHOICE)
        assert composed.refined and search._book.states[composed.key].region is not None
        assert (await search.advance(composed)).refined

    run(script)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([0, 1], "2 dimensions"),
        ([[0.5, 1]], "whole numbers"),
        ([[0, 3]], r"0\.\.2, not 0\.\.3"),
        ([[-1, 0]], r"0\.\.2, not -1\.\.0"),
        (np.zeros((0, 2), int), "2 dimensions"),
    ],
)
def test_a_wrong_choice_is_refused(choice, message):
    async def script(search):
        _, children = await family(search)
        search.compose(children, choice)

    with pytest.raises(BadInput, match=message):
        run(script)


def test_an_unscored_candidate_has_no_image_to_compare():
    async def script(search):
        parent = await search.sample(0, stop=3)
        search.compare([parent], [[[0]]])

    with pytest.raises(BadInput, match="score it first"):
        run(script)
