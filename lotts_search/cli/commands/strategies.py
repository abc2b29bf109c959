"""``lotts-search strategies``."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from lotts_search.cli.options import Json


def strategies(
    name: Annotated[
        str | None, typer.Argument(help="Explain this one: a name or package.module:Class.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List the strategies, or explain one with its settings.

    Examples:

        lotts-search strategies

        lotts-search strategies lotts
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lotts_search import registry
    from lotts_search.cli.commands.listing import show

    if name is None:
        show("strategies", registry.strategies(), json)
        return
    found = registry.describe_strategy(name)
    if json:
        settings = [
            {"name": s.name, "type": s.type, "default": repr(s.default), "about": s.doc} for s in found.settings
        ]
        about = {"name": found.name, "summary": found.summary, "source": found.source, "formula": found.formula}
        print(json_module.dumps(about | {"settings": settings}))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{escape(found.name)}[/bold]  {escape(found.summary)}")
    for label, text in (("source", found.source), ("cost in NFE", found.formula)):
        if text:
            console.print(f"{label}: {escape(text)}")
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "default", "type", "what it is"):
        table.add_column(heading)
    for setting in found.settings:
        table.add_row(*(escape(str(v)) for v in (setting.name, setting.default, setting.type, setting.doc)))
    console.print(table)
    console.print(f"\nUse them as  [bold]--strategy {escape(found.name)} --set SETTING=VALUE[/bold]")
