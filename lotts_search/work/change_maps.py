"""Change maps: how much the x0 prediction of a trajectory changed from step to step, per position, at no network row.

With the x0 predictions ``D_i`` of T steps, ``change(u) = Σ_i mean over channels of (D_i(u) − D_{i−1}(u))²``, summed over the
second half of the steps, ``T//2 ≤ i < T``, at which there is a ``D_{i−1}``. A trajectory is unsure where it keeps changing its
mind late. The idea is that of ASCED (arXiv 2503.16218).
"""

from __future__ import annotations

import numpy as np

from lotts_search.work.requests import Bools, Floats


def first_compared(steps: int) -> int:
    """Return the first of ``steps`` steps whose x0 prediction is compared with the previous one."""
    return max(1, steps // 2)


def unchanged(size: tuple[int, int], steps: int) -> Floats | None:
    """Return the map [H, W] at the start of a trajectory; None where it has no two predictions to compare."""
    return np.zeros(size, np.float32) if steps > 1 else None


def at_refinement(parent: Floats | None, mask: Bools | None, start: int, steps: int) -> Floats | None:
    """Return the map at the start of a refinement: its parent's outside the mask, to stay, and inside the mask the parent's
    pro rata of the steps up to ``start``, which the refinement does not compare.

    Args:
        parent: [H, W]; None where it is not known.
        mask: [H, W], True where the latent is resampled; None = everywhere.
    """
    if parent is None or steps < 2:
        return None
    first = first_compared(steps)
    inside = parent * np.float32(max(0, start + 1 - first) / (steps - first))
    return inside if mask is None else np.where(mask, inside, parent)
