"""For authors of strategies: a model that answers at once (:mod:`lotts_search.testing.analytic`) and the tests that
every strategy must pass (:mod:`lotts_search.testing.conformance`, which needs pytest)."""

from __future__ import annotations

from lotts_search.testing.analytic import AnalyticPool, analytic_info

__all__ = ["AnalyticPool", "analytic_info"]
