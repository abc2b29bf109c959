"""When a local trial beats a global one (LoTTS, appendix G): expected gains, and what a mask must be like.

An image has N patches, m of them defective. A global trial resamples all patches: it repairs a defective one with
probability ``q_g`` and harms an intact one with ``h_g``. A local trial resamples those that a mask of recall ρ and precision
p selects, ρm defective and ρm(1−p)/p intact ones, with ``q_l`` and ``h_l``. A repair adds Δ⁺ to the quality of the image on
average, a harm takes Δ⁻ away. The paper counts every trial as accepted. But a search keeps the best image, so a failed trial
costs only its compute: the ``improvement_*`` functions return the expected improvement over the current best image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lotts_search.errors import BadInput

Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regime:
    """The numbers of the dominance condition (docs/architecture.md, Algorithms).

    Attributes:
        patches: N.
        defects: m, the mean number of defective patches, 0..N.
        precision, recall: p, above 0, and ρ of the mask, 0..1.
        repair_global, harm_global: q_g and h_g, 0..1.
        repair_local, harm_local: q_l and h_l of selected patches, 0..1.
        gain, loss: Δ⁺ and Δ⁻, 0 or more, in the unit of the image's quality.
        cost_global, cost_local: C_g and C_l, NFE of a trial.
    """

    patches: float
    defects: float
    precision: float
    recall: float
    repair_global: float
    harm_global: float
    repair_local: float
    harm_local: float
    gain: float
    loss: float
    cost_global: float
    cost_local: float

    def __post_init__(self) -> None:
        for name in ("recall", "repair_global", "harm_global", "repair_local", "harm_local", "precision"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} must be within 0..1, not {getattr(self, name)}")
        if self.precision == 0:
            raise BadInput("precision must be above 0: a mask that selects nothing defective has no local trials")
        if not 0 <= self.defects <= self.patches:
            raise BadInput(f"defects must be within 0..{self.patches:g}, not {self.defects}")
        for name in ("gain", "loss"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("cost_global", "cost_local"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} must be above 0, not {getattr(self, name)}")

    @property
    def selected_defective(self) -> float:
        """ρm."""
        return self.recall * self.defects

    @property
    def selected_intact(self) -> float:
        """ρm(1−p)/p."""
        return self.selected_defective * (1 - self.precision) / self.precision

    def gain_global(self, n: int = 1) -> float:
        """Return E[gain_g] of a global trial; for Best-of-n its bound, with q → 1 − (1−q)^n."""
        repair = 1 - (1 - self.repair_global) ** n
        intact = self.patches - self.defects
        return self.defects * repair * self.gain - intact * self.harm_global * self.loss

    @property
    def gain_local(self) -> float:
        """E[gain_l] of a local trial."""
        harm = self.selected_intact * self.harm_local * self.loss
        return self.selected_defective * self.repair_local * self.gain - harm

    def local_wins(self, n: int = 1) -> bool:
        """Return the dominance condition, E[gain_l]/C_l > E[gain_g]/C_g; against Best-of-n the global cost is n·C_g."""
        return bool(self.gain_local / self.cost_local > self.gain_global(n) / (n * self.cost_global))

    @property
    def required_precision(self) -> float:
        """The precision above which each selected patch has a positive expected gain, ``p/(1−p) > h_lΔ⁻/(q_lΔ⁺)``."""
        harm, repair = self.harm_local * self.loss, self.repair_local * self.gain
        return harm / (harm + repair) if harm + repair > 0 else 1.0

    @property
    def required_recall(self) -> float:
        """The recall above which local wins at this precision. Below 0: it wins with any mask that selects something.
        Infinite: no recall is enough, because the selected patches lose more than they gain."""
        each = self.repair_local * self.gain
        each -= (1 - self.precision) / self.precision * self.harm_local * self.loss
        wanted = self.cost_local / self.cost_global * self.gain_global()
        if self.defects * each > 0:
            return wanted / (self.defects * each)
        return -math.inf if wanted < 0 and each == 0 else math.inf

    def improvement_global(self, n: int = 1) -> float:
        """Return the expected improvement by the best of n global trials, E[max(0, gain)]; patches are independent."""
        intact = self.patches - self.defects
        return _improvement(
            _counts(self.defects, self.repair_global), self.gain, _counts(intact, self.harm_global), self.loss, n
        )

    def improvement_local(self, n: int = 1) -> float:
        """Return the expected improvement by the best of n local trials with one mask, E[max(0, gain)]."""
        repairs = _counts(self.selected_defective, self.repair_local)
        return _improvement(repairs, self.gain, _counts(self.selected_intact, self.harm_local), self.loss, n)

    def local_improves_faster(self) -> bool:
        """Return whether a local trial has the higher expected improvement per NFE."""
        return bool(self.improvement_local() / self.cost_local > self.improvement_global() / self.cost_global)


def _counts(patches: float, probability: float) -> Doubles:
    """Return the distribution of the number of patches that change. A fractional number of patches is a mixture of the two
    integers next to it."""
    low = math.floor(patches)
    share = patches - low
    law = np.zeros(low + 2)
    law[: low + 1] += (1 - share) * stats.binom.pmf(np.arange(low + 1), low, probability)
    law += share * stats.binom.pmf(np.arange(low + 2), low + 1, probability)
    return law


def _improvement(repairs: Doubles, gain: float, harms: Doubles, loss: float, n: int) -> float:
    """Return E[max(0, best of n)] of ``gain · R − loss · H``."""
    values = (gain * np.arange(len(repairs))[:, None] - loss * np.arange(len(harms))[None, :]).ravel()
    law = np.outer(repairs, harms).ravel()
    order = np.argsort(values, kind="stable")
    below = np.minimum(1.0, np.cumsum(law[order])) ** n
    return float(np.diff(below, prepend=0.0) @ np.maximum(0.0, values[order]))


@dataclass(frozen=True)
class Change:
    """What one trial did to an image.

    Attributes:
        before, after: [N] contribution of each patch to the image's quality (their sum).
        flawed_before, flawed_after: [N] which patches are defective.
        selected: [N] which patches the trial resampled; all of them for a global trial.
    """

    before: Doubles
    after: Doubles
    flawed_before: Bools
    flawed_after: Bools
    selected: Bools

    @property
    def gain(self) -> float:
        """The image's gain in quality."""
        return float(self.after.sum() - self.before.sum())


def estimate(local: Sequence[Change], global_: Sequence[Change], cost_local: float, cost_global: float) -> Regime:
    """Estimate the regime of local and global trials of the same images, by ratios of totals over all of them.

    Δ⁺ and Δ⁻ are means over the repairs and harms of both kinds of trials.

    Raises:
        BadInput: there are no trials of one kind, or no mask selected a defective patch.
    """
    if not local or not global_:
        raise BadInput(f"the theory needs local and global trials, not {len(local)} and {len(global_)}")
    hit = sum(int((c.selected & c.flawed_before).sum()) for c in local)
    if hit == 0:
        raise BadInput("no local trial selected a defective patch: its precision is 0")
    flawed = sum(int(c.flawed_before.sum()) for c in local)
    repair_local, harm_local, _, _ = _rates(local)
    repair_global, harm_global, _, _ = _rates(global_)
    _, _, gain, loss = _rates([*local, *global_])
    return Regime(
        patches=len(local[0].before),
        defects=float(np.mean([c.flawed_before.sum() for c in local])),
        precision=hit / sum(int(c.selected.sum()) for c in local),
        recall=hit / flawed,
        repair_global=repair_global,
        harm_global=harm_global,
        repair_local=repair_local,
        harm_local=harm_local,
        gain=gain,
        loss=loss,
        cost_global=cost_global,
        cost_local=cost_local,
    )


def _rates(changes: Sequence[Change]) -> tuple[float, float, float, float]:
    """Return the repair and harm probabilities of selected patches, the mean gain of a repair and the mean loss of a harm."""
    selected = np.concatenate([c.selected for c in changes])
    bad, still = (np.concatenate([c.flawed_before for c in changes]), np.concatenate([c.flawed_after for c in changes]))
    change = np.concatenate([c.after - c.before for c in changes])
    broken, whole = selected & bad, selected & ~bad
    repaired, harmed = broken & ~still, whole & still
    return (
        float(repaired.sum() / max(1, broken.sum())),
        float(harmed.sum() / max(1, whole.sum())),
        max(0.0, float(change[repaired].mean())) if repaired.any() else 0.0,
        max(0.0, float(-change[harmed].mean())) if harmed.any() else 0.0,
    )
