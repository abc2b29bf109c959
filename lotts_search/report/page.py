"""Templates and the writing of pages."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lotts_search import __version__


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table: thousands apart, no more than ``digits`` decimals, nothing for None."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def large(value: float) -> str:
    """A number with a prefix of the SI: 1.2 G, 35 M."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def write_page(template: str, path: Path, context: Mapping[str, object]) -> Path:
    """Render ``template`` to ``path``: to a temporary name first, so that a half-written page is never seen."""
    environment = Environment(
        loader=PackageLoader("lotts_search.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    style = Markup((files("lotts_search.report") / "templates" / "style.css").read_text())
    html = environment.get_template(template).render(style=style, version=__version__, **context)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
    return path
