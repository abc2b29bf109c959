"""Draw ``docs/search.svg``, the image of the README, from a real search:

python docs/search.py
"""

from __future__ import annotations

from pathlib import Path

from lotts_search import search
from lotts_search.report.search_figure import write_figure

PROMPT = (
    "top left red circle, top blue star, left pink cross, center yellow square, right green ring, "
    "bottom cyan diamond on gray"
)

result = search(PROMPT, strategy="lotts", images=9, settings={"initial": 3, "refinements": 2}, seed=1)
write_figure(result, Path(__file__).with_name("search.svg"))
print(f"score {result.score:.3f} for {result.ledger.nfe:g} NFE")
