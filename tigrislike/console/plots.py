"""Line plots as SVG, and as numbers for who cannot or does not want to see them.

A plot is drawn here, so that it needs no script, and styled by classes, so that it needs no inline style. Series are
told apart by dashes as well as by colours. Where a series has no value its line is broken.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from markupsafe import Markup

MAX_SERIES: Final = 6
"""Series in one plot; more could not be told apart."""

TABLE_ROWS: Final = 12

# As wide as the columns of plots are at least, so that its text is of about its own size; on a phone that is larger.
_WIDTH: Final = 520
_HEIGHT: Final = 200
_LEFT: Final = 104
_RIGHT: Final = 12
_TOP: Final = 12
_BOTTOM: Final = 30
_DAY_S: Final = 86400
_DASHES: Final = ("", "7 3", "2 3", "10 3 2 3", "12 5", "4 2 4 6")


class Series(NamedTuple):
    """Values at moments (Unix seconds), in order; None where there is none."""

    name: str
    points: Sequence[tuple[float, float | None]]

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.points if value is not None]


class Legend(NamedTuple):
    """What a series comes to; None where it has no values. `place` is its number in the plot, from 1."""

    place: int
    name: str
    sample: Markup
    latest: float | None
    mean: float | None
    most: float | None


class Row(NamedTuple):
    """Means of the series from `at` until the next row."""

    at: float
    means: list[float | None]


class Plot(NamedTuple):
    """A plot: `svg`, its `legend`, and `rows` of numbers, which `show` makes text of."""

    id: str
    title: str
    svg: Markup
    legend: list[Legend]
    rows: list[Row]
    show: Callable[[float | None], str]


def plot(
    id_: str,
    title: str,
    series: Sequence[Series],
    begin: float,
    end: float,
    show: Callable[[float | None], str],
    *,
    base: int = 10,
) -> Plot:
    """A plot of series from `begin` to `end` (Unix seconds), from zero up.

    Args:
        id_: unique in its page; a name as HTML has them.
        show: how a value is written.
        base: whether the axis counts in tens or, for bytes, in powers of 1024 (2), or ends at a hundred percent (100).
    """
    shown = [
        Series(each.name, [point for point in each.points if begin <= point[0] <= end]) for each in series[:MAX_SERIES]
    ]
    top = _top(max((max(each.values, default=0.0) for each in shown), default=0.0), base)
    legend = [_legend(place, each) for place, each in enumerate(shown, 1)]
    said = "; ".join(f"{row.name}: latest {show(row.latest)}, most {show(row.most)}" for row in legend)
    svg = Markup(
        '<svg class="plot" role="img" viewBox="0 0 {width} {height}" aria-labelledby="{id}-title {id}-desc">'
        '<title id="{id}-title">{title}</title><desc id="{id}-desc">{said}</desc>{grid}{lines}</svg>'
    ).format(
        width=_WIDTH,
        height=_HEIGHT,
        id=id_,
        title=title,
        said=said or "Nothing is known of this time.",
        grid=Markup("").join([*_levels(top, show), *_times(begin, end)]),
        lines=Markup("").join(_line(place, each, begin, end, top) for place, each in enumerate(shown, 1)),
    )
    return Plot(id_, title, svg, legend, list(_rows(shown, begin, end)), show)


def _legend(place: int, series: Series) -> Legend:
    values = series.values
    sample = Markup(
        '<svg class="plot-key" viewBox="0 0 32 8" width="32" height="8" aria-hidden="true">'
        '<path class="plot-line plot-{}" stroke-dasharray="{}" d="M0 4H32"/></svg>'
    ).format(place, _DASHES[place - 1])
    if not values:
        return Legend(place, series.name, sample, None, None, None)
    return Legend(place, series.name, sample, series.points[-1][1], math.fsum(values) / len(values), max(values))


def _top(most: float, base: int) -> float:
    """The end of an axis that has `most` on it: 1, 2 or 5 times a power, so that quarters of it read well."""
    if base == 100:
        return 100.0
    most = max(most, 4.0 if base == 2 else 0.0)  # there are no quarters of a byte
    if most <= 0:
        return 1.0
    if base == 2:
        unit = 1024.0 ** math.floor(math.log(most, 1024))
        steps = [2.0**power for power in range(11)]
    else:
        unit = 10.0 ** math.floor(math.log10(most))
        steps = [1.0, 2.0, 4.0, 8.0, 10.0]
    return next((unit * step for step in steps if unit * step >= most), unit * steps[-1] * 2)


def _levels(top: float, show: Callable[[float | None], str]) -> Iterator[Markup]:
    for quarter in range(5):
        value = top * quarter / 4
        y = _y(value, top)
        yield Markup('<path class="plot-grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT)
        yield Markup('<text class="plot-label" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            _LEFT - 8, y + 4, show(value)
        )


def _times(begin: float, end: float) -> Iterator[Markup]:
    form, parts = ("%H:%M", 4) if end - begin <= _DAY_S else ("%d %b %H:%M", 2)
    for part in range(parts + 1):
        at = begin + (end - begin) * part / parts
        anchor = "start" if part == 0 else "end" if part == parts else "middle"
        text = datetime.datetime.fromtimestamp(at, datetime.UTC).strftime(form)
        yield Markup('<text class="plot-label" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
            _x(at, begin, end), _HEIGHT - 8, anchor, text
        )


def _line(place: int, series: Series, begin: float, end: float, top: float) -> Markup:
    parts = []
    drawing = False
    for at, value in series.points:
        if value is None:
            drawing = False
            continue
        # A point alone is drawn too, as a line of no length with round ends.
        x, y = f"{_x(at, begin, end):.1f}", f"{_y(value, top):.1f}"
        parts.append(f"L{x} {y}" if drawing else f"M{x} {y}h0")
        drawing = True
    return Markup('<path class="plot-line plot-{}" stroke-dasharray="{}" d="{}"/>').format(
        place, _DASHES[place - 1], "".join(parts)
    )


def _rows(series: Sequence[Series], begin: float, end: float) -> Iterator[Row]:
    step = (end - begin) / TABLE_ROWS
    for number in range(TABLE_ROWS):
        first = begin + step * number
        until = math.inf if number == TABLE_ROWS - 1 else first + step
        means: list[float | None] = []
        for each in series:
            values = [value for at, value in each.points if value is not None and first <= at < until]
            means.append(math.fsum(values) / len(values) if values else None)
        yield Row(first, means)


def _x(at: float, begin: float, end: float) -> float:
    return _LEFT + (at - begin) / (end - begin) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float) -> float:
    return _TOP + (1 - value / top) * (_HEIGHT - _TOP - _BOTTOM)
