"""The page of a comparison: strategies on the same prompts with the same seeds and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lotts_search.core.result import SearchResult
from lotts_search.curves.intervals import Doubles, Interval, interval
from lotts_search.curves.steps import StepFunction, mean_curve
from lotts_search.report.images import data_uri
from lotts_search.report.page import number, write_page
from lotts_search.report.plot import Series, line_chart
from lotts_search.report.search_page import best_so_far
from lotts_search.report.search_tree import build


@dataclass(frozen=True)
class Judged:
    """A search and what the held-out judge says of its images.

    Attributes:
        result: the search; it has a winner.
        quality: the metric, by trial id, of every image that was the best for a while; at least of the winner.
        perfect: whether the winner has no defect at all.
    """

    result: SearchResult
    quality: Mapping[str, float]
    perfect: bool

    @property
    def winner(self) -> float:
        """The metric of the image that the search hands out."""
        assert self.result.best is not None
        return self.quality[self.result.best.trial_id]

    @property
    def reward(self) -> float:
        """The guiding score of the image that the search hands out."""
        assert self.result.score is not None
        return self.result.score

    def quality_so_far(self, over: str = "nfe_cum") -> StepFunction:
        """The metric of the image that would be handed out, had the search stopped there."""
        x, y, images, best = [], [], 0, -np.inf
        for trial in self.result.trials:
            images += trial.images
            if trial.score is not None and trial.score > best and trial.trial_id in self.quality:
                best = trial.score
                x.append(float(images if over == "images" else trial.nfe_cum))
                y.append(self.quality[trial.trial_id])
        if x:  # the last value holds to the end of the search
            x.append(float(images if over == "images" else self.result.trials[-1].nfe_cum))
            y.append(y[-1])
        return StepFunction(np.array(x), np.array(y))


def _colour(index: int) -> str:
    return f"var(--series-{index + 1})"


def _verdict(difference: Interval, name: str, other: str) -> str:
    if difference.low > 0:
        return f"On these prompts {name} is ahead by the oracle, and the interval lies above zero."
    if difference.high < 0:
        return f"On these prompts {other} is ahead by the oracle, and the interval lies below zero."
    return "The interval of the oracle's difference holds zero: so few prompts do not tell the two apart."


def write_demo_page(
    contests: Mapping[str, Mapping[str, Sequence[Judged]]], path: Path | str, *, command: str, how: str, trees: int = 3
) -> Path:
    """Write the page that compares strategies, on one model or on several.

    Args:
        contests: for each model the searches by strategy; all strategies of a model have the same prompts in the same
            order. The first strategy is the one that is compared with each of the others.
        path: the HTML file; its folder is made.
        command: the command that makes the page again.
        how: a sentence on where and how long it ran.
        trees: how many prompts of the first model are shown with the trees of their searches: those that differ most by
            the oracle, the first strategy's best and worst case among them. Other models show one.
    """
    first, *others = next(iter(contests.values()))
    sections = [_section(model, contest, trees if i == 0 else 1) for i, (model, contest) in enumerate(contests.items())]
    view = SimpleNamespace(
        title=f"{first} against {' and '.join(others)}",
        lead="Each strategy searches for the best image of the same prompts, which no model was trained on, with the same "
        "seeds and the same budget a prompt. The verifier that guides them is a learned reward; the winners are then "
        "judged by an oracle that no search has seen.",
        head=["reward of the winner", "oracle quality", "perfect", "NFE a prompt", "images a prompt"],
        sections=sections,
        command=command,
        how=how,
    )
    return write_page("demo.html.j2", Path(path), {"view": view})


def _section(model: str, contest: Mapping[str, Sequence[Judged]], trees: int) -> SimpleNamespace:
    first, *others = contest
    pairs = zip(contest[first], contest[others[0]], strict=True)
    gaps = np.array([a.winner - b.winner for a, b in pairs])
    return SimpleNamespace(
        model=model,
        names=list(contest),
        prompts=len(gaps),
        budget=str(contest[first][0].result.budget),
        table=[_summary(name, searches) for name, searches in contest.items()],
        differences=[_difference(first, name, contest[first], contest[name]) for name in others],
        verdict=_verdict(interval(gaps), first, others[0]),
        charts=_charts(contest),
        trees=[_trees(contest, index) for index in _telling(gaps, trees)],
        gallery=[_gallery_item(contest, index) for index in range(len(gaps))],
    )


def _summary(name: str, searches: Sequence[Judged]) -> SimpleNamespace:
    cells = [
        str(interval([s.reward for s in searches])),
        str(interval([s.winner for s in searches])),
        f"{sum(s.perfect for s in searches)} of {len(searches)}",
        number(float(np.mean([s.result.ledger.nfe for s in searches]))),
        number(float(np.mean([s.result.ledger.images for s in searches]))),
    ]
    return SimpleNamespace(name=name, cells=cells)


def _difference(name: str, other: str, ours: Sequence[Judged], theirs: Sequence[Judged]) -> SimpleNamespace:
    pairs = list(zip(ours, theirs, strict=True))
    reward = interval([a.reward - b.reward for a, b in pairs])
    quality = interval([a.winner - b.winner for a, b in pairs])
    cells = [f"{i.mean:+.3f} [{i.low:+.3f}, {i.high:+.3f}]" for i in (reward, quality)]
    return SimpleNamespace(name=f"{name} − {other}", cells=[*cells, "", "", ""])


def _charts(contest: Mapping[str, Sequence[Judged]]) -> list[SimpleNamespace]:
    charts = []
    for over, x_label in (("nfe_cum", "NFE a prompt"), ("images", "images a prompt")):
        for y_label, of in (("reward", best_so_far), ("oracle quality", None)):
            series = []
            for index, (name, searches) in enumerate(contest.items()):
                steps = [
                    best_so_far(s.result.trials, over) if of is not None else s.quality_so_far(over) for s in searches
                ]
                curve = mean_curve(steps)
                series.append(Series(name, _colour(index), curve.x, curve.mean, curve.low, curve.high, step=True))
            title = f"{y_label.capitalize()} of the best so far against {x_label.removesuffix(' a prompt')}"
            charts.append(SimpleNamespace(title=title, svg=line_chart(series, x_label, y_label, title)))
    return charts


def _telling(gaps: Doubles, count: int) -> list[int]:
    """Indices of the prompts worth a look: the greatest win, the greatest loss, then the next greatest wins."""
    order = [int(i) for i in np.argsort(-gaps)]
    chosen = [order[0], *([order[-1]] if len(order) > 1 else []), *order[1:-1]]
    return chosen[:count]


def _trees(contest: Mapping[str, Sequence[Judged]], index: int) -> SimpleNamespace:
    sides = []
    for name, searches in contest.items():
        judged = searches[index]
        result = judged.result
        note = (
            f"reward {judged.reward:.3f}, oracle {judged.winner:.3f}, {number(result.ledger.nfe)} NFE, "
            f"{result.ledger.images} images"
        )
        best = result.best.trial_id if result.best is not None else None
        roots = build(result.trials, result.images, result.located, best)
        sides.append(SimpleNamespace(name=name, note=note, roots=roots))
    qualities = [searches[index].winner for searches in contest.values()]
    prompt = next(iter(contest.values()))[index].result.prompt
    return SimpleNamespace(prompt=prompt, note=f"oracle {qualities[0] - qualities[1]:+.3f}", sides=sides)


def _gallery_item(contest: Mapping[str, Sequence[Judged]], index: int) -> SimpleNamespace:
    top = max(searches[index].winner for searches in contest.values())
    tied = sum(searches[index].winner == top for searches in contest.values()) > 1
    sides = []
    for name, searches in contest.items():
        judged = searches[index]
        sides.append(
            SimpleNamespace(
                name=name,
                image=data_uri(judged.result.image) if judged.result.image is not None else "",
                reward=judged.reward,
                quality=judged.winner,
                perfect=judged.perfect,
                ahead=judged.winner == top and not tied,
            )
        )
    prompt = next(iter(contest.values()))[index].result.prompt
    return SimpleNamespace(prompt=prompt, sides=sides)
