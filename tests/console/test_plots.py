"""Plots: what they draw, what they say in words and numbers, and where their lines break."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.console.plots import MAX_SERIES, TABLE_ROWS, Plot, Series, plot
from tigrislike.console.rendering import rate, size

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*series: Series, begin: float = 0, end: float = 100, base: int = 10) -> Plot:
    return plot("id", "A <title>", series, begin, end, rate if base == 10 else size, base=base)


def tree(made: Plot) -> ET.Element:
    return ET.fromstring(made.svg)


def lines(made: Plot) -> list[str]:
    return [path.attrib["d"] for path in tree(made).iter("path") if "plot-line" in path.attrib["class"]]


def ends(made: Plot) -> list[str]:
    """What is written at the axis of values."""
    return [text.text or "" for text in tree(made).iter("text") if text.attrib.get("text-anchor") == "end"][:5]


def test_a_line_goes_from_value_to_value_and_breaks_where_there_is_none() -> None:
    made = drawn(Series("a", [(0, 1.0), (50, 2.0), (60, None), (70, 1.0), (100, 4.0)]))
    (line,) = lines(made)
    assert line.count("M") == 2
    assert line.count("L") == 2
    points = [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] == points[2][1]
    assert points[3][1] < points[1][1] < points[0][1], "more is higher"


def test_a_value_alone_between_gaps_is_drawn() -> None:
    (line,) = lines(drawn(Series("a", [(0, None), (50, 2.0), (60, None)])))
    assert re.fullmatch(r"M[\d.]+ [\d.]+h0", line)


def test_it_says_in_words_what_it_shows() -> None:
    made = drawn(Series("iad <1>", [(0, 1.0), (50, 3.0), (100, 2.0)]), Series("sjc", [(0, None)]))
    root = tree(made)
    assert root.attrib["role"] == "img"
    names = {child.attrib["id"]: child.text for child in root if "id" in child.attrib}
    assert root.attrib["aria-labelledby"].split() == list(names)
    assert list(names.values()) == [
        "A <title>",
        "iad <1>: latest 2/s, most 3/s; sjc: latest \N{EN DASH}, most \N{EN DASH}",
    ]
    assert [(row.name, row.latest, row.mean, row.most) for row in made.legend] == [
        ("iad <1>", 2.0, 2.0, 3.0),
        ("sjc", None, None, None),
    ]


def test_a_series_that_has_just_broken_off_has_no_latest_value() -> None:
    made = drawn(Series("a", [(0, 1.0), (90, 5.0), (95, None)]))
    assert (made.legend[0].latest, made.legend[0].most) == (None, 5.0)


def test_the_numbers_are_means_of_equal_times() -> None:
    made = drawn(Series("a", [(at, at) for at in range(0, 120, 5)]), end=120)
    assert [row.at for row in made.rows] == [10.0 * number for number in range(TABLE_ROWS)]
    assert [row.means for row in made.rows] == [[10.0 * number + 2.5] for number in range(TABLE_ROWS)]


def test_nothing_known_is_said() -> None:
    made = drawn()
    assert "Nothing is known of this time." in made.svg
    assert made.legend == []
    assert ends(made)[-1] == "1/s"


def test_no_more_series_than_can_be_told_apart() -> None:
    made = drawn(*(Series(str(number), [(0, 1.0)]) for number in range(MAX_SERIES + 3)))
    assert len(made.legend) == MAX_SERIES
    looks = [path.attrib for path in tree(made).iter("path") if "plot-line" in path.attrib["class"]]
    assert len({look["stroke-dasharray"] for look in looks}) == MAX_SERIES
    assert len({look["class"] for look in looks}) == MAX_SERIES


@pytest.mark.parametrize(
    ("most", "base", "top"),
    [
        (7, 10, "8/s"),
        (10, 10, "10/s"),
        (11, 10, "20/s"),
        (0.03, 10, "0.04/s"),
        (1500, 2, "2.0 KiB"),
        (1024**3, 2, "1.0 GiB"),
        (1, 2, "4 B"),
    ],
)
def test_axes_end_at_round_numbers(most: float, base: int, top: str) -> None:
    assert ends(drawn(Series("a", [(0, most)]), base=base))[-1] == top


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.floats(-50, 150), st.none() | st.floats(0, 1e30, allow_subnormal=False) | st.integers(0, 2**63)
            )
        ),
        max_size=8,
    ),
    st.sampled_from([2, 10]),
)
def test_whatever_there_is_lies_within_the_picture(
    all_points: list[list[tuple[float, float | None]]], base: int
) -> None:
    made = drawn(*(Series("a", sorted(points, key=lambda point: point[0])) for points in all_points), base=base)
    _, _, width, height = map(float, tree(made).attrib["viewBox"].split())
    for line in lines(made):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    for row in made.legend:
        assert row.most is None or math.isfinite(row.most)


def test_an_axis_of_shares_ends_at_the_whole() -> None:
    made = plot("id", "Shares", [Series("a", [(0, 0.5), (50, 0.0)])], 0, 100, lambda value: f"{value:.0f}%", base=100)
    assert ends(made) == ["0%", "25%", "50%", "75%", "100%"]
