"""For authors of plug-ins: fast fake models and the tests that every strategy and verifier must pass.

:mod:`lotts_search.testing.analytic` answers at once, :mod:`lotts_search.testing.gaussian` follows exactly known laws,
and :mod:`lotts_search.testing.conformance` holds the tests of strategies, :mod:`lotts_search.testing.verifier_conformance`
those of verifiers; both need pytest. The rest of the package does not import this folder.
"""

from __future__ import annotations

from lotts_search.testing.analytic import AnalyticPool, analytic_info
from lotts_search.testing.clock import seconds_as_requests
from lotts_search.testing.gaussian import Gaussian

__all__ = ["AnalyticPool", "Gaussian", "analytic_info", "seconds_as_requests"]
