"""Particle, BeamInMask, SVDD, DiffusionTreeSearch and RolloverBudget: the conformance of each, and what each is about."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lotts_search import BadInput, Failure, SearchResult, search
from lotts_search.core.budget import Budget
from lotts_search.core.costs import Cost, Costs
from lotts_search.core.strategy import Plan, Strategy
from lotts_search.core.trial_table import TrialRecord
from lotts_search.strategies.beam_in_mask import BeamInMask
from lotts_search.strategies.lotts import LoTTS
from lotts_search.strategies.particle import Particle
from lotts_search.strategies.resampling import Resampling
from lotts_search.strategies.rollover_budget import RolloverBudget
from lotts_search.strategies.svdd import SVDD
from lotts_search.strategies.tree_search import DiffusionTreeSearch
from lotts_search.strategies.verifier_threshold import VerifierThreshold
from lotts_search.testing import AnalyticPool, seconds_as_requests
from lotts_search.testing.conformance import StrategyConformance
from lotts_search.testing.gaussian import Gaussian
from lotts_search.work.masks import WholeMask
from lotts_search.work.requests import Generate, Score, Segment, Solver

MODEL = Gaussian()
# On the analytic model: a sample costs 8 NFE, a localization 1, a refinement 5.


class FewBudgets(StrategyConformance):
    """For the variants of a strategy: 12 of the 50 budgets."""

    def budgets(self, count: int = 50) -> list[dict[str, Any]]:
        return super().budgets(min(count, 12))


class TestParticle(StrategyConformance):
    def strategy(self) -> Strategy:
        return Particle()


class TestParticleOften(FewBudgets):
    def strategy(self) -> Strategy:
        return Particle(interval=0.01, adaptive=False, potential="diff", resampling="residual", first=0, last=1)


class TestParticleByFlemingViot(FewBudgets):
    def strategy(self) -> Strategy:
        return Particle(interval=0.01, resampling="fleming-viot", adaptive=False)


class TestParticleOfAdaptiveTemperature(FewBudgets):
    def strategy(self) -> Strategy:
        return Particle(interval=0.01, ess=0.5)


class TestParticleFunnel(FewBudgets):
    def strategy(self) -> Strategy:
        return Particle(funnel=0.25)

    def test_what_is_left_pays_for_nothing_more(self) -> None:
        """One particle more, with its share of all stages."""
        for limits in (Budget(nfe=64), Budget(nfe=100), Budget(images=3)):
            counts = [Particle(funnel=0.25, particles=n).plan(Budget(images=99), self.costs) for n in range(1, 60)]
            paid = [p for p in counts if limits.pays(Cost(p.nfe, 0 if limits.images is None else _images(p)))]
            assert Particle(funnel=0.25).plan(limits, self.costs) == paid[-1]


def _images(plan: Plan) -> int:
    """At T = 8 with stops 2, 3, 5, 6, 8: n particles end in round(n / 4) images."""
    return max(1, round(plan.trials["sample"] / 4))


class TestParticleInMask(StrategyConformance):
    def strategy(self) -> Strategy:
        return Particle(local=True, interval=0.01)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        refine = self.strategy().refinement(costs)
        return refine if plan.trials.get("localize") else costs.localize() + refine


class TestBeamInMask(TestParticleInMask):
    def strategy(self) -> Strategy:
        return BeamInMask()


class TestBeamsOfOneRoot(FewBudgets, TestParticleInMask):
    def strategy(self) -> Strategy:
        return BeamInMask(initial=1, beams=3, interval=0.01)


class TestBeamsOnTheWholeImage(FewBudgets):
    def strategy(self) -> Strategy:
        return BeamInMask(mask=WholeMask(), temporal=False)


class TestSVDD(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return SVDD(children=5)


class TestSoftSVDD(FewBudgets, TestSVDD):
    def strategy(self) -> Strategy:
        return SVDD(alpha=0.1)


class TestDiffusionTreeSearch(StrategyConformance):
    def strategy(self) -> Strategy:
        return DiffusionTreeSearch()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.segment(5, 8)


class TestTreeOfAllSteps(FewBudgets, TestDiffusionTreeSearch):
    def strategy(self) -> Strategy:
        return DiffusionTreeSearch(interval=0.01, greedy=False, walkers=3)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.segment(6, 8)


class TestRolloverBudget(StrategyConformance):
    images_are_steps = True

    def strategy(self) -> Strategy:
        return RolloverBudget()


class TestVerifierThreshold(FewBudgets, TestRolloverBudget):
    def strategy(self) -> Strategy:
        return VerifierThreshold()


class TestSmallQuotas(FewBudgets, TestRolloverBudget):
    def strategy(self) -> Strategy:
        return RolloverBudget(initial=4, quota=2)


def run(strategy: Strategy, **arguments: Any) -> tuple[SearchResult, list[Segment]]:
    with AnalyticPool() as pool:
        result = search("red star", strategy=strategy, pool=pool, **arguments)
    return result, [work for work in pool.asked if isinstance(work, Segment)]


def families(result: SearchResult) -> dict[str, list[TrialRecord]]:
    """The trials that advanced each candidate, by its id, in their order; their scores are those of what they made."""
    scores = {t.parent_id: t.score for t in result.trials if t.kind == "score"}
    found: dict[str, list[TrialRecord]] = {}
    for trial in result.trials:
        if trial.kind == "advance":
            found.setdefault(trial.parent_id or "", []).append(replace(trial, score=scores.get(trial.trial_id)))
    return found


@pytest.mark.parametrize("strategy", [SVDD(children=1), SVDD(), DiffusionTreeSearch(), RolloverBudget()], ids=repr)
@pytest.mark.parametrize("solver", ["dpm", "ddim"])
def test_with_the_budget_of_one_sample_it_is_the_plain_sample(strategy: Strategy, solver: Solver) -> None:
    plain, _ = run(Resampling(), nfe=8, solver=solver)
    result, _ = run(strategy, nfe=8, solver=solver)
    assert np.array_equal(result.image, plain.image)
    assert result.ledger.nfe == 8 and result.ledger.images == 1


def test_one_beam_with_one_child_is_the_plain_refinement() -> None:
    plain, _ = run(LoTTS(initial=1, refinements=1), nfe=14)
    result, _ = run(BeamInMask(initial=1, beams=1, children=1, interval=0.01), nfe=14)
    assert result.ledger.nfe == plain.ledger.nfe == 14
    (expected,) = [plain.images[t.trial_id] for t in plain.trials if t.kind == "refine"]
    (found,) = [result.images[t.trial_id] for t in result.trials if t.kind == "advance" and t.stop == 8]
    assert np.array_equal(found, expected)


def test_the_best_beams_continue_with_all_their_children() -> None:
    result, made = run(BeamInMask(initial=1, beams=2, children=3), nfe=8 + 1 + 6 * 5)
    scores = {t.parent_id: t.score for t in result.trials if t.kind == "score"}
    by_stop: dict[int | None, list[TrialRecord]] = {}
    for trial in result.trials:
        if trial.kind in ("refine", "advance"):
            by_stop.setdefault(trial.stop, []).append(trial)
    assert {stop: len(trials) for stop, trials in by_stop.items()} == {5: 6, 8: 6}
    best = sorted((scores[t.trial_id] for t in by_stop[5]), reverse=True)[:2]
    parents = Counter(t.parent_id for t in by_stop[8])
    assert sorted(parents.values()) == [3, 3] and sorted((scores[key] for key in parents), reverse=True) == best
    # One child of each keeps its parent's noise, the others draw new noise.
    assert Counter(len(t.lineage) for t in by_stop[8]) == {2: 2, 3: 4} and len({t.lineage for t in by_stop[8]}) == 6
    assert result.ledger.nfe == 8 + 1 + 6 * 5
    assert all(w.state.region is not None and w.state.region.integrate == 1 for w in made if w.stop == 8 and w.state)


def test_leftover_becomes_beams_on_the_best_image() -> None:
    result, _ = run(BeamInMask(initial=2), nfe=2 * 29 + 13, seed=1)
    samples = sorted((t for t in result.trials if t.kind == "sample"), key=lambda t: t.score or 0.0)
    assert samples[0].score != samples[1].score
    refined = Counter(t.parent_id for t in result.trials if t.kind == "refine")
    assert refined == {samples[0].trial_id: 4, samples[1].trial_id: 6}
    assert len({t.lineage for t in result.trials if t.kind == "refine"}) == 10


def test_a_given_image_gets_all_beams() -> None:
    given, _ = run(Resampling(), nfe=8, seed=4)
    result, _ = run(BeamInMask(), nfe=1 + 5 * 6, image=given.image)
    kinds = Counter(t.kind for t in result.trials)
    assert (kinds["encode"], kinds["localize"], kinds["refine"], kinds["sample"]) == (1, 1, 6, 0)


def test_at_every_step_the_best_child_continues() -> None:
    result, made = run(SVDD(children=4), nfe=1 + 4 * 7)
    generations = list(families(result).values())
    assert [len(children) for children in generations] == [4] * 7 + [1]
    for children, after in pairwise(generations):
        best = max(children, key=lambda t: t.score or 0.0)
        assert {t.parent_id for t in after} == {best.trial_id}
    assert all(w.nfe == 0 for w in made) and result.ledger.images == 1


def test_a_soft_choice_is_drawn_and_not_always_the_best() -> None:
    generations = list(families(run(SVDD(children=4, alpha=10.0), nfe=1 + 4 * 7)[0]).values())
    chosen = [next(t for t in one if t.trial_id == after[0].parent_id) for one, after in pairwise(generations)]
    assert any(t.score != max(c.score or 0.0 for c in one) for t, one in zip(chosen, generations, strict=False))


def test_what_whole_chains_leave_goes_into_a_smaller_one() -> None:
    result, _ = run(SVDD(children=4), nfe=29 + 1 + 2 * 7 + 6.5)
    assert [t.lineage for t in result.trials if t.kind == "sample"] == [("seed 0",), ("seed 1",)]
    assert result.ledger.nfe == 29 + 1 + 2 * 7 + 6 and result.ledger.images == 2
    small = [children for children in families(result).values() if children[0].lineage[0] == "seed 1"]
    assert [len(children) for children in small] == [3, 3, 3, 3, 3, 3, 2, 1]


def test_descents_use_the_budget_and_branch_where_values_are_high() -> None:
    result, _ = run(DiffusionTreeSearch(interval=0.25), nfe=160)
    grown = families(result)
    images = [t for children in grown.values() for t in children if t.stop == 8]
    assert len(images) > 160 / 8 * 1.3, "descents must branch late as well"
    assert result.ledger.nfe > 160 - 2 and len({t.image for t in images}) == len(images)
    branching = [[t for t in children if t.stop != 8] for children in grown.values()]
    assert max(map(len, branching)) >= 3 and len(images) < 160 / 2
    assert result.score == max(t.score for t in result.trials if t.stop == 8)


def test_walkers_never_promise_the_same_budget_twice() -> None:
    for walkers in (1, 4):
        result, _ = run(DiffusionTreeSearch(interval=0.25, walkers=walkers), nfe=63)
        ends = [t for t in result.trials if t.stop == 8]
        begun = len(ends) + sum(t.stop != 8 and t.kind == "advance" for t in result.trials)
        assert all(t.status == "done" for t in result.trials) and begun > len(ends)
        halves = {t.trial_id for t in result.trials if t.kind in ("sample", "advance") and t.stop != 8}
        assert halves <= {t.parent_id for t in result.trials}, "a descent ended half-way"


def test_a_lost_descent_does_not_end_the_search() -> None:
    count = Counter[str]()

    def fail(work: Generate | Score) -> Exception | None:
        count["all"] += isinstance(work, Segment)
        return Failure("lost") if isinstance(work, Segment) and count["all"] == 5 else None

    with AnalyticPool(fail=fail) as pool:
        result = search("red star", strategy=DiffusionTreeSearch(), pool=pool, nfe=80)
    assert sum(t.status == "failed" for t in result.trials) == 1 and result.ledger.nfe > 80 - 3


def test_unused_quotas_roll_over() -> None:
    """The rule, applied again to the scores of the trial table."""
    settings = {"initial": 3, "quota": 4}
    found = 0
    for seed in range(4):
        with AnalyticPool(MODEL.info(8), model=MODEL) as pool:
            strategy = RolloverBudget(**settings)
            result = search("x", strategy=strategy, pool=pool, nfe=3 + 4 * 7, seed=seed)
        grown = families(result)
        scores = {t.parent_id: t.score for t in result.trials if t.kind == "score"}
        starts = [t.trial_id for t in result.trials if t.kind == "sample"][:3]
        one, left = max(starts, key=lambda key: scores[key] or 0.0), 0
        record = scores[one] or 0.0
        for _ in range(7):
            children, quota = grown[one], left + 4
            better = [i for i, t in enumerate(children) if (t.score or 0.0) > record]
            assert len(children) == (better[0] + 1 if better else quota)
            left = quota - len(children) if better else 0
            found += left > 0
            best = children[-1] if better else max(children, key=lambda t: t.score or 0.0)
            one, record = best.trial_id, max(record, best.score or 0.0)
        assert [t.stop for t in grown[one]] == [8]
    assert found > 3, "no quota was left over"


def test_a_step_ends_with_the_first_child_above_the_threshold() -> None:
    """The rule, applied again to the scores of the trial table; the threshold is the same at all steps."""
    ended = exhausted = between = 0
    for seed in range(8):
        with AnalyticPool(MODEL.info(8), model=MODEL) as pool:
            strategy = VerifierThreshold(initial=4, quota=3, threshold=20.0)
            result = search("x", strategy=strategy, pool=pool, nfe=4 + 3 * 7, seed=seed)
        grown = families(result)
        scores = {t.parent_id: t.score or 0.0 for t in result.trials if t.kind == "score"}
        starts = [t.trial_id for t in result.trials if t.kind == "sample"][:4]
        first = [scores[key] for key in starts]
        pairs = [abs(a - b) for a in first for b in first]
        bar = np.mean(first) + 20 * np.sqrt(np.pi) / 2 * sum(pairs) / 12
        one, left = max(starts, key=lambda key: scores[key]), 0
        for _ in range(7):
            children, quota = grown[one], left + 3
            above = [i for i, t in enumerate(children) if (t.score or 0.0) > bar]
            assert len(children) == (above[0] + 1 if above else quota)
            left = quota - len(children)
            ended, exhausted = ended + bool(above), exhausted + (not above)
            between += any(np.mean(first) < (t.score or 0.0) <= bar for t in children[:-1])
            one = max(children, key=lambda t: t.score or 0.0).trial_id
        assert [t.stop for t in grown[one]] == [8]
    assert ended > 5 and exhausted > 5 and between > 5


def test_what_remains_starts_another_image() -> None:
    result, _ = run(RolloverBudget(quota=1), nfe=40)
    assert result.ledger.images > 1 and result.ledger.nfe > 32


@pytest.mark.parametrize(
    "strategy",
    [Particle(), SVDD(children=4, alpha=0.5), DiffusionTreeSearch(), DiffusionTreeSearch(greedy=False)],
    ids=lambda s: type(s).__name__,
)
def test_a_verifier_with_other_units_gives_the_same_search(strategy: Strategy) -> None:
    lineages = []
    for scale, offset in ((1, 0), (2**-8, 0), (2**8, -3)):
        model = Gaussian(slope=0.9 * scale, curve=-0.3 * scale, offset=offset)
        with AnalyticPool(model.info(8), model=model) as pool:
            result = search("x", strategy=strategy, pool=pool, nfe=160)
        lineages.append([t.lineage for t in result.trials])
    assert lineages[0] == lineages[1] == lineages[2]
    assert any("branch" in seed for lineage in lineages[0] for seed in lineage)


@pytest.mark.parametrize(
    "strategy",
    [Particle(), SVDD(), DiffusionTreeSearch(), RolloverBudget(), BeamInMask()],
    ids=lambda s: type(s).__name__,
)
def test_steering_beats_plain_sampling_by_far(strategy: Strategy) -> None:
    """Mean score of 12 searches of five samples' worth against that of plain samples."""
    scores = [run(strategy, nfe=40, seed=seed)[0].score for seed in range(12)]
    plain = [run(Resampling(), nfe=8, seed=seed)[0].score for seed in range(12)]
    assert np.mean(scores) > np.mean(plain) + 0.06


def test_a_budget_of_time_is_used_to_its_end() -> None:
    for strategy in (SVDD(children=2), DiffusionTreeSearch(), RolloverBudget(), BeamInMask()):
        with AnalyticPool() as pool, seconds_as_requests(pool):
            result = search("red star", strategy=strategy, pool=pool, seconds=600)
        assert result.status == "seconds" and result.ledger.images >= 2, strategy
    with pytest.raises(BadInput, match="budget in NFE, images or FLOPs"):
        SVDD().plan(Budget(seconds=3), TestSVDD().costs)


def test_steps_with_one_child_are_not_scored() -> None:
    """Of 8 + 3 NFE, three go into a second child each of the first steps."""
    result, _ = run(SVDD(children=2), nfe=11)
    assert result.ledger.nfe == 11
    assert [t.kind for t in result.trials][:2] == ["sample", "score"]
    assert [t.start for t in result.trials if t.kind == "advance"] == [0, 0, 1, 1, 2, 2, 3]
    assert (result.ledger.previews, result.ledger.decodes) == (1 + 3 * 2, 1 + 3 * 2 + 1)
