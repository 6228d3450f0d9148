"""Line charts and bars as inline SVG: nothing to load, sharp at any size, coloured by the page's CSS variables.

Every chart carries its points in a ``data-points`` attribute; the page's script reads them to show values under the
pointer. Without scripts the charts are complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30  # margins of a chart, in its own pixels
_MOST_POINTS = 500


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for the legend and the values under the pointer.
        x: ascending.
        y: as many; points that are not finite are left out.
        colour: 1 .. 4, a colour of the page.
        faint: thin and pale, for raw values behind a mean.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    faint: bool = False

    def points(self) -> list[tuple[float, float]]:
        """Finite points, at most 500 or so: of each stretch its lowest and highest, so that no spike is lost."""
        points = [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if len(points) <= _MOST_POINTS:
            return points
        size = math.ceil(2 * len(points) / _MOST_POINTS)
        kept: list[tuple[float, float]] = []
        for start in range(0, len(points), size):
            stretch = points[start : start + size]
            ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
            kept += sorted(ends)
        return kept


def number(value: float) -> str:
    """A figure as people write it: ``0.1234``, ``12.3``, ``45,678``, ``1.2e-05``."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.2g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if size < 1 else f"{value:.4g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round figures from ``low`` to ``high``, about ``count`` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    label: str,
    series: Sequence[Series],
    *,
    x_name: str,
    logarithmic: bool = False,
    mark: tuple[float, float, str] | None = None,
    size: tuple[int, int] = (560, 220),
) -> str:
    """An SVG of ``series``, with a legend when there are several.

    Args:
        label: what the chart shows, for screen readers.
        series: lines; those without points are left out.
        x_name: name of the horizontal axis.
        logarithmic: vertical axis; values that are not positive are left out.
        mark: a point of the first line to point out, ``(x, y, text)``.
        size: width and height; a page scales charts to their place, so a smaller size means larger letters.
    """
    lines = [(one, one.points()) for one in series]
    if logarithmic:
        lines = [(one, [point for point in points if point[1] > 0]) for one, points in lines]
    lines = [(one, points) for one, points in lines if points]
    if not lines:
        return ""
    width, height = size
    across = _axis([x for _, points in lines for x, _ in points], _LEFT, width - _RIGHT, whole=True)
    up = _axis([y for _, points in lines for _, y in points], height - _BOTTOM, _TOP, logarithmic=logarithmic)
    parts = _grid(across, up, x_name, width, height)
    for one, points in lines:
        path = "M" + "L".join(f"{across.place(x):.1f} {up.place(y):.1f}" for x, y in points)
        kind = f"line s{one.colour}" + (" faint" if one.faint else "")
        parts.append(f'<path class="{kind}" d="{path}"/>')
        if len(points) == 1:
            parts.append(_dot(across.place(points[0][0]), up.place(points[0][1]), one.colour))
    if mark is not None:
        x, y, text = across.place(mark[0]), up.place(mark[1]), escape(mark[2])
        left = x > width * 0.7
        parts.append(_dot(x, y, 1) + f'<text class="mark" x="{x - 2 if left else x + 2:.1f}" y="{y + 22:.1f}" '
                     f'text-anchor="{"end" if left else "start"}">{text}</text>')  # fmt: skip
    shown = [
        {
            "name": one.name,
            "colour": one.colour,
            "points": [[round(across.place(x), 1), round(up.place(y), 1), x, number(y)] for x, y in points],
        }
        for one, points in lines
    ]
    data = escape(json.dumps({"x": x_name, "series": shown}), quote=True)
    figure = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}" '
        f'data-points="{data}">{"".join(parts)}<line class="cursor" y1="{_TOP}" y2="{height - _BOTTOM}"/></svg>'
    )
    return figure + (_legend([one for one, _ in lines]) if len(lines) > 1 else "")


def interval_bar(
    value: float, most: float, *, interval: Sequence[float] | None = None, tick: float | None = None
) -> str:
    """A small bar for a table cell: ``value`` of ``most``, confidence interval as a whisker, baseline as a tick."""
    width, height = 180, 18

    def place(figure: float) -> float:
        return 1 + (width - 2) * min(max(figure / most, 0), 1) if most > 0 else 1

    parts = [f'<rect class="track" x="0" y="5" width="{width}" height="8" rx="4"/>']
    parts.append(f'<rect class="bar" x="0" y="5" width="{place(value):.1f}" height="8" rx="4"/>')
    if interval is not None:
        low, high = (place(edge) for edge in interval)
        parts.append(f'<path class="whisker" d="M{low:.1f} 9H{high:.1f}M{low:.1f} 5v8M{high:.1f} 5v8"/>')
    if tick is not None:
        parts.append(f'<path class="tick" d="M{place(tick):.1f} 1v16"/>')
    return f'<svg class="bars" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class _Axis:
    place: Callable[[float], float]
    ticks: list[float]


def _axis(
    values: Sequence[float], start: float, end: float, *, logarithmic: bool = False, whole: bool = False
) -> _Axis:
    """From values to pixels; a little air above and below, unless the axis is the horizontal one (``whole``)."""
    low, high = min(values), max(values)
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    air = 0.0 if whole else (0.06 * (high - low) or 0.05 * abs(high) or 1.0)
    low, high = low - air, high + air
    span = high - low or 1.0

    def place(value: float) -> float:
        return start + (end - start) * ((math.log10(value) if logarithmic else value) - low) / span

    if not logarithmic:
        marks = ticks(low, high)
        return _Axis(place, [mark for mark in marks if not whole or mark == int(mark)] or marks[:1])
    powers = range(math.floor(low), math.floor(high) + 1)
    factors = (1,) if high - low > 3 else (1, 2, 5)
    marks = [f * 10.0**power for power in powers for f in factors if low <= math.log10(f * 10.0**power) <= high]
    marks = marks if len(marks) > 1 else ticks(10**low, 10**high)  # less than an octave or so
    return _Axis(place, marks[:: math.ceil(len(marks) / 6)])


def _grid(across: _Axis, up: _Axis, x_name: str, width: int, height: int) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in across.ticks:
        place = f'x="{across.place(tick):.1f}" y="{height - 12}"'
        parts += [f'<text class="axis" {place} text-anchor="middle">{_short(tick)}</text>']
    parts.append(f'<path class="base" d="M{_LEFT} {height - _BOTTOM}H{width - _RIGHT}"/>')
    parts.append(
        f'<text class="axis name" x="{width - _RIGHT}" y="{height - 1}" text-anchor="end">{escape(x_name)}</text>'
    )
    return parts


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1000 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"


def _dot(x: float, y: float, colour: int) -> str:
    return f'<circle class="dot s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _legend(series: Sequence[Series]) -> str:
    entries = (
        f'<span><i class="key s{s.colour}{" faint" if s.faint else ""}"></i>{escape(s.name)}</span>' for s in series
    )
    return f'<div class="legend">{"".join(entries)}</div>'
