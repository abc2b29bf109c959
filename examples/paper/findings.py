"""Which of the paper's findings hold, from the run folders that run.py leaves.

    python examples/paper/findings.py out/paper

Reads OUT/MODEL/table-*/ and writes OUT/index.html, OUT/findings.json and OUT/findings.md. A finding holds where the whole 95 % interval says so, it does
not hold where the whole interval says the contrary, and else it is open: more prompts would tell.
"""  # fmt: skip

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from lotts_search.curves import Interval, Panel, Results, Setup, SpeedUp, load, speed_up
from lotts_search.errors import BadInput
from lotts_search.report.page import write_page
from lotts_search.report.study_page import machine

PAPER = {"xl": (3.33, 4.9, 3.26, 2.20), "flux": (4.0, 3.9, 3.76, 2.64), "sd": (2.78, 4.1, 2.75, 1.66)}
"""Best-of-N's cost over that of LoTTS with nine images, at equal quality: images (table 13: 25, 30 and 36 for 9), strict
NFE (derived from these), seconds (table 2); and Particle's in seconds (table 2). By what is in a model's name."""
ALIKE = 0.01
"""Difference in held-out quality up to which two settings are interchangeable: about 1 % of the scale."""
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "open", "not run"


@dataclass(frozen=True)
class Line:
    """One comparison of a finding: the sides, the number with its interval, and the verdict."""

    what: str
    value: str
    verdict: str


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, and the comparisons that test it."""

    claim: str
    where: str
    lines: list[Line]

    @property
    def verdict(self) -> str:
        """Return the verdict of all lines: the claim holds if all of them hold, and fails if none does."""
        verdicts = [line.verdict for line in self.lines if line.verdict != MISSING]
        if not verdicts:
            return MISSING
        if FAILS in verdicts:
            return FAILS if HOLDS not in verdicts and OPEN not in verdicts else "in part"
        return HOLDS if set(verdicts) == {HOLDS} else OPEN


class Paper:
    """The tables of one model as one study."""

    def __init__(self, model: str, folders: Iterable[Path]) -> None:
        self.model = model
        self.results: Results = load(*folders)
        self.main = self.results.main
        about = self.results.about
        self.date = time.strftime("%Y-%m-%d", time.gmtime(float(about.get("started") or 0)))
        self.machine = machine(about)

    def setup(self, label: str, images: int | None = 9) -> Setup:
        """Return the setup of a label with this number of images or a budget in NFE; None = the largest budget.

        Raises:
            BadInput: there is none.
        """
        setups = self.results.find_label(label)
        if images is not None:
            setups = [a for a in setups if a.images in (images, None)]
        if not setups:
            raise BadInput(f"no searches by {label} with {images} images")
        return max(setups, key=lambda a: (a.images or 0, a.nfe or 0.0))

    def more(self, ours: str, theirs: str, *, refined: bool = False, what: str = "") -> Line:
        """Compare whether ``ours`` is better than ``theirs``."""
        name = what or f"{ours} − {theirs}"

        def compare() -> Line:
            gap = self.results.difference(self.setup(ours), self.setup(theirs), refined=refined)
            if gap.low == gap.high == 0.0:  # e.g. a t0 of the table that is the model's own
                return Line(name, "the same setting", MISSING)
            verdict = HOLDS if gap.low > 0 else FAILS if gap.high < 0 else OPEN
            return Line(name, gap.signed, verdict)

        return _compared(name, compare)

    def alike(self, ours: str, theirs: str) -> Line:
        """Compare whether the two differ by no more than :data:`ALIKE`."""
        name = f"{ours} − {theirs}, within ±{ALIKE:g}"

        def compare() -> Line:
            gap = self.results.difference(self.setup(ours), self.setup(theirs))
            inside, outside = gap.low >= -ALIKE and gap.high <= ALIKE, gap.low > ALIKE or gap.high < -ALIKE
            return Line(name, gap.signed, HOLDS if inside else FAILS if outside else OPEN)

        return _compared(name, compare)

    def faster(self, over: str, least: float, slow: str = "Best-of-N", fast: str = "LoTTS") -> Line:
        """Compare whether ``slow`` needs at least ``least`` times the cost of ``fast`` for the same quality."""
        cost = {"images": "images", "nfe": "NFE", "device_s": "seconds"}[over]
        name = f"{cost} of {slow} / {cost} of {fast}; paper's LoTTS {least:g}×"

        def compare() -> Line:
            found: SpeedUp = speed_up(self._curve(slow, over), self.results.panel(self.setup(fast), over=over))
            low = min(found.low, found.limit) if math.isinf(found.ratio) else found.low
            verdict = HOLDS if low >= least else FAILS if found.high < least else OPEN
            return Line(name, str(found), verdict)

        return _compared(name, compare)

    def _curve(self, label: str, over: str) -> Panel:
        """Return the curve of a label: of its largest search, or one point per budget."""
        setups = [a for a in self.results.trials.setups if a.label == label]
        if len(setups) > 1 and not self.results.pooled(setups[0]):
            return self.results.budgets(setups, over=over)
        return self.results.panel(self.setup(label, images=None), over=over)

    def findings(self) -> list[Finding]:
        """Return all findings."""
        images, nfe, seconds, particle = next((v for k, v in PAPER.items() if k in self.model.lower()), PAPER["sd"])
        parts = [f"attention {p}" for p in ("w/o A_ori", "w/o A_con", "w/o propagation")]
        consistencies = [f"LoTTS w/o {c}" for c in ("temporal", "spatial", "holistic")]
        best, alone = "best of the tree", "best of the refined alone"
        return [
            Finding("Best-of-N needs several times the images of LoTTS for its quality", "Tables 12 and 13, Fig. 9",
                    [self.faster("images", images)]),
            Finding("and several times the denoising steps", "Tables 12 and 13, strict NFE", [self.faster("nfe", nfe)]),
            Finding("and several times the time", "Table 2",
                    [self.faster("device_s", seconds), self.faster("device_s", particle, slow="Particle")]),
            Finding("LoTTS is better than all others at nine images", "Table 1",
                    [self.more("LoTTS", other) for other in
                     ("Resampling", "More steps", "Best-of-N", "Best-of-N with p+", "Particle")]),
            Finding("Beyond the paper: LoTTS with tuned t0 and k saves as much as the paper says", "Tables 1 and 13",
                    [self.more("LoTTS, tuned", "LoTTS"), self.faster("images", images, fast="LoTTS, tuned"),
                     self.faster("nfe", nfe, fast="LoTTS, tuned")]),
            Finding("Beyond the paper: AdaptiveLoTTS needs less than LoTTS", "Tables 1 and 13",
                    [self.more("AdaptiveLoTTS", "LoTTS"), self.faster("images", images, fast="AdaptiveLoTTS"),
                     self.faster("nfe", nfe, fast="AdaptiveLoTTS")]),
            Finding("Every component of the attention mask helps", "Table 5",
                    [self.more("attention", part) for part in (*parts, "random mask", "w/o mask")]),
            Finding("The same for the mask that is this model's default", "Table 5",
                    [self.more("LoTTS", part) for part in ("random mask", "w/o mask", "attention")]),
            Finding("Templates of quality prompts are interchangeable", "Table 6",
                    [self.alike("attention", "attention, good and bad")]),
            Finding("α = 0.5 is better than 0 and 1", "Table 7",
                    [self.more("attention", f"attention, α = {a}") for a in ("0.0", "1.0")]),
            Finding("Each consistency helps", f"Table 8, {best}", [self.more("LoTTS", c) for c in consistencies]),
            Finding("Each consistency helps", f"Table 8, {alone}",
                    [self.more("LoTTS", c, refined=True) for c in consistencies]),
            Finding("k = 2 refinements are better than 1 and 8 at equal NFE", "Table 9",
                    [self.more("LoTTS", f"LoTTS, k = {k}") for k in (1, 8)]),
            Finding("A middle mask ratio, r = 0.5, is best", "Table 10",
                    [self.more("LoTTS", f"LoTTS, r = {r}") for r in (0.2, 0.8)]),
            Finding("A middle t0 is best", "Table 11", [self.more("LoTTS", label) for label in self._starts()]),
            Finding("LoTTS scales with the number of images", "Table 12", self._scaling()),
        ]  # fmt: skip

    def _starts(self) -> list[str]:
        found = {a.label for a in self.results.setups if a.label.startswith("LoTTS, t0 = ")}
        return ["LoTTS w/o temporal", *sorted(found, key=lambda label: int(label.rsplit(" ", 1)[1]))]

    def _scaling(self) -> list[Line]:
        def step(few: int, many: int) -> Line:
            def compare() -> Line:
                gap = self.results.difference(self.setup("LoTTS", many), self.setup("LoTTS", few))
                return Line(
                    f"{many} − {few} images", gap.signed, HOLDS if gap.low > 0 else FAILS if gap.high < 0 else OPEN
                )

            return _compared(f"{many} − {few} images", compare)

        return [step(3, 6), step(6, 9)]

    def table(self) -> list[tuple[str, str, Interval, float, float]]:
        """Return label, budget, quality, images and NFE of every setup."""
        rows = []
        for setup in self.results.setups:
            try:
                quality = self.results.value(setup)
            except BadInput:
                continue
            costs = (self.results.spent(setup, over) for over in ("images", "nfe"))
            rows.append((setup.label, setup.budget, quality, *costs))
        return rows  # type: ignore[return-value]


def _compared(name: str, compare: Callable[[], Line]) -> Line:
    """Return the comparison, or the reason why there is none."""
    try:
        return compare()
    except BadInput as error:
        return Line(name, str(error).split("\n")[0], MISSING)


def write(out: Path, command: str = "") -> Path:
    """Write the page of all models below ``out``.

    Raises:
        BadInput: there are no tables.
    """
    folders: dict[str, list[Path]] = {}
    for trials in sorted(out.glob("*/table-*/trials.parquet")):
        folders.setdefault(trials.parent.parent.name, []).append(trials.parent)
    if not folders:
        raise BadInput(f"no tables in {out}: no study of a table has come to an end")
    papers = [Paper(model, found) for model, found in folders.items()]
    parts = [_part(p, [f.name for f in folders[p.model]]) for p in papers]
    overview = _overview(parts)
    view = SimpleNamespace(parts=parts, overview=overview, command=command)
    page = write_page("paper.html.j2", out / "index.html", {"view": view})
    report = {
        "command": command,
        "date": max(p.date for p in papers),
        "machine": next((p.machine for p in papers if p.machine), ""),
        "models": [
            {"model": p.model, "metric": p.main, "prompts": p.prompts, "nfe": p.nfe,
             "findings": [{**asdict(f), "verdict": f.verdict} for f in p.findings], "absent": p.absent,
             "rows": [{"label": label, "budget": budget, "quality": [q.mean, q.low, q.high], "images": images, "nfe": nfe}
                      for label, budget, q, images, nfe in p.table]}
            for p in parts
        ],
    }  # fmt: skip
    _replace(out / "findings.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    _replace(out / "findings.md", _markdown(report, overview))
    for p in parts:
        print(f"{p.model}, {p.prompts} prompts, {p.nfe:,.0f} NFE")
        for f in p.findings:
            print(f"  {f.verdict:13}  {f.claim} ({f.where})")
    return page


def _part(paper: Paper, runs: list[str]) -> SimpleNamespace:
    """Return the content of the page for one model."""
    findings = paper.findings()
    return SimpleNamespace(
        model=paper.model,
        main=paper.main,
        prompts=len(paper.results.trials.prompts),
        nfe=float(np.sum(paper.results.trials.columns["nfe"])),
        findings=findings,
        absent=_absent(findings),
        table=paper.table(),
        runs=runs,
    )


Rows = list[tuple[str, list[Line | None]]]
"""Comparisons, and the line of each model."""


def _overview(parts: list[SimpleNamespace]) -> dict[str, Rows]:
    """Return all comparisons by finding, the models side by side; empty for one model."""
    found: dict[str, dict[str, dict[str, Line]]] = {}
    for part in parts if len(parts) > 1 else []:
        for finding in part.findings:
            part_of = finding.where.partition(", ")[2] if finding.where.startswith("Table 8") else ""
            rows = found.setdefault(f"{finding.claim} ({part_of})" if part_of else finding.claim, {})
            for line in finding.lines:
                if line.verdict != MISSING:
                    what = line.what.partition(";")[0]  # what the paper has differs by model
                    rows.setdefault(what, {})[part.model] = line
    models = [part.model for part in parts]
    return {
        claim: [(what, [lines.get(model) for model in models]) for what, lines in rows.items()]
        for claim, rows in found.items()
        if rows
    }


def _absent(findings: list[Finding]) -> str:
    """Return a sentence on the findings whose tables have not been run; empty where all have been."""
    tables = dict.fromkeys(f.where.split(",")[0] for f in findings if f.verdict == MISSING)
    return f"Not run on this model: {', '.join(tables)}." if tables else ""


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _markdown(report: dict[str, Any], overview: dict[str, Rows]) -> str:
    """Return the same as Markdown."""
    lines = ["# Which findings of the paper hold", ""]
    lines += [f"    {report['command']}", ""] if report["command"] else []
    about = f"{report['date']}, {report['machine']}. Held-out quality, paired by prompt, 95 % bootstrap intervals over prompts."
    lines += [f"{about} A saving holds where it is at least the paper's.", ""]
    if overview:
        models = [part["model"] for part in report["models"]]
        lines += [f"| finding | comparison | {' | '.join(models)} |", "|---" * (len(models) + 2) + "|"]
        for claim, rows in overview.items():
            for i, (what, found) in enumerate(rows):
                cells = [f"{line.value} · {line.verdict}" if line else "" for line in found]
                lines.append(f"| {'' if i else claim} | {what} | {' | '.join(cells)} |")
        lines.append("")
    for part in report["models"]:
        lines += [
            f"## {part['model']}: {part['prompts']} prompts, {part['nfe']:,.0f} NFE, judged by {part['metric']}",
            "",
        ]
        lines += ["| finding | where | comparison | measured | verdict |", "|---|---|---|---|---|"]
        for finding in part["findings"]:
            if finding["verdict"] == MISSING:
                continue
            for i, line in enumerate(finding["lines"]):
                head = f"**{finding['claim']}**: {finding['verdict']} | {finding['where']}" if i == 0 else " | "
                lines.append(f"| {head} | {line['what']} | {line['value']} | {line['verdict']} |")
        lines += ["", part["absent"]] if part["absent"] else []
        lines += ["", "| strategy | budget | quality | images | NFE |", "|---|---|---|---|---|"]
        for row in part["rows"]:
            mean, low, high = row["quality"]
            lines.append(
                f"| {row['label']} | {row['budget']} | {mean:.3f} [{low:.3f}, {high:.3f}] | {row['images']:g} | {row['nfe']:g} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(write(Path(sys.argv[1] if len(sys.argv) > 1 else "out/paper")))
