"""Tables of what is registered."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lotts_search.plugins import Entry


def show(title: str, entries: Mapping[str, Entry], json: bool) -> None:
    """Print entries by name, as a table or as one JSON object."""
    if json:
        print(json_module.dumps({name: entry.summary for name, entry in entries.items()}, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    table.add_column("what it is")
    for name, entry in entries.items():
        table.add_row(name, entry.summary)
    Console().print(table)
