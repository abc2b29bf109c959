"""The tree of one search as a single SVG image, for a README or a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import escape

from lotts_search.report.page import write_text
from lotts_search.report.search_tree import Card, RegionView, build

if TYPE_CHECKING:
    from lotts_search.core.result import SearchResult

SIDE, GAP, HEAD, FOOT = 104, 18, 34, 24
"""Side of an image, gap between images, height of the headings, and height of the line below an image."""
INK, SOFT, LINE, WIN = "#1d1d22", "#63636e", "#c9c6bd", "#b7791f"


def write_figure(result: SearchResult, path: Path | str, rows: int = 3) -> Path:
    """Draw the first images that were refined, each with its heat map, located region and refinements.

    Args:
        result: a search by a strategy that localizes and refines.
        path: the SVG file.
        rows: at most this many first images.

    Returns:
        ``path``.
    """
    best = result.best.trial_id if result.best is not None else None
    roots = [n for n in build(result.trials, result.images, result.located, best) if n.regions and n.children][:rows]
    columns = 3 + max((len(n.children) for n in roots), default=1)
    width = GAP + columns * (SIDE + GAP) + 2 * GAP
    height = HEAD + len(roots) * (SIDE + FOOT + GAP)
    head = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="12.5"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {head} font-family="system-ui, Segoe UI, Roboto, sans-serif">',
        f"<title>{escape(result.prompt)}</title>",
        f'<rect width="{width}" height="{height}" rx="12" fill="#ffffff"/>',
    ]
    for column, heading in enumerate(("first image", "what looks wrong", "located region", "resampled only there")):
        out.append(f'<text x="{_x(column)}" y="{HEAD - 12}" fill="{SOFT}">{heading}</text>')
    for row, node in enumerate(roots):
        y = HEAD + row * (SIDE + FOOT + GAP)
        out += _row(node, y)
    return write_text(Path(path), "\n".join([*out, "</svg>"]) + "\n")


def _x(column: int) -> int:
    """Return the left side of a column; columns with an arrow between them are further apart."""
    return GAP + column * (SIDE + GAP) + (GAP if column >= 1 else 0) + (GAP if column >= 3 else 0)


def _row(card: Card, y: int) -> list[str]:
    region = card.regions[0]
    out = [*_candidate(card, _x(0), y), _arrow(_x(0) + SIDE, _x(1), y), _image(region.heat, _x(1), y)]
    out += [_image(card.uri, _x(2), y), _mask(region, _x(2), y), _arrow(_x(2) + SIDE, _x(3), y)]
    for column, child in enumerate(card.children, start=3):
        out += _candidate(child, _x(column), y)
    return out


def _candidate(card: Card, x: int, y: int) -> list[str]:
    score = "" if card.trial.score is None else f"{card.trial.score:.3f}"
    out = [_image(card.uri, x, y), f'<text x="{x}" y="{y + SIDE + 16}" fill="{INK}" font-weight="600">{score}</text>']
    note, colour = "" if card.gain is None else f"{card.gain:+.3f}", SOFT
    if card.winner:
        out.append(f'<rect x="{x - 3}" y="{y - 3}" width="{SIDE + 6}" height="{SIDE + 6}" rx="5" fill="none" stroke="{WIN}" stroke-width="3"/>')  # fmt: skip
        note, colour = "★ best", WIN
    out.append(f'<text x="{x + SIDE}" y="{y + SIDE + 16}" fill="{colour}" text-anchor="end">{note}</text>')
    return out


def _image(uri: str | None, x: int, y: int) -> str:
    if uri is None:
        return f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="{LINE}"/>'
    return f'<image href="{uri}" x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" style="image-rendering:pixelated"/>'


def _mask(region: RegionView, x: int, y: int) -> str:
    place = f'x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" viewBox="0 0 {region.width} {region.height}"'
    line = 'fill="none" vector-effect="non-scaling-stroke" stroke-linecap="square"'
    return (
        f'<svg {place} overflow="visible"><path d="{region.area}" fill="#fff" fill-opacity=".28"/>'
        f'<path d="{region.outline}" {line} stroke="#000" stroke-opacity=".7" stroke-width="4"/>'
        f'<path d="{region.outline}" {line} stroke="#ffe14d" stroke-width="2"/></svg>'
    )


def _arrow(start: int, stop: int, y: int) -> str:
    middle = y + SIDE // 2
    return f'<path d="M{start + 6} {middle}H{stop - 8}m-5 -5l5 5l-5 5" fill="none" stroke="{SOFT}" stroke-width="1.6"/>'
