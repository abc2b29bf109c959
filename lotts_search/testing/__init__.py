"""For authors of strategies: a model that answers at once (:mod:`lotts_search.testing.analytic`), one whose laws are known
exactly (:mod:`lotts_search.testing.gaussian`), and the tests that every strategy must pass
(:mod:`lotts_search.testing.conformance`, which needs pytest)."""

from __future__ import annotations

from lotts_search.testing.analytic import AnalyticPool, analytic_info
from lotts_search.testing.gaussian import Gaussian

__all__ = ["AnalyticPool", "Gaussian", "analytic_info"]
