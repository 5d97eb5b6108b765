"""Extras are a share of requests, whatever the order they come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tigrislike.origin.budget import Budget


@given(
    st.lists(st.sampled_from(["request", "extra"]), max_size=300),
    st.sampled_from([0.01, 0.1, 0.2, 0.5, 1.0]),
    st.integers(0, 20),
)
def test_in_any_stretch_extras_are_at_most_the_reserve_and_the_share(
    events: list[str], ratio: float, reserve: int
) -> None:
    budget = Budget(ratio, reserve)
    spent = []
    for event in events:
        if event == "request":
            budget.earn()
        spent.append(event == "extra" and budget.spend())
    for begin in range(0, len(events), 7):
        for end in range(begin, len(events) + 1, 7):
            requests = events[begin:end].count("request")
            assert sum(spent[begin:end]) <= reserve + ratio * requests + 1e-9


@given(st.integers(1, 20), st.integers(1, 200))
def test_what_is_earned_can_be_spent(reserve: int, requests: int) -> None:
    budget = Budget(0.5, reserve)
    assert [budget.spend() for _ in range(reserve + 1)] == [True] * reserve + [False]
    for _ in range(requests):
        budget.earn()
    may = min(reserve, requests // 2)
    assert [budget.spend() for _ in range(may + 1)] == [True] * may + [False]
