"""Curves and comparisons of simulated studies with known truth, and of tables small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lotts_search.core.trial_table import TrialRecord, to_table, write_parquet
from lotts_search.curves import AXES, Results, Setup, best_of_n, best_so_far, fit, from_table, load, mean_interval
from lotts_search.curves.bootstrap import percentile_interval, resampling_weights
from lotts_search.curves.panel import Panel
from lotts_search.curves.speedup import cost_to_reach, speed_up
from lotts_search.errors import BadInput
from lotts_search.testing.studies import Simulated, expected_best, simulate
from tests.made_up import made_up_search


def _hand(rows: list[tuple[str, str, float, float, float | None]]) -> pa.Table:
    """A table of samples: (search, prompt, NFE, the verifier's score, held-out value)."""
    records = [
        TrialRecord(
            "run", search, prompt, prompt, "m", "best-of-n", "{}", 0, f"{i}", None, "sample", nfe=nfe, images=1,
            score=score, image=f"{i}", device_s=nfe / 10, metrics={} if truth is None else {"truth": truth},
        )
        for i, (search, prompt, nfe, score, truth) in enumerate(rows)
    ]  # fmt: skip
    return to_table(records)


def _panel(x: list[float], y: np.ndarray, spent: float | None = None) -> Panel:
    count = len(y)
    total = np.full(count, x[-1] if spent is None else spent)
    return Panel(np.array(x), y, np.arange(count), total, "images", "truth")


def test_held_out_value_follows_the_verifiers_choice() -> None:
    table = _hand(
        [
            ("a", "p", 10, 0.2, 0.9),
            ("a", "p", 10, 0.1, 1.0),  # the best value, but not the best score
            ("a", "p", 10, 0.5, 0.3),
            ("b", "q", 5, 0.7, 0.5),
            ("b", "q", 20, 0.7, 0.8),  # an equal score: the first image stays
        ]
    )
    trials = from_table(table)
    panel = best_so_far(trials, trials.setups[0], "truth", "nfe")
    # Search a changes at 10 and 30, search b begins at 5 and ends at 25; both have an image from 10 on.
    np.testing.assert_array_equal(panel.x, [10, 25, 30])
    np.testing.assert_array_equal(panel.y, [[0.9, 0.9, 0.3], [0.5, 0.5, 0.5]])
    np.testing.assert_array_equal(panel.spent, [30, 25])
    images = best_so_far(trials, trials.setups[0], "score", "images")
    np.testing.assert_array_equal(images.x, [1, 2, 3])
    np.testing.assert_allclose(images.y, [[0.2, 0.2, 0.5], [0.7, 0.7, 0.7]])


def test_interleaved_rows_are_grouped_by_search() -> None:
    rows = [("a", "p", 1.0, 0.1, 0.0), ("b", "q", 1.0, 0.5, 1.0), ("a", "p", 1.0, 0.3, 2.0), ("b", "q", 1.0, 0.2, 3.0)]
    trials = from_table(_hand(rows))
    panel = best_so_far(trials, trials.setups[0], "truth", "images")
    np.testing.assert_array_equal(panel.y, [[0, 2], [1, 1]])


def test_seeds_are_averaged_within_their_prompt() -> None:
    rows = [("a", "p", 1.0, 0.5, 0.0), ("b", "p", 1.0, 0.5, 1.0), ("c", "q", 1.0, 0.5, 4.0)]
    trials = from_table(_hand(rows))
    assert best_so_far(trials, trials.setups[0], "truth", "nfe").final.tolist() == [0.5, 4.0]


def test_running_costs_equal_a_sum_row_by_row() -> None:
    table = simulate({"a": Simulated(images=3), "b": Simulated("lotts", 2)}, 3, 2, rng=np.random.default_rng(0))
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))
    for found in (table, shuffled):
        trials = from_table(found)
        for over in AXES:
            sums: dict[str, float] = {}
            slow = {}
            for row in found.to_pylist():
                sums[row["search_id"]] = sums.get(row["search_id"], 0.0) + row[over]
                slow[row["search_id"], row["trial_id"]] = sums[row["search_id"]]
            ids = list(zip(*(found.column(c).to_pylist() for c in ("search_id", "trial_id")), strict=True))
            np.testing.assert_allclose(trials.cost(over), [slow[ids[i]] for i in trials.order])


def test_the_curve_of_one_search_ends_at_its_own_score_and_cost() -> None:
    result = made_up_search("lotts")
    trials = from_table(result.to_table())
    panel = best_so_far(trials, trials.setups[0], "score", "nfe")
    assert panel.x[-1] == result.ledger.nfe and panel.final == result.score
    refined = best_so_far(trials, trials.setups[0], "score", "nfe", refined=True)
    assert result.best_refined is not None and refined.final == result.best_refined.score


def test_the_pool_is_unbiased_and_agrees_with_the_searches() -> None:
    table = simulate({"base": Simulated(images=12)}, 300, 2, rng=np.random.default_rng(3), difficulty=0.0)
    trials = from_table(table)
    pool, plain = (make(trials, trials.setups[0], "truth", "images") for make in (best_of_n, best_so_far))
    truth = np.array([0.8 * expected_best(n) for n in range(1, 13)])
    curve = pool.curve()
    assert pool.x.size == 24  # the two seeds of a prompt form one pool
    assert ((curve.low[:12] <= truth) & (truth <= curve.high[:12])).mean() > 0.8
    # The pool averages over all subsets, the searches over two seeds: the same mean with less noise.
    np.testing.assert_allclose(pool.y[:, :12].mean(axis=0), plain.y.mean(axis=0), atol=0.12)
    assert pool.y[:, 5].std() < plain.y[:, 5].std()


def test_a_pool_of_refinements_is_refused() -> None:
    trials = from_table(made_up_search("lotts").to_table())
    with pytest.raises(BadInput, match="not a pool of independent samples"):
        best_of_n(trials, trials.setups[0], "score")


def test_the_interval_covers_the_truth_in_93_to_97_percent_of_studies() -> None:
    rng, held = np.random.default_rng(11), 0
    for _ in range(1000):
        # 30 prompts, 2 seeds each: unequal prompts, skewed values within a prompt. The truth is 1.
        values = rng.gamma(4.0, 0.25, size=(30, 2)) + 0.4 * rng.normal(size=(30, 1))
        found = mean_interval(values.mean(axis=1), resamples=1000)
        held += found.low <= 1 <= found.high
    assert 930 <= held <= 970, held


def test_the_curve_of_whole_studies_covers_the_truth() -> None:
    rng, held = np.random.default_rng(12), []
    for _ in range(200):
        trials = from_table(simulate({"base": Simulated(images=6)}, 30, 2, rng=rng))
        curve = best_of_n(trials, trials.setups[0], "truth", most=6).curve(resamples=500)
        truth = np.array([0.8 * expected_best(n) for n in range(1, 7)])
        held.append((curve.low <= truth) & (truth <= curve.high))
    assert 0.91 <= np.mean(held) <= 0.98


def test_a_planted_speed_up_is_recovered() -> None:
    rng, held, ratios = np.random.default_rng(13), 0, []
    strategies = {"base": Simulated(images=120), "ours": Simulated("lotts", 9, speed=3)}
    for _ in range(60):
        results = Results(from_table(simulate(strategies, 100, rng=rng)))
        base, ours = results.find("base"), results.find("ours")
        found = results.speed_up(base, ours, "truth", "images")
        assert found.fast == pytest.approx(9) and found.low < found.ratio <= found.high
        held += found.low <= 3 <= found.high
        ratios.append(found.ratio)
    assert np.median(ratios) == pytest.approx(3.0, rel=0.05)
    assert held >= 54  # 95 % of 60 is 57, with a standard deviation of 1.7


def test_a_planted_speed_up_in_nfe_at_a_given_quality() -> None:
    strategies = {"base": Simulated(images=40, nfe=10.0), "ours": Simulated("lotts", 10, speed=3, nfe=8.0)}
    results = Results(from_table(simulate(strategies, 600, 4, rng=np.random.default_rng(5))))
    base, ours = results.find("base"), results.find("ours")
    # Each image of ours is worth three of the base and costs 0.8 of one.
    found = results.speed_up(base, ours, "truth", "nfe", quality=0.8 * expected_best(12))
    assert found.ratio == pytest.approx(3 / 0.8, rel=0.12)
    assert found.low < 3 / 0.8 < found.high


def test_a_quality_out_of_reach_is_reported_as_such() -> None:
    rng = np.random.default_rng(0)
    low, high = 0.01 * rng.normal(size=(20, 4)), 1 + 0.01 * rng.normal(size=(20, 1))
    slow, fast = _panel([1, 2, 3, 4], np.maximum.accumulate(low, axis=1)), _panel([2.0], high)
    found = speed_up(slow, fast)
    assert found.ratio == np.inf and found.reached == 0 and found.limit == 2
    assert str(found) == "more than 2.00×: the baseline does not reach this quality"
    back = speed_up(fast, slow, quality=0.9)
    assert np.isnan(back.ratio) and str(back) == "the strategy does not reach this quality"


def test_a_quality_reached_in_half_of_the_replicates_leaves_the_interval_open() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 1))
    slow, fast = _panel([1, 2, 4], np.hstack([noise - 1, noise - 0.5, noise + 0.001])), _panel([1.0], 0.3 * rng.normal(size=(50, 1)) + noise)  # fmt: skip
    found = speed_up(slow, fast)
    assert 0 < found.reached < 1 and found.high == np.inf
    assert str(found).endswith("> 4.00]") or found.ratio == np.inf


def test_cost_to_reach_is_linear_between_points() -> None:
    x, curve = np.array([10.0, 20.0, 40.0]), np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(cost_to_reach(x, curve, np.array([1.5, 0.25, 0.5])), [30, 12.5, 10])
    assert np.isinf(cost_to_reach(x, curve, np.array([2.1, 1.1, 0.6]))).all()


def test_expanded_percentiles_become_students_t() -> None:
    values = np.random.default_rng(0).normal(size=12)
    replicates = resampling_weights(12, 200_000) @ values
    low, high = percentile_interval(replicates, 12)
    # Student's t interval of these twelve values; the plain percentile interval is 15 % shorter.
    half = 2.200985160 * values.std(ddof=1) / np.sqrt(12)
    assert (high - low) / 2 == pytest.approx(half, rel=0.03)


def test_win_rates_count_ties_as_half() -> None:
    from statistics import NormalDist

    from lotts_search.curves import win_rate

    found = win_rate(np.array([1.0, 0.0, 2.0, 5.0]), np.array([0.0, 0.0, 3.0, 1.0]))
    assert (found.wins, found.ties, found.losses, found.rate) == (2, 1, 1, 0.625)
    # Wilson's interval solves |rate − p| = z·√(p(1 − p)/n) for p.
    for end in (found.low, found.high):
        reach = NormalDist().inv_cdf(0.975) * np.sqrt(end * (1 - end) / 4)
        assert abs(found.rate - end) == pytest.approx(reach)
    sure = win_rate(np.ones(100), np.zeros(100))
    assert sure.high == 1 and 0.95 < sure.low < 0.97


def test_the_saturation_fit_finds_its_own_curve() -> None:
    x, rng = np.arange(1.0, 65.0), np.random.default_rng(0)
    y = 0.9 - 0.4 * x**-0.7 + 0.05 * rng.normal(size=(200, 1)) + 0.002 * rng.normal(size=(200, 64))
    found = fit(_panel(x.tolist(), y))
    assert found.limit.low < 0.9 < found.limit.high and found.rate.mean == pytest.approx(0.7, rel=0.05)
    assert found.settled and found.error < 1e-3
    assert found.cost(float(found.at(20.0))) == pytest.approx(20)
    assert found.cost(0.95) == np.inf
    rising = fit(_panel(x.tolist(), 0.1 * np.log(x) + 0.001 * rng.normal(size=(50, 64))))
    assert not rising.settled


def _nested() -> Results:
    table = simulate({"base": Simulated(images=12), "ours": Simulated("lotts", 9)}, 8, rng=np.random.default_rng(0))
    budgets = [{"nfe": None, "images": n} for n in (4, 12)]
    about = {"metrics": ["truth"], "strategies": [{"label": "base", "nested": True, "budgets": budgets}]}
    return Results(from_table(table, about), about)


def test_smaller_budgets_of_a_nested_strategy_are_beginnings() -> None:
    results = _nested()
    assert results.setups == [
        Setup("simulated", "base", None, 12), Setup("simulated", "ours", None, 9), Setup("simulated", "base", None, 4)
    ]  # fmt: skip
    small = results.find("base", images=4)
    assert results.spent(small, "images") == 4 and results.spent(small, "nfe") == 40
    whole = best_so_far(results.trials, results.find("base"), "truth", "images")
    np.testing.assert_array_equal(best_so_far(results.trials, small, "truth", "images").final, whole.y[:, 3])
    pool = best_of_n(results.trials, results.find("base", images=12), "truth")
    np.testing.assert_allclose(results.final(small).final, pool.y[:, 3])


def test_a_budget_between_two_pools_is_read_from_the_larger() -> None:
    """As in the paper's tables: five images in one run; 1, 8 and 12 as beginnings of 12 in another."""
    rng = np.random.default_rng(0)
    five, twelve = (simulate({"base": Simulated(images=n)}, 8, rng=rng) for n in (5, 12))
    names = [f"{name}-five" for name in five["search_id"].to_pylist()]
    five = five.set_column(five.schema.get_field_index("search_id"), "search_id", pa.array(names))
    budgets = [{"nfe": None, "images": n} for n in (1, 8, 12)]
    about = {"metrics": ["truth"], "strategies": [{"label": "base", "nested": True, "budgets": budgets}]}
    results = Results(from_table(pa.concat_tables([five, twelve]), about), about)
    pool = best_of_n(results.trials, results.find("base", images=12), "truth")
    for n in (1, 8, 12):
        np.testing.assert_allclose(results.final(results.find("base", images=n)).final, pool.y[:, n - 1])


def test_errors_about_unknown_names_list_the_known_ones() -> None:
    results = _nested()
    assert results.main == "truth"
    with pytest.raises(BadInput, match="base"):
        results.find("bas")
    with pytest.raises(BadInput, match=r"no setup of ours fits\. Known: simulated with 9 images"):
        results.find("ours", images=7)
    with pytest.raises(BadInput, match="truth"):
        results.value(results.find("ours"), "truht")
    with pytest.raises(BadInput, match="device_s"):
        results.panel(results.find("ours"), over="seconds")


def test_several_runs_are_read_as_one_study(tmp_path: Path) -> None:
    one = _hand([("a", "p", 1.0, 0.5, 0.3), ("b", "q", 1.0, 0.5, 0.7)])
    two = _hand([("b", "q", 1.0, 0.5, 0.7), ("c", "r", 1.0, 0.5, 0.5)])  # b is in both
    for name, table in (("one", one), ("two", two)):
        write_parquet(table, tmp_path / name / "trials.parquet")
    results = load(tmp_path / "one", tmp_path / "two")
    panel = results.panel(results.find("best-of-n"), "truth", "images")
    assert panel.final.tolist() == [0.3, 0.7, 0.5] and panel.x.tolist() == [1]


def test_labels_that_share_a_search_are_two_arms() -> None:
    table = _hand([("a", "p", 1.0, 0.5, 0.3)])
    where = table.column_names.index("label")
    both = pa.concat_tables([table.set_column(where, "label", pa.array([name])) for name in ("x", "y")])
    assert [setup.label for setup in from_table(both).setups] == ["x", "y"]


def test_a_run_folder_without_trials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no trials in"):
        load(tmp_path)
    (tmp_path / "trials.parquet").write_text("text")
    with pytest.raises(BadInput, match="not a Parquet file"):
        load(tmp_path)
    write_parquet(pa.table({"score": [1.0]}), tmp_path / "trials.parquet")
    with pytest.raises(BadInput, match="'search_id'"):
        load(tmp_path)
    write_parquet(_hand([]), tmp_path / "trials.parquet")
    with pytest.raises(BadInput, match="empty"):
        load(tmp_path)


def test_failed_searches_are_left_out_and_missing_metrics_are_named() -> None:
    table = _hand([("a", "p", 1.0, 0.5, 0.3), ("b", "q", 1.0, 0.5, None)])
    trials = from_table(table)
    with pytest.raises(BadInput, match="1 of 2 best images by best-of-n have no truth"):
        best_so_far(trials, trials.setups[0], "truth", "nfe")
    failed = table.set_column(table.column_names.index("image"), "image", pa.array(["0", None]))
    trials = from_table(failed)
    panel = best_so_far(trials, trials.setups[0], "truth", "nfe")
    assert panel.final.tolist() == [0.3] and [trials.prompts[i] for i in panel.prompts] == ["p"]


def _judged(ours: list[float], theirs: list[float]) -> Results:
    """Two strategies with one image for each prompt, whose held-out values are given."""
    rows = []
    for label, values in (("ours", ours), ("theirs", theirs)):
        table = _hand([(f"{label} {i}", f"p{i}", 1.0, 0.5 + 0.01 * i, value) for i, value in enumerate(values)])
        rows.append(table.set_column(table.column_names.index("label"), "label", pa.array([label] * len(values))))
    return Results(from_table(pa.concat_tables(rows)))


@pytest.mark.parametrize(
    ("good", "count", "low", "high"),
    [(0, 8, 0.0, 0.3244), (8, 8, 0.6756, 1.0), (3, 10, 0.1078, 0.6032), (1, 20, 0.0089, 0.2361)],
)
def test_a_share_has_wilsons_interval(good: int, count: int, low: float, high: float) -> None:
    """The expected ends are tabulated ones (R: prop.test without correction)."""
    values = [1.0] * good + [0.0] * (count - good)
    results = _judged(values, [0.0, 1.0] + [0.0] * (count - 2))
    ours = results.find("ours")
    found, curve = results.value(ours, "truth"), results.panel(ours, "truth").curve()
    assert (found.mean, found.low, found.high) == pytest.approx((good / count, low, high), abs=6e-5)
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((found.low, found.high))
    assert not results.panel(ours, "score").share


def test_the_difference_of_two_shares_does_not_collapse() -> None:
    results = _judged([0.0] * 8, [0.0] * 8)
    found = results.difference(results.find("ours"), results.find("theirs"), "truth")
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, -0.3244, 0.3244), abs=6e-5)
    # The pairs 36, 12, 2, 0 of Newcombe 1998, method 10.
    pairs = [(1.0, 1.0)] * 36 + [(1.0, 0.0)] * 12 + [(0.0, 1.0)] * 2
    results = _judged([a for a, _ in pairs], [b for _, b in pairs])
    found = results.difference(results.find("ours"), results.find("theirs"), "truth")
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=6e-5)
    wide = results.difference(results.find("ours"), results.find("theirs"), "score")
    assert wide.low == wide.high == 0.0  # the scores are the same, and no shares


def test_a_bound_below_one_is_not_printed_beside_a_strategy_that_leads() -> None:
    slow = _panel([1, 2, 4], np.tile([0.1, 0.2, 0.3], (20, 1)))
    for cost, text in ((8.0, ""), (4.0, "more than 1.00×: "), (0.5, "more than 8.00×: ")):
        found = speed_up(slow, _panel([cost], np.ones((20, 1))))
        assert str(found) == f"{text}the baseline does not reach this quality"
