"""``python -m lotts_search.shapes.measure``: the figures of a shapes model, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from lotts_search.engine.local_pool import LocalPool
from lotts_search.errors import LottsError
from lotts_search.registry import load_backbone, load_verifier, make_strategy
from lotts_search.shapes.measure import calibration, comparison, localization, slices, strategies
from lotts_search.shapes.measure.common import write
from lotts_search.strategies.lotts import LoTTS

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Model = Annotated[str, typer.Option(help="a registered model or a diffusers folder")]
Out = Annotated[Path, typer.Option(help="JSON file for the figures")]
Prompts = Annotated[int, typer.Option(help="how many prompts")]
Guidance = Annotated[float | None, typer.Option(help="guidance weight, the model's own by default")]
Steps = Annotated[int | None, typer.Option(help="number of steps, the model's own by default")]
Device = Annotated[str | None, typer.Option(help="torch device, CUDA by default where there is one")]


def _open(
    model: str, device: str | None, steps: int | None = None, guidance: float | None = None, **changes: Any
) -> LocalPool:
    """A pool for one measurement. Half precision: figures need speed, not bitwise equality."""
    backbone = load_backbone(model, dtype="bfloat16", device=device)
    if steps is not None:
        changes["steps"] = steps
    if guidance is not None:
        changes["guidance"] = guidance
    if changes:
        defaults = dataclasses.replace(backbone.info.defaults, **changes)
        backbone.info = dataclasses.replace(backbone.info, defaults=defaults)
    return LocalPool(backbone, {"shapes-reward": load_verifier("shapes-reward")}, max_batch=32, pad=False)


def _measure(pool: LocalPool, figures: Callable[[], dict[str, object]], out: Path) -> None:
    try:
        write(out, figures())
    finally:
        pool.close()


@app.command()
def bestofn(
    model: Model = "shapes-sd", out: Out = Path("out/best-of-n.json"), prompts: Prompts = 100,
    guidance: Guidance = None, steps: Steps = None, device: Device = None,
) -> None:  # fmt: skip
    """Share of perfect samples and Best-of-N up to 64, on tuning prompts."""
    pool = _open(model, device, steps, guidance)
    _measure(pool, lambda: calibration.best_of_n(pool, prompts=prompts), out)


@app.command()
def repairs(
    model: Model = "shapes-sd", out: Out = Path("out/repairs.json"), prompts: Prompts = 60,
    guidance: Guidance = None, steps: Steps = None, device: Device = None,
) -> None:  # fmt: skip
    """Repair and harm probabilities of a refinement by t0, on tuning prompts."""
    pool = _open(model, device, steps, guidance)
    _measure(pool, lambda: calibration.repairs(pool, prompts=prompts), out)


@app.command()
def tune(
    model: Model = "shapes-sd", out: Out = Path("out/tune.json"), images: Prompts = 64, guidance: Guidance = None,
    only: Annotated[str, typer.Option(help="only candidates whose name contains this")] = "", device: Device = None,
) -> None:  # fmt: skip
    """Object-level ROC area of every candidate mask setting, on tuning scenes."""
    pool = _open(model, device, None, guidance)
    _measure(pool, lambda: localization.tune(pool, images=images, only=only), out)


@app.command()
def localize(
    model: Model = "shapes-sd", out: Out = Path("out/localize.json"), images: Prompts = 200,
    level: Annotated[int, typer.Option(help="level of the attention mask")] = 300,
    grid: Annotated[int, typer.Option(help="grid of the attention mask")] = 16,
    draws: Annotated[int, typer.Option(help="noise draws of the attention mask")] = 4,
    alpha: Annotated[float, typer.Option(help="weight of A_ori in the attention mask")] = 0.5,
    word: Annotated[bool, typer.Option(help="read the quality word's tokens alone")] = True,
    device: Device = None,
) -> None:  # fmt: skip
    """Object-level ROC area of the tuned sources and their ablations, on test scenes."""
    pool = _open(model, device)
    attention = localization.attention_of(
        pool.info.family, grid, alpha=alpha, level=level, noised=level > 0, draws=draws, word_only=word
    )
    _measure(pool, lambda: localization.test(pool, attention, images=images), out)


@app.command("slices")
def measure_slices(
    model: Model = "shapes-sd", out: Out = Path("out/slices.json"), images: Prompts = 60, device: Device = None
) -> None:
    """What a local and a global trial gain on sparse, usual and dense damage and on a defect of the whole image."""
    pool = _open(model, device)
    _measure(pool, lambda: slices.gains(pool, images=images), out)


@app.command()
def compare(
    model: Model = "shapes-sd", out: Out = Path("out/compare.json"), prompts: Prompts = 200,
    split: Annotated[str, typer.Option(help="test, or tune while choosing settings")] = "test",
    initial: Annotated[int, typer.Option(help="first images of LoTTS")] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set", help="settings of LoTTS, key=value")] = None,
    only: Annotated[int | None, typer.Option(help="only the first so many contestants")] = None,
    guidance: Guidance = None, steps: Steps = None, device: Device = None,
) -> None:  # fmt: skip
    """LoTTS against Best-of-N, Best-of-N with p+ and MoreSteps."""
    pool = _open(model, device, steps, guidance)
    chosen = make_strategy("lotts", dict(s.split("=", 1) for s in settings or []))
    assert isinstance(chosen, LoTTS)
    given = {k: v for k, v in chosen.settings().items() if k != "initial"}
    contestants = comparison.field(pool.info, initial, given)
    contestants = dict(list(contestants.items())[:only])
    with Progress() as bar:
        task = bar.add_task("searching", total=prompts * comparison.searches(contestants))

        def figures() -> dict[str, object]:
            if split not in ("test", "tune"):
                raise typer.BadParameter(f"split must be test or tune, not {split!r}")
            return comparison.compare(
                pool, contestants, split="test" if split == "test" else "tune", prompts=prompts,
                tick=lambda: bar.advance(task),
            )  # fmt: skip

        _measure(pool, figures, out)


@app.command("strategies")
def all_strategies(
    out: Annotated[Path, typer.Option(help="folder for the records and the table")] = Path("out/strategies"),
    model: Annotated[list[str] | None, typer.Option(help="may be repeated [shapes-sd]")] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="NAME or 'NAME KEY=VALUE …'; may be repeated [all of the package]")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="STRATEGY.KEY=VALUE for these entries")] = None,
    nfe: Annotated[
        list[float] | None, typer.Option(help="budget; may be repeated [4.25, 8.5 and 17 samples' worth]")
    ] = None,
    prompts: Prompts = 100,
    split: Annotated[str, typer.Option(help="test, or tune while choosing settings")] = "test",
    first: Annotated[int, typer.Option(help="number of the first prompt")] = 0,
    device: Annotated[str, typer.Option(help="torch device")] = "cpu",
    dtype: Annotated[str, typer.Option(help="type of the weights")] = "bfloat16",
    processes: Annotated[int, typer.Option(min=1, help="processes, each with a share of the prompts")] = 1,
    max_batch: Annotated[int, typer.Option(help="most network rows in one call")] = 32,
    at_once: Annotated[int, typer.Option(help="searches at a time in a process")] = 64,
    seconds: Annotated[float | None, typer.Option(help="time limit; begun searches may end within 30 s more")] = None,
    seed: Annotated[int, typer.Option(help="prompt i is searched with seed + i")] = 0,
    guidance: Guidance = None, steps: Steps = None,
    compile: Annotated[bool, typer.Option("--compile", help="compile the network's blocks: pays off in long runs")] = False,
    table_only: Annotated[bool, typer.Option("--table-only", help="only the table of the records in OUT")] = False,
) -> None:  # fmt: skip
    """All strategies at several budgets, one table. Searches that have a record in OUT are not run again."""
    if split not in ("test", "tune"):
        raise typer.BadParameter(f"split must be test or tune, not {split!r}")
    try:
        if not table_only:
            entries = strategies.with_settings(strategy or strategies.default_entries(), settings or [])
            job = strategies.Job(
                "", (), tuple(nfe or ()), "test" if split == "test" else "tune", first + prompts,
                tuple(range(first, first + prompts)), out, "", None, seed, at_once, device, dtype, compile, max_batch,
                steps, guidance,
            )  # fmt: skip
            strategies.measure(model or ["shapes-sd"], entries, out, job, processes, seconds)
        else:
            strategies.table(out, split)
    except LottsError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo((out / "strategies.md").read_text())


if __name__ == "__main__":
    app()
