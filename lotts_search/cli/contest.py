"""The demo's work: two strategies on the same prompts at once on one pool, judged, and written as a page."""

from __future__ import annotations

import asyncio
import json as json_module
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lotts_search import registry
from lotts_search.api import asearch
from lotts_search.cli.pools import Compute
from lotts_search.cli.progress import Live
from lotts_search.core.budget import Budget
from lotts_search.core.result import Interrupted, SearchResult
from lotts_search.core.trial_table import TrialRecord, to_table, write_parquet
from lotts_search.curves.intervals import interval
from lotts_search.errors import BadInput, Failure
from lotts_search.report import Judged, write_demo_page
from lotts_search.shapes.world.oracle import judge_many
from lotts_search.shapes.world.scene import Scene, scenes
from lotts_search.work.pool import Pool

MODELS = tuple(registry.models())
"""The embedded models; the first of several gets as much time as all others together."""
VERIFIER = "shapes-reward"
IMAGES = 8
"""The default budget of a search, in images from pure noise."""
TOGETHER = 4
"""Prompts under way at once: enough searches to fill a batch, few enough to end soon after one another."""


@dataclass(frozen=True)
class Contest:
    """What is compared.

    Attributes:
        strategies: the first is compared with the second.
        models: on each of them.
        prompts: at most so many for each model.
        nfe: budget of one search, None = that of ``IMAGES`` images.
        seconds: for all searches together.
        seed: search i has the seed ``seed + i`` under every strategy.
    """

    strategies: tuple[str, str]
    models: tuple[str, ...]
    prompts: int
    nfe: float | None
    seconds: float
    seed: int

    def __post_init__(self) -> None:
        for name in self.strategies:
            registry.make_strategy(name, {})
        if self.strategies[0] == self.strategies[1]:
            raise BadInput("a strategy is not compared with itself")
        if len(set(self.models)) < len(self.models):
            raise BadInput(f"a model is named twice: {', '.join(self.models)}")
        Budget(nfe=self.nfe, seconds=self.seconds)

    def share(self, model: str) -> float:
        """Seconds for the searches on one model."""
        if len(self.models) == 1:
            return self.seconds
        return self.seconds / 2 if model == self.models[0] else self.seconds / 2 / (len(self.models) - 1)

    def line(self) -> str:
        """The command that repeats it."""
        words = ["lotts-search", "demo", "--prompts", str(self.prompts), "--seconds", f"{self.seconds:g}"]
        words += [] if self.models == MODELS else [word for name in self.models for word in ("--model", name)]
        words += [] if self.nfe is None else ["--nfe", f"{self.nfe:g}"]
        words += ["--strategy", self.strategies[0], "--against", self.strategies[1], "--seed", str(self.seed)]
        return shlex.join(words)


@dataclass
class Arena:
    """The searches under way and those of prompts that all strategies have finished.

    Attributes:
        seconds: for these searches.
        finished: by the number of the prompt, one result a strategy.
        failures: of searches that ended without an image; their prompts do not count.
        spent: NFE of all trials so far.
    """

    contest: Contest
    pool: Pool
    scenes: list[Scene]
    nfe: float
    seconds: float
    live: Live
    finished: dict[int, list[SearchResult]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    spent: float = 0.0

    async def run(self) -> None:
        """Search until all prompts are done or the time is up; what is unfinished then is cancelled."""
        begun = self.live.elapsed
        waiting = iter(range(len(self.scenes)))

        async def lane() -> None:
            for number in waiting:
                searches = (self._search(name, number) for name in self.contest.strategies)
                outcomes = await asyncio.gather(*searches, return_exceptions=True)
                results = [outcome for outcome in outcomes if isinstance(outcome, SearchResult)]
                if len(results) == len(outcomes):
                    self.finished[number] = results
                for outcome in outcomes:
                    if isinstance(outcome, Failure):
                        self.failures.append(outcome)
                    elif isinstance(outcome, BaseException):
                        raise outcome

        async def report() -> None:
            while True:
                self._say(begun)
                await asyncio.sleep(0.5)

        reporter = asyncio.create_task(report())
        lanes = asyncio.gather(*(lane() for _ in range(TOGETHER)))
        try:
            await asyncio.wait_for(lanes, self.seconds)
        except TimeoutError:
            pass
        finally:
            reporter.cancel()

    async def _search(self, strategy: str, number: int) -> SearchResult:
        return await asearch(
            self.scenes[number].caption,
            strategy=strategy,
            verifier=VERIFIER,
            nfe=self.nfe,
            seed=self.contest.seed + number,
            pool=self.pool,
            on_trial=self._count,
            run_id="demo",
        )

    def _count(self, trial: TrialRecord) -> None:
        self.spent += trial.nfe

    def _say(self, begun: float) -> None:
        total = len(self.scenes)
        share = max(
            self.spent / (self.nfe * total * len(self.contest.strategies)),
            (self.live.elapsed - begun) / self.seconds,
        )
        text = f"{len(self.finished)} of {total} prompts  {self.spent:.0f} NFE"
        if self.finished:
            scores = np.mean([[r.score or 0.0 for r in results] for results in self.finished.values()], axis=0)
            text += "  reward " + ", ".join(
                f"{name} {score:.3f}" for name, score in zip(self.contest.strategies, scores, strict=True)
            )
        self.live.update(share, text)


def run(contest: Contest, compute: Compute, out: Path, json: bool) -> None:
    """Run the contest, judge its images, write ``index.html`` and ``trials.parquet``, and say how it went.

    Raises:
        Failure: no prompt of any model was finished by both strategies.
    """
    arenas: dict[str, Arena] = {}
    interrupted = False
    with Live(f"starting {compute}", quiet=json) as live:
        for model in contest.models:
            live.update(0.0, "", what=f"starting {compute} with {model}")
            try:
                with compute.pool(model, VERIFIER) as pool:
                    arenas[model] = _arena(contest, model, pool, live)
                    asyncio.run(arenas[model].run())
            except (KeyboardInterrupt, Interrupted):
                interrupted = True
                break
        finished = {model: arena for model, arena in arenas.items() if arena.finished}
        failures = [failure for arena in arenas.values() for failure in arena.failures]
        if not finished and failures:
            raise failures[0]
        if not finished:
            raise Failure(
                f"no prompt was finished in {contest.seconds:g} s: give more --seconds, or a smaller --nfe"
                if not interrupted
                else "stopped before a prompt was finished"
            )
        searched = live.elapsed
        live.update(1.0, "", what="judging the winners")
        judged = {model: _judge(arena, contest.strategies) for model, arena in finished.items()}
        searches = [j for by_name in judged.values() for found in by_name.values() for j in found]
        write_parquet(to_table(t for j in searches for t in j.result.trials), out / "trials.parquet")
        counts = ", ".join(f"{len(arena.finished)} of {model}" for model, arena in finished.items())
        how = (
            f"Guided by {VERIFIER}, on {compute}. Of {contest.prompts} prompts for each model these were finished: "
            f"{counts}, in {searched:.0f} s, start included."
        )
        if failures:
            how += f" {len(failures)} searches failed, the first with: {failures[0]}"
        page = write_demo_page(judged, out / "index.html", command=contest.line(), how=how)
    if json:
        summary = {"models": {model: _summary(found) for model, found in judged.items()}, "page": str(page)}
        print(json_module.dumps(summary, ensure_ascii=False))
    else:
        _print(judged, page)
    if interrupted:
        sys.exit(130)


def _arena(contest: Contest, model: str, pool: Pool, live: Live) -> Arena:
    nfe = contest.nfe or float(IMAGES * pool.info.defaults.steps)
    live.update(0.0, "", what=f"{model}: {' against '.join(contest.strategies)}, {nfe:g} NFE each")
    return Arena(contest, pool, scenes("test", contest.prompts), nfe, contest.share(model), live)


def _judge(arena: Arena, names: Sequence[str]) -> dict[str, list[Judged]]:
    """Let the oracle judge every image that was the best of its search for a while."""
    judged: dict[str, list[Judged]] = {name: [] for name in names}
    for number in sorted(arena.finished):
        for name, result in zip(names, arena.finished[number], strict=True):
            bests = [t for t in _bests(result.trials) if t.trial_id in result.images]
            images = np.stack([result.images[t.trial_id] for t in bests])
            verdicts = judge_many(images, [arena.scenes[number]] * len(bests))
            for trial, verdict in zip(bests, verdicts, strict=True):
                trial.metrics["oracle"] = verdict.quality
            judged[name].append(
                Judged(result, {t.trial_id: t.metrics["oracle"] for t in bests}, bool(verdicts[-1].perfect))
            )
    return judged


def _bests(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials whose image was better than all before it, in order."""
    found: list[TrialRecord] = []
    for trial in trials:
        if trial.images and trial.score is not None and (not found or trial.score > (found[-1].score or 0.0)):
            found.append(trial)
    return found


def _summary(judged: dict[str, list[Judged]]) -> dict[str, object]:
    ours, theirs = judged.values()
    reward = interval([a.reward - b.reward for a, b in zip(ours, theirs, strict=True)])
    oracle = interval([a.winner - b.winner for a, b in zip(ours, theirs, strict=True)])
    return {
        "prompts": len(ours),
        "nfe": ours[0].result.budget.nfe,
        "strategies": {name: _means(searches) for name, searches in judged.items()},
        "difference": {"reward": vars(reward), "oracle": vars(oracle)},
    }


def _means(searches: Sequence[Judged]) -> dict[str, float]:
    return {
        "reward": float(np.mean([j.reward for j in searches])),
        "oracle": float(np.mean([j.winner for j in searches])),
        "perfect": float(np.mean([j.perfect for j in searches])),
        "nfe": float(np.mean([j.result.ledger.nfe for j in searches])),
        "images": float(np.mean([j.result.ledger.images for j in searches])),
    }


def _print(judged: dict[str, dict[str, list[Judged]]], page: Path) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "strategy", "prompts", "reward", "oracle quality", "perfect", "NFE", "images"):
        table.add_column(heading, justify="left" if heading in ("model", "strategy") else "right")
    lines = []
    for model, contest in judged.items():
        for name, searches in contest.items():
            m = _means(searches)
            figures = f"{m['reward']:.3f}", f"{m['oracle']:.3f}", f"{100 * m['perfect']:.0f} %"
            table.add_row(model, name, str(len(searches)), *figures, f"{m['nfe']:.0f}", f"{m['images']:.1f}")
        (name, ours), (other, theirs) = contest.items()
        gap = interval([a.winner - b.winner for a, b in zip(ours, theirs, strict=True)])
        lines.append(
            f"{model}: {name} − {other}, oracle quality, paired, 95 %: {gap.mean:+.3f} \\[{gap.low:+.3f}, {gap.high:+.3f}]"
        )
    console = Console(highlight=False)
    console.print(table)
    for line in lines:
        console.print(line)
    console.print(f"[bold]look at {page}[/bold]", soft_wrap=True)
