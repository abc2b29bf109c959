"""Self-contained HTML pages, tables and figures of searches and studies.

Imports ``curves``, ``work`` and the records of ``core``, and repeats searches through :mod:`lotts_search.api`.
Estimates are made in ``curves``, not here.
"""

from lotts_search.report.search_page import write_search_page

__all__ = ["write_search_page"]
