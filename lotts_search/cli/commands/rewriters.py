"""``lotts-search rewriters``."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from lotts_search.cli.options import Json


def rewriters(
    name: Annotated[
        str | None, typer.Argument(help="Explain this one: a name or package.module:Class.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List what revises prompts, or explain one with its settings.

    Examples:

        lotts-search rewriters chat

        lotts-search generate "$PROMPT" --strategy ttgen --nfe 200

        lotts-search generate "a red fox" --model ./my-model --strategy ttgen --rewriter chat --set-rewriter base_url=http://127.0.0.1:8000/v1
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lotts_search import registry
    from lotts_search.cli.commands.listing import show

    if name is None:
        show("rewriters", registry.rewriters(), json)
        return
    found = registry.describe_rewriter(name)
    if json:
        settings = [{"name": s.name, "type": s.type, "default": s.default, "about": s.doc} for s in found.settings]
        print(json_module.dumps({"name": found.name, "summary": found.summary, "settings": settings}))
        return
    console = Console(highlight=False)
    console.print(f"{escape(found.doc)}\n", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "default", "type", "what it is"):
        table.add_column(heading)
    for setting in found.settings:
        table.add_row(*(escape(str(v)) for v in (setting.name, setting.default, setting.type, setting.doc)))
    console.print(table)
    console.print(f"\nUse them as  [bold]--rewriter {escape(found.name)} --set-rewriter SETTING=VALUE[/bold]")
