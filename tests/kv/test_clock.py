"""The clock that does not follow the host's."""

from __future__ import annotations

import os
import time

import pytest

from tigrislike.metadata.kv import SteadyClock

HOUR_NS = 3600 * 10**9
NEAR_NS = 10**9


@pytest.mark.parametrize("step_ns", [-HOUR_NS, HOUR_NS])
def test_a_steady_clock_goes_on_where_the_hosts_is_set_and_follows_when_told(
    monkeypatch: pytest.MonkeyPatch, step_ns: int
) -> None:
    true_ns = time.time_ns
    clock = SteadyClock()
    assert clock.now_ns() == pytest.approx(true_ns(), abs=NEAR_NS)
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + step_ns)
    assert clock.now_ns() == pytest.approx(true_ns(), abs=NEAR_NS)
    assert clock.step_ns() == pytest.approx(step_ns, abs=NEAR_NS)
    clock.follow()
    assert clock.now_ns() == pytest.approx(true_ns() + step_ns, abs=NEAR_NS)
    assert clock.step_ns() == pytest.approx(0, abs=NEAR_NS)


def test_processes_that_are_forked_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    true_ns = time.time_ns
    clock = SteadyClock()
    if (child := os.fork()) == 0:
        time.time_ns = lambda: true_ns() + HOUR_NS
        clock.follow()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert clock.now_ns() == pytest.approx(true_ns() + HOUR_NS, abs=NEAR_NS)
