"""lotts-search: distributed test-time search for diffusion models.

``lotts_search.search(prompt, nfe=…)`` is the main entry point; see :mod:`lotts_search.api`. Every other name is imported
on first use, so importing this module is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lotts_search.api import asearch, search, stream
    from lotts_search.core.budget import Budget
    from lotts_search.core.candidate import Candidate, Mask
    from lotts_search.core.handle import Search
    from lotts_search.core.result import Interrupted, SearchFailed, SearchResult
    from lotts_search.core.strategy import Plan, Strategy
    from lotts_search.core.virtual_time import gather_completed, repeat
    from lotts_search.engine.local_pool import LocalPool
    from lotts_search.errors import BadInput, BudgetExhausted, BudgetTooSmall, Failure, LottsError
    from lotts_search.integrations.pipeline import SearchPipeline
    from lotts_search.work.fair import FairPool

__version__ = "0.1.0"  # the only place: pyproject.toml reads it from here

_HOME = {
    "Interrupted": "core.result",
    "SearchFailed": "core.result",
    "SearchResult": "core.result",
    "asearch": "api",
    "search": "api",
    "stream": "api",
    "Budget": "core.budget",
    "Candidate": "core.candidate",
    "Mask": "core.candidate",
    "BadInput": "errors",
    "BudgetExhausted": "errors",
    "BudgetTooSmall": "errors",
    "Failure": "errors",
    "LottsError": "errors",
    "Search": "core.handle",
    "LocalPool": "engine.local_pool",
    "FairPool": "work.fair",
    "SearchPipeline": "integrations.pipeline",
    "Plan": "core.strategy",
    "Strategy": "core.strategy",
    "gather_completed": "core.virtual_time",
    "repeat": "core.virtual_time",
}

__all__ = [
    "BadInput",
    "Budget",
    "BudgetExhausted",
    "BudgetTooSmall",
    "Candidate",
    "Failure",
    "FairPool",
    "Interrupted",
    "LocalPool",
    "LottsError",
    "Mask",
    "Plan",
    "Search",
    "SearchFailed",
    "SearchPipeline",
    "SearchResult",
    "Strategy",
    "__version__",
    "asearch",
    "gather_completed",
    "repeat",
    "search",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
