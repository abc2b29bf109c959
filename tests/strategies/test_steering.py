"""Particle, BeamInMask, SVDD, DiffusionTreeSearch and RolloverBudget: the conformance of each, and what each is about."""

from __future__ import annotations

from lotts_search.budget import Cost, Costs
from lotts_search.masks import WholeMask
from lotts_search.strategies.beam_in_mask import BeamInMask
from lotts_search.strategies.particle import Particle
from lotts_search.strategies.rollover_budget import RolloverBudget
from lotts_search.strategies.svdd import SVDD
from lotts_search.strategies.tree_search import DiffusionTreeSearch
from lotts_search.strategy import Plan, Strategy
from lotts_search.testing.conformance import StrategyConformance

# On the analytic model: a sample costs 8 NFE, a localization 1, a refinement 5.


class TestParticle(StrategyConformance):
    def strategy(self) -> Strategy:
        return Particle()


class TestParticleOften(StrategyConformance):
    def strategy(self) -> Strategy:
        return Particle(interval=1, adaptive=False, potential="diff", resampling="residual", first=0, last=1)


class TestParticleInMask(StrategyConformance):
    def strategy(self) -> Strategy:
        return Particle(local=True, interval=1)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.refine() if plan.trials.get("localize") else costs.localize() + costs.refine()


class TestBeamInMask(TestParticleInMask):
    def strategy(self) -> Strategy:
        return BeamInMask()


class TestBeamsOfOneRoot(TestParticleInMask):
    def strategy(self) -> Strategy:
        return BeamInMask(initial=1, beams=3, interval=1)


class TestBeamsOnTheWholeImage(StrategyConformance):
    def strategy(self) -> Strategy:
        return BeamInMask(mask=WholeMask(), temporal=False)


class TestSVDD(StrategyConformance):
    pictures_are_steps = True

    def strategy(self) -> Strategy:
        return SVDD(children=5)


class TestSoftSVDD(TestSVDD):
    def strategy(self) -> Strategy:
        return SVDD(alpha=0.1)


class TestDiffusionTreeSearch(StrategyConformance):
    def strategy(self) -> Strategy:
        return DiffusionTreeSearch()

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.segment(5, 8)


class TestTreeOfAllSteps(TestDiffusionTreeSearch):
    def strategy(self) -> Strategy:
        return DiffusionTreeSearch(interval=1, greedy=False, walkers=3)

    def cheapest(self, costs: Costs, plan: Plan) -> Cost | None:
        return costs.segment(6, 8)


class TestRolloverBudget(StrategyConformance):
    pictures_are_steps = True

    def strategy(self) -> Strategy:
        return RolloverBudget()


class TestSmallQuotas(TestRolloverBudget):
    def strategy(self) -> Strategy:
        return RolloverBudget(initial=4, quota=2)
