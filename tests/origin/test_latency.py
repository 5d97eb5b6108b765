"""The quantile is that of the latest samples, as if they were sorted each time."""

from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from tigrislike.origin.latency import Quantile


@given(
    st.lists(st.floats(0, 100) | st.sampled_from([0.0, 1.0, 1.0]), max_size=200),
    st.sampled_from([0.5, 0.9, 0.99, 1.0]),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_it_is_the_nearest_rank_of_the_window(samples: list[float], q: float, window: int, least: int) -> None:
    quantile = Quantile(q, window=window, least=least)
    for count, sample in enumerate(samples, 1):
        quantile.add(sample)
        latest = samples[max(0, count - window) : count]
        if len(latest) < least:
            assert quantile.value is None
            continue
        value = quantile.value
        assert value in latest
        assert sum(other <= value for other in latest) >= q * len(latest)
        assert sum(other < value for other in latest) < ceil(q * len(latest))


def test_nothing_is_known_at_first() -> None:
    assert Quantile(0.99, window=10, least=1).value is None
