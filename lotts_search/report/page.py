"""Render templates and write pages."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lotts_search import __version__
from lotts_search.report.search_tree import in_words
from lotts_search.work.replacing import replacing


def number(value: float | None, digits: int = 1) -> str:
    """Format a number for a table: thousands separated, at most ``digits`` decimals, empty for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def large(value: float) -> str:
    """Format a number with an SI prefix: 1.2 G, 35 M."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def write_page(template: str, path: Path, context: Mapping[str, object]) -> Path:
    """Render ``template`` with ``context`` to ``path`` and return the path."""
    environment = Environment(
        loader=PackageLoader("lotts_search.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=number, words=in_words)
    folder = files("lotts_search.report") / "templates"
    style = Markup("".join((folder / name).read_text() for name in ("colours.css", "style.css")))
    return write_text(path, environment.get_template(template).render(style=style, version=__version__, **context))


def write_text(path: Path, text: str) -> Path:
    """Write a text file under a temporary name and rename it, so that no reader sees half of it; return ``path``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table as a CSV file in the way of :func:`write_text`; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return write_text(path, text.getvalue())
