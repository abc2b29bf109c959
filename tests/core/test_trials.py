"""What trials cost, what they pass on, and how they are recorded."""

from __future__ import annotations

import asyncio
import math
import signal
from concurrent.futures import Future

import numpy as np
import pyarrow.parquet as pq
import pytest

from lotts_search import BadInput, Budget, BudgetTooSmall, Interrupted, asearch, search
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import gather_completed
from lotts_search.core.trial_table import TrialRecord, image_hash, to_table, write_parquet
from lotts_search.strategies.best_of_n import BestOfN
from lotts_search.testing import AnalyticPool
from lotts_search.testing.mixture import INTACT, VARIANCE, posterior, schedule
from lotts_search.work.masks import AttentionMask, WholeMask
from lotts_search.work.model import Defaults
from lotts_search.work.requests import Predict, Score, Segment
from tests.scripted import Scripted, run

DESIGN_COLUMNS = (
    "run_id search_id prompt_id prompt model strategy strategy_args search_seed trial_id parent_id kind label "
    "budget_nfe budget_images budget_flops steps "
    "lineage start stop mask_ratio nfe rows flops images decodes previews encodes scores nfe_cum best_so_far score image "
    "device_s rewrites fallbacks prompts queue_s started finished node actor attempts status error"
)


def image(result, **columns):
    (row,) = [t for t in result.trials if all(getattr(t, name) == value for name, value in columns.items())]
    return result.images[row.trial_id]


def test_a_sample_in_parts_equals_the_sample_in_one():
    async def script(search):
        partial = await search.sample(3, stop=5)
        assert (partial.step, partial.complete, partial.score) == (5, False, None)
        await search.advance(await search.advance(partial, 6))
        await search.sample(3)

    result = run(script)
    assert np.array_equal(image(result, kind="advance", stop=8), image(result, kind="sample", stop=8))
    assert result.ledger.nfe == 16 and result.ledger.images == 2


def test_a_refinement_in_parts_equals_the_refinement_in_one():
    async def script(search):
        parent = await search.sample(0)
        mask = await search.localize(parent)
        part = await search.refine(parent, mask, seed=1, stop=5)
        whole = await search.refine(parent, mask, seed=1)
        rest = await search.advance(part)
        assert rest.refined and rest.nfe == whole.nfe == 13

    result = run(script)
    assert np.array_equal(image(result, kind="refine", stop=8), image(result, kind="advance"))


def test_branches_share_their_noise_up_to_their_own_seed():
    async def script(search):
        partial = await search.sample(0, stop=4)
        children = await gather_seeds(search, partial)
        assert [c.lineage for c in children] == [("seed 0",), ("seed 0", "branch@4 1"), ("seed 0", "branch@4 2")]

    async def gather_seeds(search, partial):
        return [await search.advance(partial, seed=seed) for seed in (None, 1, 2)]

    result = run(script)
    assert len({image_hash(image) for image in result.images.values()}) == 3


def test_scoring_a_partial_candidate_pays_for_its_next_step_once():
    async def script(search):
        partial = await search.sample(3, stop=5)
        first, same = search.score(partial), search.score(partial)
        assert await first == await same == partial.score == await search.score(partial)
        assert search.budget.nfe == 6
        one = await search.advance(partial)
        other = await search.advance(partial, seed=1)
        assert one.nfe == other.nfe == 8

    result = run(script)
    assert [(t.kind, t.nfe) for t in result.trials if t.nfe] == [
        ("sample", 5), ("score", 1), ("advance", 2), ("advance", 2)
    ]  # fmt: skip
    whole = run(lambda search: search.sample(3))
    assert np.array_equal(image(result, kind="advance", lineage=("seed 3",)), whole.image)


def test_a_prediction_under_another_prompt_is_not_reused():
    async def script(search):
        partial = await search.sample(3, stop=5)
        await search.score(partial)
        await search.advance(partial, prompt="blue star")

    pool = AnalyticPool()
    assert run(script, pool).ledger.nfe == 5 + 1 + 3
    last = [w for w in pool.asked if isinstance(w, Segment)][-1]
    assert (last.sampling.prompt, last.state.predicted) == ("blue star", None)
    assert sum(isinstance(w, Predict) for w in pool.asked) == 1


def test_a_sample_may_have_its_own_prompt_guidance_and_steps():
    async def script(search):
        await search.sample(search.near(search.fresh(2), 0.95, 7), negative="blur", guidance=1, steps=12)
        candidate = search.best
        assert (candidate.steps, candidate.nfe) == (12, 12)
        refined = await search.refine(candidate, await search.localize(candidate), seed=0)
        assert refined.nfe == 12 + 12 - round(3 * 12 / 8)

    pool = AnalyticPool()
    result = run(script, pool)
    work = pool.asked[0].sampling
    assert (work.negative, work.guidance, work.steps, work.guided) == ("blur", 1, 12, False)
    assert result.trials[0].lineage == ("seed 2", "near 0.95 7")
    (located,) = [t for t in result.trials if t.kind == "localize"]
    assert (located.nfe, located.rows) == (2, 2)  # unguided, a row is a whole NFE


def test_scores_are_asked_for_without_waiting_for_the_virtual_order():
    """The second sample's score is requested although the first, earlier in virtual time, never finishes before."""

    class FirstLast(AnalyticPool):
        def submit(self, work):
            if isinstance(work, Segment) and work.lineage == ("seed 0",):
                self.asked.append(work)
                self.late = (work, Future())
                return self.late[1]
            future = super().submit(work)
            if isinstance(work, Score) and not self.late[1].done():
                self._answer(*self.late)
            return future

    result = run(lambda search: gather_completed(search.sample(0), search.sample(1)), FirstLast())
    assert [t.lineage for t in result.trials if t.kind == "sample"] == [("seed 0",), ("seed 1",)]


def test_target_stops_at_the_first_score_in_virtual_order_that_reaches_it():
    def once(shuffle):
        with AnalyticPool(shuffle=shuffle) as pool:
            return search("red star", strategy=BestOfN(n=30), pool=pool, nfe=1000, target=0.8, seed=1)

    result = once(None)
    done = [t for t in result.trials if t.kind == "sample" and t.status == "done"]
    assert result.status == "target" and result.score >= 0.8
    assert [t.score >= 0.8 for t in done] == [False] * (len(done) - 1) + [True]
    assert {t.status for t in result.trials[2 * len(done) :]} == {"cancelled"}
    assert result.ledger.nfe == 8 * len(done)
    for shuffle in (1, 2):
        again = once(shuffle)
        assert [vars(t)["trial_id"] for t in again.trials] == [t.trial_id for t in result.trials]
        assert (again.score, again.ledger.nfe) == (result.score, result.ledger.nfe)


def stopping(after, stop):
    """A pool that calls ``stop`` at a sample and leaves that one unanswered."""

    class Stopping(AnalyticPool):
        def submit(self, work):
            if isinstance(work, Segment) and work.lineage == (f"seed {after}",):
                stop()
                return Future()
            return super().submit(work)

    return Stopping()


async def six(search):
    async def branch(start):
        for seed in range(start, start + 3):
            await search.sample(seed)

    await gather_completed(branch(0), branch(3))


def test_ctrl_c_returns_what_was_computed():
    result = run(six, stopping(4, lambda: signal.raise_signal(signal.SIGINT)))
    by_lineage = {t.lineage: t.status for t in result.trials if t.kind == "sample"}
    assert result.status == "interrupted"
    assert by_lineage == {("seed 0",): "done", ("seed 3",): "done", ("seed 1",): "done", ("seed 4",): "cancelled"}
    assert result.score == max(t.score for t in result.trials if t.score is not None)
    assert result.ledger.nfe == 24


def test_ctrl_c_before_the_first_image_returns_an_empty_result():
    result = run(lambda search: search.sample(0), stopping(0, lambda: signal.raise_signal(signal.SIGINT)))
    assert (result.status, result.image, result.score, result.best) == ("interrupted", None, None, None)


def test_cancelling_asearch_carries_the_result():
    async def main():
        task = asyncio.create_task(asearch("red star", strategy=Scripted(six), pool=pool, nfe=100))
        pool.stop = lambda: asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(Interrupted) as caught:
            await task
        return caught.value.result

    with stopping(4, lambda: pool.stop()) as pool:
        result = asyncio.run(main())
    assert result.status == "interrupted"
    assert {t.lineage for t in result.trials if t.status == "done"} == {("seed 0",), ("seed 3",), ("seed 1",)}


def test_search_works_inside_a_running_loop():
    async def notebook():
        with AnalyticPool() as pool:
            return search("red star", strategy="best-of-n", pool=pool, images=2)

    assert asyncio.run(notebook()).ledger.images == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"nfe": float("nan")}, "nfe must be a number of 0 or more"),
        ({"seconds": -1}, "seconds must be a number"),
        ({"steps": 0}, "steps must be a whole number within 1"),
        ({"eta": -1.0}, "eta must be a number of 0 or more"),
        ({"verifier": "x", "strategy": BestOfN(), "settings": {"n": 2}}, "this strategy has its own"),
        ({"image": np.zeros((6, 6, 3), np.uint8), "strategy": "best-of-n"}, "cannot start from an image"),
        ({"image": np.zeros((7, 6, 3), np.uint8)}, r"must be uint8 \[6, 6, 3\] for analytic, not uint8 \[7, 6, 3\]"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments, message):
    with AnalyticPool() as pool:
        with pytest.raises(BadInput, match=message):
            search(**{"prompt": "red star", "pool": pool} | arguments)
        assert pool.asked == []


def test_budget_too_small_names_both_figures():
    with AnalyticPool() as pool, pytest.raises(BudgetTooSmall, match=r"7.5 NFE does not pay .* 8 NFE and 1 image"):
        search("red star", pool=pool, nfe=7.5)
    with AnalyticPool() as pool, pytest.raises(BudgetTooSmall, match="a budget of 0 images"):
        search("red star", pool=pool, images=0)


def test_without_a_budget_it_is_nine_images():
    with AnalyticPool() as pool:
        assert search("red star", strategy="best-of-n", pool=pool).ledger.images == 9


def test_costs_and_counts():
    defaults = Defaults(steps=50, guidance=7.5, t0=25, integrate=5)
    costs = Costs(50, True, defaults)
    assert (costs.sample, costs.refine(), costs.refine(10)) == (Cost(50, 1), Cost(25, 1), Cost(40, 1))
    assert (costs.localize(), costs.localize(WholeMask())) == (Cost(1.5), Cost())
    assert Costs(50, False, defaults).localize(AttentionMask(draws=2)) == Cost(6)
    # The paper's N = 9 = 3 × (1 + 2) for SD2.1 is 6.1 samples' worth of NFE.
    nine = 3 * (costs.sample + costs.localize() + 2 * costs.refine())
    assert (nine.images, round(nine.nfe / 50, 1)) == (9, 6.1)
    budget = Budget(nfe=110, images=3)
    assert (budget.count(costs.sample), budget.count(Cost(5)), budget.count(Cost(1, 1))) == (2, 22, 3)
    assert budget.minus(costs.sample) == Budget(nfe=60, images=2)
    assert Budget(seconds=1).count(costs.sample) is None
    assert (defaults.scaled(10).t0, defaults.scaled(10).integrate) == (5, 1)
    assert (defaults.scaled(1).t0, defaults.scaled(1).integrate) == (0, 0)


def test_rows_add_up_in_virtual_order():
    with AnalyticPool(shuffle=0) as pool:
        result = search("red star", pool=pool, strategy="lotts", nfe=60, run_id="r1", prompt_id="p1")
    trials = result.trials
    assert [t.nfe_cum for t in trials] == list(np.cumsum([t.nfe for t in trials]))
    best = -math.inf
    for trial in trials:
        best = max(best, trial.score if trial.score is not None else -math.inf)
        assert trial.best_so_far == best
    for name in ("nfe", "rows", "flops", "images", "decodes", "scores"):
        assert sum(getattr(t, name) for t in trials) == getattr(result.ledger, name) > 0
    assert result.ledger.rows == 2 * result.ledger.nfe
    refined = [t for t in trials if t.kind == "refine"]
    assert result.best_refined in refined and result.best_refined.score == max(t.score for t in refined)
    assert result.best.score == result.score == max(t.score for t in trials if t.score is not None)
    ids = [t.trial_id for t in trials]
    assert len(set(ids)) == len(ids) and {t.parent_id for t in trials} - {None} <= set(ids)
    assert {(t.run_id, t.prompt_id, t.model, t.strategy) for t in trials} == {("r1", "p1", "analytic", "lotts")}
    assert all(t.image == image_hash(result.images[t.trial_id]) for t in trials if t.image)
    assert {t.trial_id for t in trials if t.kind == "localize"} == set(result.located)


def test_search_ids_tell_searches_apart():
    def search_id(**arguments):
        with AnalyticPool() as pool:
            return search("red star", pool=pool, **{"nfe": 30} | arguments).trials[0].search_id

    assert search_id() == search_id()
    assert len({search_id(), search_id(seed=1), search_id(nfe=31), search_id(settings={"ratio": 0.4})}) == 4


def test_table_has_the_documented_columns_and_survives_parquet(tmp_path):
    with AnalyticPool() as pool:
        result = search("red star", pool=pool, images=3)
    result.trials[0].metrics = {"oracle": 0.5}
    file = write_parquet(result.to_table(), tmp_path / "sub" / "trials.parquet")
    table = pq.read_table(file)
    assert set(DESIGN_COLUMNS.split()) | {"metric_oracle", "nfe_wasted"} == set(table.column_names)
    assert table.column("lineage").to_pylist() == [list(t.lineage) for t in result.trials]
    assert table.column("score").to_pylist() == [t.score for t in result.trials]
    assert table.column("metric_oracle").to_pylist() == [0.5] + [None] * (table.num_rows - 1)
    assert to_table([]).schema.names == [n for n in table.column_names if n != "metric_oracle"]
    assert [p.name for p in file.parent.iterdir()] == ["trials.parquet"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = write_parquet(to_table([]), tmp_path / "t.parquet")
    before = file.read_bytes()

    def broken(table, path, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(to_table([TrialRecord("", "", "", "", "", "", "", 0, "a", None, "sample")]), file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_analytic_model_is_what_it_says():
    """Its prediction is the mean of the posterior, computed here by numerical integration; samples have its share."""
    grid = np.linspace(-4, 4, 200001)
    prior = sum(
        w * np.exp(-((grid - m) ** 2) / (2 * VARIANCE)) for w, m in ((INTACT, 1.0), (1 - INTACT, -1.0))
    )  # fmt: skip
    times = schedule(8)
    for step in (0, 4, 7):
        a, s, x = times.alpha[step], times.sigma[step], 0.3
        weight = prior * np.exp(-((x - a * grid) ** 2) / (2 * s**2))
        mean, _ = posterior(np.full((1, 1, 1), x, np.float32), a, s)
        assert mean.item() == pytest.approx(np.sum(weight * grid) / np.sum(weight), abs=1e-5)
    with AnalyticPool() as pool:
        result = search("red star", strategy=BestOfN(n=60), pool=pool, images=60, steps=24)
    share = np.mean([t.score for t in result.trials if t.kind == "sample"])
    assert share == pytest.approx(INTACT, abs=0.05)
