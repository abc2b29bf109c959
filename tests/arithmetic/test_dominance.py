"""The theory of local and global trials, against closed forms, its limits and a simulated world."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lotts_search import BadInput
from lotts_search.arithmetic.dominance import Change, Regime, estimate

SPARSE = Regime(
    patches=16,
    defects=2,
    precision=0.5,
    recall=0.75,
    repair_global=0.6,
    harm_global=0.2,
    repair_local=0.5,
    harm_local=0.1,
    gain=0.05,
    loss=0.04,
    cost_global=12,
    cost_local=10,
)


def test_gains_by_hand():
    assert SPARSE.selected_defective == 1.5 and SPARSE.selected_intact == 1.5
    assert SPARSE.gain_local == pytest.approx(1.5 * 0.5 * 0.05 - 1.5 * 0.1 * 0.04)
    assert SPARSE.gain_global() == pytest.approx(2 * 0.6 * 0.05 - 14 * 0.2 * 0.04)
    assert SPARSE.gain_global(3) == pytest.approx(2 * (1 - 0.4**3) * 0.05 - 14 * 0.2 * 0.04)
    assert SPARSE.local_wins()


def test_required_precision_is_where_a_selected_patch_breaks_even():
    needed = SPARSE.required_precision
    assert needed / (1 - needed) == pytest.approx(0.1 * 0.04 / (0.5 * 0.05))
    assert replace(SPARSE, precision=needed).gain_local == pytest.approx(0, abs=1e-15)
    assert replace(SPARSE, precision=needed + 0.01).gain_local > 0 > replace(SPARSE, precision=needed - 0.01).gain_local
    assert replace(SPARSE, harm_local=0.0).required_precision == 0
    assert replace(SPARSE, repair_local=0.0).required_precision == 1


@pytest.mark.parametrize("cost", [3.0, 4.0, 8.0])
def test_required_recall_is_where_local_and_global_are_equal(cost):
    regime = replace(SPARSE, defects=9, harm_global=0.05, cost_local=cost)
    needed = regime.required_recall
    assert 0 < needed < 0.99
    for step in (-0.01, 0.01):
        assert replace(regime, recall=needed + step).local_wins() == (step > 0)


def test_limits_of_the_required_recall():
    # Global trials harm: local wins with any mask that gains.
    assert SPARSE.required_recall < 0
    # What is selected loses more than it gains: no recall is enough.
    assert replace(SPARSE, precision=0.05, defects=12, harm_global=0.0).required_recall == math.inf


def test_without_harm_it_is_recall_and_cost_alone():
    """h = 0 and q alike: local wins if ρ/C_l > 1/C_g (the paper's first corollary)."""
    plain = replace(SPARSE, harm_global=0.0, harm_local=0.0, repair_local=0.6)
    assert plain.required_recall == pytest.approx(10 / 12)
    assert replace(plain, recall=0.84).local_wins() and not replace(plain, recall=0.83).local_wins()


def test_dense_defects_are_for_global_trials():
    dense = replace(SPARSE, defects=15.5, recall=0.5, precision=0.97)
    assert not dense.local_wins() and dense.required_recall > dense.recall
    assert not dense.local_improves_faster()


@pytest.mark.parametrize("n", [1, 3])
def test_expected_improvement_agrees_with_simulation(n):
    rng = np.random.default_rng(5)
    regime = replace(SPARSE, defects=4.5, recall=0.8)  # 3.6 selected defective patches, 3.6 intact ones

    def trials(defective: float, intact: float, repair: float, harm: float) -> float:
        best = np.full(200_000, -np.inf)
        counts = [math.floor(x) + (rng.random(best.size) < x % 1) for x in (defective, intact)]
        for _ in range(n):
            repaired, harmed = rng.binomial(counts[0], repair), rng.binomial(counts[1], harm)
            best = np.maximum(best, regime.gain * repaired - regime.loss * harmed)
        return float(np.maximum(0, best).mean())

    # With n > 1 the mixture over the number of patches is recomputed by the closed form: nearly equal.
    exact = 2e-3 if n == 1 else 2e-2
    assert regime.improvement_local(n) == pytest.approx(trials(3.6, 3.6, 0.5, 0.1), rel=exact * 5)
    assert regime.improvement_global(n) == pytest.approx(trials(4.5, 11.5, 0.6, 0.2), rel=exact * 5)


def test_improvement_is_never_below_the_gain_and_grows_with_trials():
    assert SPARSE.improvement_local() >= SPARSE.gain_local
    assert SPARSE.improvement_global() > 0 > SPARSE.gain_global()
    assert SPARSE.improvement_global(8) > SPARSE.improvement_global(2) > SPARSE.improvement_global()
    no_harm = replace(SPARSE, harm_local=0.0)
    assert no_harm.improvement_local() == pytest.approx(no_harm.gain_local)


class World:
    """Patches that are defective, selected, repaired and harmed with known probabilities."""

    def __init__(self, regime: Regime, seed: int = 0):
        self.regime, self.rng = regime, np.random.default_rng(seed)

    def trial(self, local: bool) -> Change:
        r, count = self.regime, round(self.regime.patches)
        flawed = self.rng.random(count) < r.defects / count
        false = r.recall * r.defects * (1 - r.precision) / r.precision / (r.patches - r.defects)
        hit = np.where(flawed, self.rng.random(count) < r.recall, self.rng.random(count) < false)
        selected = hit if local else np.ones(count, bool)
        repair, harm = (r.repair_local, r.harm_local) if local else (r.repair_global, r.harm_global)
        chance = self.rng.random(count)
        repaired, harmed = selected & flawed & (chance < repair), selected & ~flawed & (chance < harm)
        before = np.full(count, 1 / count)
        after = before + repaired * r.gain - harmed * r.loss
        return Change(before, after, flawed, (flawed & ~repaired) | harmed, selected)


@pytest.mark.parametrize("defects", [2.0, 13.0])
def test_the_regime_of_a_simulated_world_is_found(defects):
    truth = replace(SPARSE, defects=defects, precision=0.5 if defects < 8 else 0.9)
    world = World(truth)
    local, resampled = [world.trial(True) for _ in range(4000)], [world.trial(False) for _ in range(4000)]
    found = estimate(local, resampled, 10, 12)
    for name, tolerance in (
        ("defects", 0.1), ("precision", 0.02), ("recall", 0.02), ("repair_global", 0.02), ("harm_global", 0.01),
        ("repair_local", 0.02), ("harm_local", 0.02), ("gain", 1e-9), ("loss", 1e-9),
    ):  # fmt: skip
        assert getattr(found, name) == pytest.approx(getattr(truth, name), abs=tolerance), name
    assert found.local_wins() == truth.local_wins() == (defects < 8)
    # The theory's gains are those that were measured: it is exact for this world.
    assert found.gain_local == pytest.approx(np.mean([c.gain for c in local]), rel=0.02)
    assert found.gain_global() == pytest.approx(np.mean([c.gain for c in resampled]), rel=0.05)


def test_what_cannot_be_estimated_is_told():
    world = World(SPARSE)
    local, resampled = [world.trial(True)], [world.trial(False)]
    with pytest.raises(BadInput, match="not 0 and 1"):
        estimate([], resampled, 10, 12)
    nothing = replace(local[0], selected=np.zeros(16, bool))
    with pytest.raises(BadInput, match="precision is 0"):
        estimate([nothing], resampled, 10, 12)
    with pytest.raises(BadInput, match=r"recall must be within 0.+1, not 1\.5"):
        replace(SPARSE, recall=1.5)
    with pytest.raises(BadInput, match=r"defects must be within 0.+16"):
        replace(SPARSE, defects=17)
