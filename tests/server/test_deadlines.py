"""Deadlines against a model, and in the cases that matter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.deadlines import Deadlines, Phase

TIMEOUTS = {Phase.IDLE: 60.0, Phase.HEAD: 10.0, Phase.BODY: 20.0, Phase.SEND: 20.0, Phase.CLOSE: 2.0}


class Connection:
    def __init__(self) -> None:
        self.phase = Phase.WORK


events = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 4), st.sampled_from(Phase)),
        st.tuples(st.just("tick"), st.floats(0, 30), st.none()),
    ),
    max_size=60,
)


@given(events)
def test_each_connection_expires_within_a_tick_after_its_time_and_never_before(
    steps: list[tuple[str, float, Phase]],
) -> None:
    deadlines: Deadlines[Connection] = Deadlines(TIMEOUTS, 0.0)
    connections = [Connection() for _ in range(5)]
    due: dict[int, float] = {}  # connection -> when its time is over, counted from the last tick
    now_s = 0.0
    for what, number, phase in steps:
        if what == "enter":
            index = int(number)
            deadlines.enter(connections[index], phase)
            due.pop(index, None)
            if phase is not Phase.WORK:
                due[index] = now_s + TIMEOUTS[phase]
        else:
            now_s += number
            late = {connections.index(connection) for connection in deadlines.expired(now_s)}
            assert late == {index for index, end in due.items() if end + deadlines.tick_s <= now_s}
            for index in late:
                connections[index].phase = Phase.WORK
                del due[index]


def test_a_connection_that_left_never_expires() -> None:
    deadlines: Deadlines[Connection] = Deadlines(TIMEOUTS, 0.0)
    connection = Connection()
    deadlines.enter(connection, Phase.HEAD)
    deadlines.leave(connection)
    assert deadlines.expired(1000.0) == []
