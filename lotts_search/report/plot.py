"""Line charts as inline SVG. Colours are CSS variables of the page, so that charts follow its light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from lotts_search.curves.intervals import Doubles

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42
"""Margins in SVG units around the plotting area."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        colour: a CSS colour, e.g. ``var(--series-1)``.
        x, y: [n] points of the line; points whose y is not finite are left out.
        low, high: [n] band around the line, None = no band.
        step: whether the line is a step function.
        dots: further points (x, y), e.g. single trials.
    """

    label: str
    colour: str
    x: Doubles
    y: Doubles
    low: Doubles | None = None
    high: Doubles | None = None
    step: bool = False
    dots: Sequence[tuple[float, float]] = field(default_factory=tuple)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.75)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten from ``low`` to ``high``.

    Over more than three decades only powers of ten are returned. If there are fewer than three such numbers, the ticks
    are evenly spaced instead.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**d for d in decades for m in ((1, 2, 5) if high / low < 3e3 else (1,))]
    found = [t for t in found if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
    return found if len(found) > 2 else ticks(low, high, 4)


def _extent(values: Sequence[float]) -> tuple[float, float]:
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high > low:
        return low, high
    return low - 0.5, high + 0.5


def _values(series: Series) -> list[float]:
    bands = [b for b in (series.low, series.high) if b is not None]
    return [float(v) for array in (series.y, *bands) for v in array] + [y for _, y in series.dots]


def _trace(x: Doubles, y: Doubles, step: bool) -> list[tuple[float, float]]:
    """Return the points of a line through the finite values, with the corners of a step function if ``step``."""
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if not step or not points:
        return points
    corners = [points[0]]
    for a, b in points[1:]:
        corners += [(a, corners[-1][1]), (a, b)]
    return corners


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str,
    width: int = 460,
    height: int = 290,
    *,
    log: bool = False,
    zero: bool = True,
) -> Markup:
    """Draw ``series`` as an inline SVG chart; ``title`` is its text for screen readers.

    The x axis begins at zero; without ``zero``, at its lowest value. With ``log`` it is logarithmic and begins at its
    lowest value, which must be positive.
    """
    xs = [*(float(v) for s in series for v in s.x), *(x for s in series for x, _ in s.dots)]
    x_low, x_high = _extent([0.0, *xs] if log or zero else xs)
    if log:
        x_low = min((float(v) for s in series for v in s.x), default=1.0)
    y_low, y_high = _extent([v for s in series for v in _values(s)])
    margin = 0.06 * (y_high - y_low)
    y_low, y_high = y_low - margin, y_high + margin
    inner_w, inner_h = width - LEFT - RIGHT, height - TOP - BOTTOM

    if log and x_high <= x_low:  # all points have the same x: draw it in the middle
        x_low, x_high = x_low / 2, x_high * 2

    def px(x: float) -> float:
        share = math.log(x / x_low) / math.log(x_high / x_low) if log else (x - x_low) / (x_high - x_low)
        return round(LEFT + inner_w * share, 2)

    def py(y: float) -> float:
        return round(TOP + inner_h * (1 - (y - y_low) / (y_high - y_low)), 2)

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in ticks(y_low, y_high):
        out.append(f'<path class="grid" d="M{LEFT} {py(tick)}H{width - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 7}" y="{py(tick) + 3.5}" text-anchor="end">{tick:g}</text>')
    base = height - BOTTOM
    out.append(f'<path class="axis" d="M{LEFT} {base}H{width - RIGHT}"/>')
    for tick in log_ticks(x_low, x_high) if log else ticks(x_low, x_high, 6):
        out.append(f'<path class="axis" d="M{px(tick)} {base}v4"/>')
        out.append(
            f'<text x="{px(tick)}" y="{base + 16}" text-anchor="middle">{tick:,.12g}</text>'
            if tick < 1e6
            else f'<text x="{px(tick)}" y="{base + 16}" text-anchor="middle">{tick:.0e}</text>'
        )
    middle_x, middle_y = LEFT + inner_w / 2, TOP + inner_h / 2
    out.append(f'<text class="label" x="{middle_x}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    out.append(
        f'<text class="label" x="13" y="{middle_y}" text-anchor="middle" '
        f'transform="rotate(-90 13 {middle_y})">{escape(y_label)}</text>'
    )
    for s in series:
        out.append(f'<g style="--c:{escape(s.colour)}">')
        if s.low is not None and s.high is not None and len(s.x) > 1:
            upper, lower = _trace(s.x, s.high, s.step), _trace(s.x, s.low, s.step)
            corners = " ".join(f"{px(x)},{py(y)}" for x, y in upper + lower[::-1])
            out.append(f'<polygon class="band" points="{corners}"/>')
        for x, y in s.dots:
            if math.isfinite(y):
                out.append(f'<circle class="dot" cx="{px(x)}" cy="{py(y)}" r="3"/>')
        if points := _trace(s.x, s.y, s.step):
            path = "L".join(f"{px(x)} {py(y)}" for x, y in points)
            out.append(f'<path class="line" d="M{path}"/>')
        out.append("</g>")
    out.append("</svg>")
    return Markup("".join(out))
