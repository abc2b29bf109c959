"""``lotts-search models``, ``strategies``, ``verifiers``, ``metrics``, ``rewriters``, ``masks``: list what is registered."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lotts_search.cli.options import Json

if TYPE_CHECKING:
    from lotts_search.plugins import Entry
    from lotts_search.registry import StrategyInfo

Name = Annotated[
    str | None, typer.Argument(help="Explain this one: a name or package.module:Class.", show_default=False)
]


def models(json: Json = False) -> None:
    """List the registered models.

    Any other Stable Diffusion 1.x or 2.x, SDXL, Stable Diffusion 3 or FLUX.1 model in diffusers format works as well,
    as a folder or a Hub id, with a verifier for its images:

        lotts-search generate "a red fox in the snow" --model ./my-stable-diffusion --verifier my_package:MyVerifier
    """
    from lotts_search import registry

    _list("model", registry.models(), json)


def strategies(name: Name = None, json: Json = False) -> None:
    """List the strategies, or explain one with its settings.

    Examples:

        lotts-search strategies

        lotts-search strategies lotts
    """
    from lotts_search import registry

    if name is None:
        _list("strategy", registry.strategies(), json)
        return
    found = registry.describe_strategy(name)
    if json:
        _print_json(
            found, {"source": found.source, "formula": found.formula}, [repr(s.default) for s in found.settings]
        )
        return
    lines = [f"[bold]{escape(found.name)}[/bold]  {escape(found.summary)}"]
    lines += [
        f"{label}: {escape(text)}" for label, text in (("source", found.source), ("cost in NFE", found.formula)) if text
    ]
    _print_settings(found, "\n".join(lines), f"--strategy {found.name} --set SETTING=VALUE")


def verifiers(name: Name = None, json: Json = False) -> None:
    """List the verifiers, which score images and thereby guide a search, or explain one with its settings.

    Examples:

        lotts-search verifiers shapes-reward

        lotts-search generate "center red star on gray" --verifier shapes-reward

        lotts-search generate "a red fox" --model ./my-model --verifier my_package:MyVerifier:threshold=0.5
    """
    from lotts_search import registry

    if name is None:
        _list("verifier", registry.verifiers(), json)
        return
    _explain(registry.describe_verifier(name), f"--verifier {name}:", json)


def metrics(json: Json = False) -> None:
    """List the metrics, which judge the images of a study and never guide a search.

    Any verifier works as a metric, too. In a study file:

        metrics: [shapes-oracle, my_package:MyVerifier]

    Example:

        lotts-search study examples/study.yaml
    """
    from lotts_search import registry

    _list("metric", registry.metrics(), json)


def rewriters(name: Name = None, json: Json = False) -> None:
    """List the rewriters, which revise prompts during a search, or explain one with its settings.

    Examples:

        lotts-search rewriters chat

        lotts-search generate "$PROMPT" --strategy ttgen --nfe 200

        lotts-search generate "a red fox" --model ./my-model --verifier my_package:MyVerifier --strategy ttgen --rewriter chat --set-rewriter base_url=http://127.0.0.1:8000/v1
    """
    from lotts_search import registry

    if name is None:
        _list("rewriter", registry.rewriters(), json)
        return
    _explain(registry.describe_rewriter(name), f"--rewriter {name} --set-rewriter ", json)


def masks(name: Name = None, json: Json = False) -> None:
    """List the mask sources, which find the region to resample, or explain one with its settings.

    Examples:

        lotts-search masks error-contrast

        lotts-search generate "$PROMPT" --set mask=disagreement --set ratio=0.3

        lotts-search generate "$PROMPT" --set 'mask={"kind": "fusion", "sources": ["error-contrast", "quality"]}'

        lotts-search generate "$PROMPT" --set mask=center.png
    """
    from lotts_search import registry
    from lotts_search.work.masks import mask_kinds

    if name is None:
        _list("mask source", mask_kinds(), json)
        return
    found = registry.describe_mask(name)
    if json:
        _print_json(found, {"source": found.source, "cost": found.formula}, [repr(s.default) for s in found.settings])
        return
    about = f"{escape(found.doc)}\n\ncode: {escape(found.source)}\ncost: {found.formula}"
    kind = f'--set \'mask={{"kind": "{name}", "SETTING": VALUE}}\''
    _print_settings(found, about, kind)


def _list(kind: str, entries: Mapping[str, Entry], json: bool) -> None:
    """Print entries by name, as a table or as one JSON object."""
    from lotts_search.plugins import summary_of

    summaries = {name: summary_of(kind, entry) for name, entry in entries.items()}
    if json:
        print(json_module.dumps(summaries, ensure_ascii=False))
    else:
        _print_table((kind, "description"), list(summaries.items()))


def _explain(found: StrategyInfo, option: str, json: bool) -> None:
    """Print the docstring and the settings of a plug-in; ``option`` is what comes before its SETTING=VALUE."""
    if json:
        _print_json(found, {}, [setting.default for setting in found.settings])
    else:
        _print_settings(found, escape(found.doc), f"{option}SETTING=VALUE")


def _print_json(found: StrategyInfo, more: Mapping[str, str], defaults: list[Any]) -> None:
    settings = [
        {"name": setting.name, "type": setting.type, "default": default, "about": setting.doc}
        for setting, default in zip(found.settings, defaults, strict=True)
    ]
    print(json_module.dumps({"name": found.name, "summary": found.summary, **more, "settings": settings}))


def _print_settings(found: StrategyInfo, about: str, usage: str) -> None:
    console = Console(highlight=False)
    console.print(f"{about}\n", soft_wrap=True)
    if not found.settings:
        console.print("It has no settings.")
        return
    rows = [(setting.name, setting.shown, setting.type, setting.doc) for setting in found.settings]
    _print_table(("setting", "default", "type", "description"), rows)
    console.print(f"\nUsage: [bold]{escape(usage)}[/bold]", soft_wrap=True)


def _print_table(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")  # nothing is cut, least of all a name
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    Console(highlight=False).print(table)
