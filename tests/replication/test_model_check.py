"""The queue under every interleaving of three actors, two items and one zone; and that the exploration sees defects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.conftest import TOLD
from tests.replication.model_check import PARAMETERS, Call, Checker, Consumer, Script, Violation, enqueue, hurry, retry
from tests.replication.mutants import MUTANTS

X, Y = b"x", b"y"

IDLE = ((0, enqueue(X)), (0, Call("lease", (b"s",))), (0, Call("claim", (b"s", b"s", None))))
"""Somebody took the one item there was, and died."""

WORLDS: dict[str, Callable[[], Checker]] = {
    # A repeated cause, also while the item is leased, beside an item that vests later and is less urgent
    "two who enqueue, one consumer": lambda: Checker(
        (Script((enqueue(X), enqueue(X))), Script((enqueue(Y, 3, 2),)), Consumer(b"c", 2, fails=1))
    ),
    # Lease loss at every step, and duplicate completions
    "one who enqueues, two consumers": lambda: Checker(
        (Script((enqueue(X), enqueue(Y, 3, 2), enqueue(X))), Consumer(b"c", 1, fails=1), Consumer(b"d", 1))
    ),
    # An enqueue between a collector's look and its commit, and the other way round
    "one who enqueues, a consumer and a collector": lambda: Checker(
        (Script((enqueue(Y),)), Consumer(b"c", 1), Consumer(b"d", 2)), IDLE
    ),
    # Clocks that go wrong by more than a lease, either way, from one look to the next
    "clocks that jump": lambda: Checker(
        (Script((enqueue(X),)), Consumer(b"c", 1, skews=(0, -5)), Consumer(b"d", 1, skews=(0, 5)))
    ),
    "a holder whose clock is set back": lambda: Checker(
        (Script((enqueue(X),)), Consumer(b"c", 1, extends=1, skews=(0, -5)), Consumer(b"d", 1))
    ),
    "two consumers at one item that recurs": lambda: Checker(
        (Script((enqueue(X), enqueue(X))), Consumer(b"c", 1, fails=1), Consumer(b"d", 1))
    ),
    # Items that are given back, and others that there was no room for
    "a consumer with room for one, and one that is stopped": lambda: Checker(
        (Script((enqueue(X), enqueue(Y, priority=2))), Consumer(b"c", 2, room=1), Consumer(b"d", 1, releases=1))
    ),
    "a consumer with room for none": lambda: Checker(
        (Script((enqueue(X), enqueue(X))), Consumer(b"c", 2, room=0), Consumer(b"d", 1))
    ),
    "two consumers that are stopped at one item that recurs": lambda: Checker(
        (Script((enqueue(X), enqueue(X))), Consumer(b"c", 2, releases=2), Consumer(b"d", 1, releases=1))
    ),
    # Dead letters, whose cause recurs and which an operator retries
    "one who enqueues, a consumer that fails, an operator": lambda: Checker(
        (Script((enqueue(X), enqueue(X))), Consumer(b"c", 3, fails=2), Script((retry(X), retry(X)))),
        parameters=replace(PARAMETERS, max_attempts=1),
    ),
    "an operator in a hurry": lambda: Checker(
        (Script((enqueue(X, 9), enqueue(Y, 5, 2))), Consumer(b"c", 2), Script((hurry(X), hurry(Y)))),
    ),
}

LARGE: dict[str, Callable[[], Checker]] = {
    "two items and three who use them": lambda: Checker(
        (
            Script((enqueue(X), enqueue(Y, 3, 2), enqueue(X))),
            Consumer(b"c", 1, fails=1, extends=1),
            Consumer(b"d", 1, fails=1),
        )
    ),
    "a collector with a clock that jumps": lambda: Checker(
        (Script((enqueue(Y),)), Consumer(b"c", 1), Consumer(b"d", 2, skews=(0, 7))), IDLE
    ),
    "holders whose clocks jump": lambda: Checker(
        (Script((enqueue(X), enqueue(X))), Consumer(b"c", 1, extends=1, skews=(0, -5)), Consumer(b"d", 1, skews=(0, 5)))
    ),
}


Tell = Callable[[str, object], None]


def states_of(world: Callable[[], Checker], name: str, record_property: Tell) -> int:
    checker = world()
    checker.explore()
    record_property(TOLD, f"{name}: {checker.states:,} states, {checker.steps:,} steps")
    return checker.states


SLOW = {
    "two who enqueue, one consumer",
    "one who enqueues, two consumers",
    "one who enqueues, a consumer and a collector",
    "a consumer with room for one, and one that is stopped",
    "two consumers that are stopped at one item that recurs",
    "one who enqueues, a consumer that fails, an operator",
}
"""The largest of `WORLDS`."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in WORLDS]
)
def test_every_interleaving(name: str, record_property: Tell) -> None:
    assert states_of(WORLDS[name], name, record_property) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_every_interleaving_of_more(name: str, record_property: Tell) -> None:
    assert states_of(LARGE[name], name, record_property) > 100_000


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.plant(monkeypatch)
    with pytest.raises(Violation) as found:
        WORLDS[mutant.world]().explore()
    print(found.value)
