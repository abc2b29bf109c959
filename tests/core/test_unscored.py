"""Images that a strategy leaves unscored: none of them wins before the strategy names it."""

from __future__ import annotations

import numpy as np
import pytest

from lotts_search import SearchFailed, search
from lotts_search.core.strategy import gather_completed
from lotts_search.curves import from_table
from lotts_search.errors import Failure
from lotts_search.testing import AnalyticPool
from lotts_search.work.requests import Score
from tests.scripted import Scripted, run


async def images(handle, count=4, **options):
    return await gather_completed(*(handle.sample(seed, **options) for seed in range(count)))


def test_an_unscored_image_wins_only_once_it_is_scored():
    async def script(handle):
        made = await images(handle, score=False)
        assert handle.best is None and {one.score for one in made} == {None}
        worst = min(made, key=lambda one: scores[one.lineage])
        assert await handle.score(worst) == worst.score == await handle.score(worst)
        assert handle.best is worst

    scores = {t.lineage: t.score for t in run(images).trials if t.kind == "sample"}
    assert len(set(scores.values())) > 1
    pool = AnalyticPool()
    result = run(script, pool)
    worst = min(scores, key=scores.get)
    assert (result.best.lineage, result.score) == (worst, scores[worst])
    assert np.array_equal(result.image, result.images[result.best.trial_id])
    assert result.ledger.scores == sum(isinstance(work, Score) for work in pool.asked) == 1
    assert (result.ledger.nfe, result.ledger.images) == (32, 4)
    assert [t.score for t in result.trials if t.kind == "sample" and t.lineage != worst] == [None] * 3
    # Curves read the table alone: at its end the search returns this image.
    trials = from_table(result.to_table())
    assert trials.columns["score"][trials.leading].tolist() == [scores[worst]]


def test_images_differ_in_nothing_but_their_score():
    async def script(handle):
        image = await handle.sample(0, score=False)
        mask = await handle.localize(image)
        refined = await handle.refine(image, mask, seed=3, score=False)
        given = await handle.encode(np.zeros((6, 6, 3), np.uint8), score=False)
        assert given.score is None
        await handle.score(refined)

    async def scored(handle):
        image = await handle.sample(0)
        await handle.refine(image, await handle.localize(image), seed=3)

    one, other = run(script), run(scored)
    (left,), (right,) = ([t for t in result.trials if t.kind == "refine"] for result in (one, other))
    assert (left.image, left.score, left.nfe) == (right.image, right.score, right.nfe)
    assert one.best_refined.trial_id == one.best.trial_id == left.trial_id


def test_a_search_that_scores_none_of_its_images_has_failed():
    with pytest.raises(SearchFailed):
        run(lambda handle: images(handle, score=False))


def test_the_late_score_is_replayed_from_the_journal(tmp_path):
    async def script(handle):
        made = await images(handle, score=False)
        await handle.score(made[2])

    def once(pool):
        with pool:
            return search("red star", strategy=Scripted(script), pool=pool, nfe=100, journal=tmp_path / "j")

    first, again = once(AnalyticPool()), once(pool := AnalyticPool())
    assert pool.asked == [] and again.best.trial_id == first.best.trial_id and again.score == first.score


def test_a_late_score_that_fails_leaves_the_image_unscored():
    tried = []

    def fail(work):
        if isinstance(work, Score):
            tried.append(work)
            return Failure("lost") if len(tried) == 1 else None
        return None

    async def script(handle):
        one, other = await images(handle, 2, score=False)
        with pytest.raises(Failure, match="lost"):
            await handle.score(one)
        assert one.score is None
        await handle.score(other)
        assert handle.best is other

    assert run(script, AnalyticPool(fail=fail)).best.lineage == ("seed 1",)
