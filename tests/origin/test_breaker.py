"""The breaker: each transition by itself, then all orders of a few events against what must always hold."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from tigrislike.origin.breaker import Breaker, Permit


def permit(breaker: Breaker, now_s: float = 0.0) -> Permit:
    given = breaker.admit(now_s)
    assert given is not None
    return given


def opened() -> Breaker:
    breaker = Breaker(in_a_row=3, share=0.5, window=8, pause_s=1.0, longest_pause_s=4.0)
    for _ in range(3):
        breaker.failed(permit(breaker), 0.0)
    assert breaker.state(0.0) == "open"
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(in_a_row=3, window=100)
    for _ in range(10):
        breaker.failed(permit(breaker), 0)
        breaker.failed(permit(breaker), 0)
        breaker.succeeded(permit(breaker))
    assert breaker.state(0) == "closed"
    for _ in range(3):
        breaker.failed(permit(breaker), 0)
    assert breaker.state(0) == "open"
    assert breaker.admit(0) is None
    assert breaker.opened == 1


def test_a_share_of_the_latest_opens_it_once_there_are_enough() -> None:
    breaker = Breaker(in_a_row=100, share=0.5, window=8)
    for _ in range(3):
        breaker.failed(permit(breaker), 0)
        breaker.succeeded(permit(breaker))
    breaker.failed(permit(breaker), 0)
    assert breaker.state(0) == "closed"  # four of seven
    breaker.failed(permit(breaker), 0)
    assert breaker.state(0) == "open"


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker(in_a_row=100, share=0.5, window=8)
    for _ in range(3):
        breaker.failed(permit(breaker), 0)
    for _ in range(8):
        breaker.succeeded(permit(breaker))
    for _ in range(3):
        breaker.failed(permit(breaker), 0)
    assert breaker.state(0) == "closed"


def test_after_a_pause_one_probe_goes_at_a_time() -> None:
    breaker = opened()
    assert breaker.wait_s(0.25) == 0.75
    assert breaker.admit(0.999) is None
    assert breaker.state(1.0) == "half-open"
    assert breaker.wait_s(1.0) == 0
    permit(breaker, 1.0)
    assert breaker.wait_s(1.0) > 0
    assert breaker.admit(1.0) is None


def test_an_answered_probe_closes_it() -> None:
    breaker = opened()
    probe = permit(breaker, 1.0)
    breaker.answered(probe)
    assert breaker.state(1.0) == "closed"
    breaker.failed(probe, 1.0)  # it is one request of many now
    assert breaker.state(1.0) == "closed"
    breaker.failed(permit(breaker, 1.0), 1.0)
    breaker.failed(permit(breaker, 1.0), 1.0)
    assert breaker.state(1.0) == "open"


def test_an_abandoned_probe_leaves_its_place_to_another() -> None:
    breaker = opened()
    breaker.abandoned(permit(breaker, 1.0))
    assert breaker.state(1.0) == "half-open"
    breaker.succeeded(permit(breaker, 1.0))
    assert breaker.state(1.0) == "closed"


def test_it_stays_open_twice_as_long_until_something_goes_well() -> None:
    breaker, now_s, pauses = opened(), 0.0, []
    for _ in range(4):
        pauses.append(breaker.wait_s(now_s))
        now_s += breaker.wait_s(now_s)
        breaker.failed(permit(breaker, now_s), now_s)
    assert pauses == [1.0, 2.0, 4.0, 4.0]
    now_s += breaker.wait_s(now_s)
    probe = permit(breaker, now_s)
    breaker.answered(probe)
    for _ in range(3):  # answered, but nothing went well
        breaker.failed(permit(breaker, now_s), now_s)
    assert breaker.wait_s(now_s) == 4.0
    now_s += 4.0
    breaker.succeeded(permit(breaker, now_s))
    for _ in range(3):
        breaker.failed(permit(breaker, now_s), now_s)
    assert breaker.wait_s(now_s) == 1.0


@pytest.mark.parametrize(("asked_s", "pause_s"), [(0.5, 1.0), (3.0, 3.0), (100.0, 4.0)])
def test_it_stays_open_for_as_long_as_the_origin_asks_within_reason(asked_s: float, pause_s: float) -> None:
    breaker = Breaker(in_a_row=1, pause_s=1.0, longest_pause_s=4.0)
    breaker.failed(permit(breaker), 0.0, asked_s)
    assert breaker.wait_s(0.0) == pause_s


def test_what_began_before_it_opened_says_nothing() -> None:
    breaker = Breaker(in_a_row=3, window=8, pause_s=1.0)
    late = [permit(breaker) for _ in range(6)]
    for _ in range(3):
        breaker.failed(permit(breaker), 0.0)
    breaker.succeeded(late[0])
    breaker.failed(late[1], 0.5)
    assert breaker.wait_s(0.5) == 0.5
    probe = permit(breaker, 1.0)
    breaker.succeeded(late[2])
    breaker.abandoned(late[3])
    assert breaker.admit(1.0) is None  # still one probe
    breaker.succeeded(probe)
    breaker.failed(late[4], 1.0)
    breaker.failed(late[5], 1.0)
    breaker.failed(permit(breaker, 1.0), 1.0)
    assert breaker.state(1.0) == "closed"


EVENTS = ("admit", "succeeded", "failed", "abandoned", "answered", "later")


def test_every_order_of_six_events_keeps_its_invariants() -> None:
    """6^6 histories, in which one failure opens it. The oldest permit is the one that ends."""
    for history in product(EVENTS, repeat=6):
        breaker, now_s, out = Breaker(in_a_row=1, share=1.0, window=3, pause_s=1.0), 0.0, []
        for event in history:
            if event == "later":
                now_s += 1.0
            elif event == "admit":
                waits = breaker.wait_s(now_s) > 0
                given = breaker.admit(now_s)
                assert (given is None) == waits, history
                out += [given] if given is not None else []
            elif event == "answered" and out:
                breaker.answered(out[0])
            elif event == "failed" and out:
                breaker.failed(out.pop(0), now_s)
            elif event in ("succeeded", "abandoned") and out:
                getattr(breaker, event)(out.pop(0))
            if breaker.state(now_s) == "open":
                assert breaker.admit(now_s) is None, history
            if not out:  # it never waits for a request that is over
                assert breaker.state(now_s) == "open" or breaker.wait_s(now_s) == 0, history


class Machine(RuleBasedStateMachine):
    """Any number of requests at once, with a model that says only what the rules promise."""

    permits: Bundle[Permit] = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(in_a_row=3, share=0.5, window=6, pause_s=1.0, longest_pause_s=8.0)
        self.now_s = 0.0
        self.probes: set[Permit] = set()

    @rule(target=permits)
    def admit(self) -> Permit:
        state = self.breaker.state(self.now_s)
        given = self.breaker.admit(self.now_s)
        if state == "closed":
            assert given is not None
        if state == "open":
            assert given is None
        if state == "half-open":
            assert (given is None) == bool(self.probes)
            if given is not None:
                self.probes.add(given)
        return given if given is not None else Permit(-1)

    @rule(permit=consumes(permits))
    def succeed(self, permit: Permit) -> None:
        before = self.breaker.state(self.now_s)
        self.breaker.succeeded(permit)
        if permit in self.probes:
            assert self.breaker.state(self.now_s) == "closed"
        else:
            assert self.breaker.state(self.now_s) == before
        self.probes.discard(permit)

    @rule(permit=consumes(permits), retry_after_s=st.sampled_from([0.0, 2.0, 60.0]))
    def fail(self, permit: Permit, retry_after_s: float) -> None:
        before, opened = self.breaker.state(self.now_s), self.breaker.opened
        self.breaker.failed(permit, self.now_s, retry_after_s)
        if permit in self.probes:
            assert self.breaker.state(self.now_s) == "open"
        elif before != "closed" or permit.opened != opened:
            assert self.breaker.state(self.now_s) == before
        if self.breaker.opened > opened:
            assert min(max(1.0, retry_after_s), 8.0) <= self.breaker.wait_s(self.now_s) <= 8.0
        self.probes.discard(permit)

    @rule(permit=consumes(permits))
    def abandon(self, permit: Permit) -> None:
        before = self.breaker.state(self.now_s)
        self.breaker.abandoned(permit)
        assert self.breaker.state(self.now_s) == before
        self.probes.discard(permit)

    @rule(permit=permits)
    def answer(self, permit: Permit) -> None:
        before = self.breaker.state(self.now_s)
        self.breaker.answered(permit)
        assert self.breaker.state(self.now_s) == ("closed" if permit in self.probes else before)
        self.probes.discard(permit)

    @precondition(lambda self: self.breaker.state(self.now_s) != "closed")
    @rule(step_s=st.sampled_from([0.25, 1.0, 8.0]))
    def wait(self, step_s: float) -> None:
        self.now_s += step_s

    @invariant()
    def waiting_ends(self) -> None:
        assert 0 <= self.breaker.wait_s(self.now_s) <= 8.0
        assert len(self.probes) <= 1


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=20)
