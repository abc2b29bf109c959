"""Measure a shapes model; the figures are written as JSON.

Comparisons of strategies are studies: examples/compare.yaml and examples/strategies.yaml.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lotts_search.engine.local_pool import LocalPool
from lotts_search.registry import load_backbone, load_verifier
from lotts_search.shapes.measure import calibration, localization, slices
from lotts_search.shapes.measure.common import write

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Model = Annotated[str, typer.Option(help="a registered model or a diffusers folder")]
Out = Annotated[Path, typer.Option(help="JSON file for the figures")]
Prompts = Annotated[int, typer.Option(help="number of prompts")]
Guidance = Annotated[float | None, typer.Option(help="guidance weight, the model's own by default")]
Steps = Annotated[int | None, typer.Option(help="number of steps, the model's own by default")]
Device = Annotated[str | None, typer.Option(help="torch device, CUDA by default where there is one")]


def _open(
    model: str, device: str | None, steps: int | None = None, guidance: float | None = None, **changes: Any
) -> LocalPool:
    """Open a pool for one measurement. In half precision: figures need speed, not bitwise equality."""
    backbone = load_backbone(model, dtype="bfloat16", device=device)
    if steps is not None:
        changes["steps"] = steps
    if guidance is not None:
        changes["guidance"] = guidance
    if changes:
        defaults = dataclasses.replace(backbone.info.defaults, **changes)
        backbone.info = dataclasses.replace(backbone.info, defaults=defaults)
    return LocalPool(backbone, {"shapes-reward": load_verifier("shapes-reward")}, batch=32, pad=False)


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
    """Measure the share of perfect samples, and Best-of-N up to 64, on tuning prompts."""
    pool = _open(model, device, steps, guidance)
    _measure(pool, lambda: calibration.best_of_n(pool, prompts=prompts), out)


@app.command()
def repairs(
    model: Model = "shapes-sd", out: Out = Path("out/repairs.json"), prompts: Prompts = 60,
    guidance: Guidance = None, steps: Steps = None, device: Device = None,
) -> None:  # fmt: skip
    """Measure repair and harm probabilities of a refinement by t0, on tuning prompts."""
    pool = _open(model, device, steps, guidance)
    _measure(pool, lambda: calibration.repairs(pool, prompts=prompts), out)


@app.command()
def tune(
    model: Model = "shapes-sd", out: Out = Path("out/tune.json"), images: Prompts = 64, guidance: Guidance = None,
    only: Annotated[str, typer.Option(help="only candidates whose name contains this")] = "", device: Device = None,
) -> None:  # fmt: skip
    """Measure the object-level ROC area of every candidate mask setting, on tuning scenes."""
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
    """Measure the object-level ROC area of the tuned sources and their ablations, on test scenes."""
    pool = _open(model, device)
    attention = localization.attention_of(
        pool.info.family, grid, alpha=alpha, level=level, noised=level > 0, draws=draws, word_only=word
    )
    _measure(pool, lambda: localization.test(pool, attention, images=images), out)


@app.command("slices")
def measure_slices(
    model: Model = "shapes-sd", out: Out = Path("out/slices.json"), images: Prompts = 60, device: Device = None
) -> None:
    """Measure the gain of a local and a global trial on sparse, usual and dense damage and on a global defect."""
    pool = _open(model, device)
    _measure(pool, lambda: slices.gains(pool, images=images), out)


if __name__ == "__main__":
    app()
