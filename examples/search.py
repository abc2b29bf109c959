"""Run one search from Python: LoTTS on the embedded model, in this process.

python examples/search.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import lotts_search
from lotts_search.report import write_search_page

PROMPT = (
    "top left red circle, top blue star, left pink cross, center yellow square, right green ring, "
    "bottom cyan diamond on gray"
)

result = lotts_search.search(PROMPT, strategy="lotts", nfe=150, seed=0)
print(f"score {result.score:.3f} for {result.ledger.nfe:g} NFE and {result.ledger.images} images")
for trial in result.trials:
    if trial.images:
        print(f"  {trial.kind:8} {trial.nfe:5g} NFE  score {trial.score:.3f}  {' → '.join(trial.lineage)}")

out = Path("out/example")
page = write_search_page(result, out / "search.html")
Image.fromarray(result.image).save(out / "best.png")
print(f"wrote {page}")
