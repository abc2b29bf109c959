"""Pages to look at: one self-contained HTML file a search, and one a comparison of strategies."""

from lotts_search.report.demo_page import Judged, write_demo_page
from lotts_search.report.search_page import write_search_page

__all__ = ["Judged", "write_demo_page", "write_search_page"]
