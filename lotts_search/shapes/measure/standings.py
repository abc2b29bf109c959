"""From the records of many searches to one table: who does how well at which budget."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lotts_search.curves.intervals import interval

RIVALS = ("best-of-n", "lotts")
"""Those to whom all others are compared, prompt by prompt."""


@dataclass(frozen=True)
class Record:
    """One search, judged.

    Attributes:
        model: its model.
        entry: its strategy, with settings other than the defaults.
        budget: NFE that it might spend.
        split, prompt: the scene, by its split and its number there.
        seed: of the search.
        quality, perfect: the oracle's verdict on the winner.
        reward: the winner's guiding score.
        nfe, images: what was spent.
        error: why there is no winner; "" where there is one.
    """

    model: str
    entry: str
    budget: float
    split: str
    prompt: int
    seed: int
    quality: float = 0.0
    perfect: bool = False
    reward: float = 0.0
    nfe: float = 0.0
    images: int = 0
    error: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What was searched."""
        return self.model, self.entry, self.budget, self.split, self.prompt, self.seed


def read(folder: Path) -> list[Record]:
    """The records in all ``*.jsonl`` files of a folder; a last line that was cut short is left out, and of several of
    one search, which two processes may have made at once, all but the first."""
    found: dict[object, Record] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                record = Record(**json.loads(line))
            except json.JSONDecodeError:
                continue
            found.setdefault(record.key, record)
    return list(found.values())


def line(record: Record) -> str:
    """A record as one line of a file."""
    return json.dumps(asdict(record)) + "\n"


def standings(records: Iterable[Record]) -> list[dict[str, object]]:
    """One row for each model, budget and entry, the best quality first; 95 % intervals over prompts.

    ``minus best-of-n`` and ``minus lotts`` are paired differences over the prompts that both have searched.
    """
    groups: dict[tuple[str, float], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.model, record.budget][record.entry].append(record)
    rows: list[dict[str, object]] = []
    for (model, budget), entries in sorted(groups.items()):
        done = {name: {r.prompt: r for r in found if not r.error} for name, found in entries.items()}
        here = [_row(name, found, done) for name, found in entries.items()]
        here.sort(key=lambda row: -float(str(row["mean"])))
        rows += [{"model": model, "budget": budget} | row for row in here]
    return rows


def _row(name: str, found: Sequence[Record], done: Mapping[str, Mapping[int, Record]]) -> dict[str, object]:
    mine = done[name]
    errors = sorted({r.error for r in found if r.error})
    row: dict[str, object] = {"strategy": name, "prompts": len(mine), "mean": float("-inf")}
    if errors:
        row |= {"failed": len(found) - len(mine), "error": errors[0]}
    if not mine:
        return row
    row["mean"] = float(np.mean([r.quality for r in mine.values()]))
    row["quality"] = str(interval([r.quality for r in mine.values()]))
    for rival in RIVALS:
        both = sorted(mine.keys() & done.get(rival, {}).keys())
        if rival != name and both:
            row[f"minus {rival}"] = interval([mine[p].quality - done[rival][p].quality for p in both]).signed
    for column in ("perfect", "reward", "nfe", "images"):
        row[column] = float(np.mean([getattr(r, column) for r in mine.values()]))
    return row


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as tables: first the quality of each strategy at each budget, then all about each budget."""
    text = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        budgets = list(dict.fromkeys(row["budget"] for row in mine))
        cells = {(row["strategy"], row["budget"]): str(row.get("quality", "—")) for row in mine}
        # The order is that of the largest budget.
        names = dict.fromkeys(row["strategy"] for row in [*(r for r in mine if r["budget"] == budgets[-1]), *mine])
        text += [f"## {model}\n", "Oracle quality, mean and 95 % interval, by the NFE of the budget:\n"]
        body = [[name, *(cells.get((name, budget), "—") for budget in budgets)] for name in names]
        text.append(_table(["strategy", *(f"{budget:g} NFE" for budget in budgets)], body))
        for budget in budgets:
            here = [row for row in mine if row["budget"] == budget]
            text += [f"### {model}, {budget:g} NFE, {max(int(str(r['prompts'])) for r in here)} prompts\n"]
            heads = ["strategy", "quality", *(f"− {rival}" for rival in RIVALS), "perfect", "reward", "NFE", "images"]
            text.append(_table(heads, [_cells(row) for row in here]))
            text += [f"{r['strategy']}: {r['failed']} searches failed: {r['error']}\n" for r in here if "failed" in r]
    return "\n".join(text)


def _cells(row: Mapping[str, object]) -> list[object]:
    if "quality" not in row:
        return [row["strategy"], *["—"] * 7]
    differences = [row.get(f"minus {rival}", "") for rival in RIVALS]
    return [
        row["strategy"],
        row["quality"],
        *differences,
        f"{100 * float(str(row['perfect'])):.1f} %",
        f"{float(str(row['reward'])):.3f}",
        f"{float(str(row['nfe'])):.1f}",
        f"{float(str(row['images'])):.1f}",
    ]


def _table(heads: Sequence[object], body: Sequence[Sequence[object]]) -> str:
    rows = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows) + "\n"
