"""The checker accepts what an atomic register can do, and nothing else."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.histories import LONG_NS, explained, simulated
from tests.chaos.linearisability import Kind, Operation, Outcome, Undecided, check, check_key

seeds = st.integers(0, 2**32)


def op(kind: Kind, start: int, end: int, outcome: Outcome = Outcome.OK, **values: str | None) -> Operation:
    return Operation("k", kind, outcome, start, end, **values)  # type: ignore[arg-type]


def put(value: str, start: int, end: int, outcome: Outcome = Outcome.OK) -> Operation:
    return op(Kind.PUT, start, end, outcome, value=value)


def read(value: str | None, start: int, end: int) -> Operation:
    return op(Kind.READ, start, end, observed=value)


def delete(start: int, end: int, outcome: Outcome = Outcome.OK) -> Operation:
    return op(Kind.DELETE, start, end, outcome)


def at_rest(history: list[Operation]) -> int:
    """A moment after every answer."""
    return max((operation.end_ns for operation in history), default=0) + 1


# --- What a register does is accepted


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(1, 60), st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.6]))
def test_what_an_atomic_register_does_is_accepted(seed: int, operations: int, clients: int, doubt: float) -> None:
    history = simulated(random.Random(seed), operations, clients, doubt=doubt)
    assert check(history) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("doubt", [0.0, 0.1])
def test_a_hundred_clients_on_one_key_for_thousands_of_operations(seed: int, doubt: float) -> None:
    history = simulated(random.Random(seed), 4000, 100, doubt=doubt)
    began_s = time.process_time()
    assert check(history) == []
    assert time.process_time() - began_s < 20


def test_keys_are_judged_one_by_one() -> None:
    rng = random.Random(7)
    histories = [simulated(rng, 50, 10, key=f"k{n}") for n in range(20)]
    mixed = [operation for history in histories for operation in history]
    rng.shuffle(mixed)
    assert check(mixed) == []
    mixed.append(Operation("k3", Kind.READ, Outcome.OK, 10**9, 10**9 + 1, observed="k4v0"))
    assert [violation.key for violation in check(mixed)] == ["k3"]


def test_an_ambiguous_write_may_take_effect_late_or_never() -> None:
    doubtful = put("a", 0, 5, Outcome.AMBIGUOUS)
    other = put("b", 10, 11)
    assert check([doubtful, other, read("b", 12, 13), read("a", 14, 15)]) == []
    assert check([doubtful, other, read("b", 12, 13), read("b", 14, 15)]) == []


def test_a_refused_condition_is_evidence() -> None:
    refused = op(Kind.CREATE, 10, 11, Outcome.EXISTS, value="b")
    assert check([refused])
    assert check([put("a", 0, 1), refused]) == []
    assert check([put("a", 0, 1, Outcome.AMBIGUOUS), refused]) == []
    mismatch = op(Kind.REPLACE, 10, 11, Outcome.EXISTS, value="c", expected="a")
    assert check([put("a", 0, 1), mismatch])
    assert check([put("b", 0, 1), mismatch]) == []
    missing = op(Kind.REPLACE, 10, 11, Outcome.ABSENT, value="c", expected="a")
    assert check([put("a", 0, 1), missing])
    assert check([put("a", 0, 1), delete(2, 3, Outcome.AMBIGUOUS), missing]) == []


# --- What no register does is rejected, however much else goes on


def background(seed: int, *, doubt: float = 0.1) -> list[Operation]:
    rng = random.Random(seed)
    return simulated(rng, rng.randrange(5, 400), rng.randrange(1, 30), doubt=doubt)


def rejected(history: list[Operation], seed: int) -> None:
    random.Random(seed).shuffle(history)
    violations = check(history)
    assert [violation.key for violation in violations] == ["k"]
    assert violations[0].operations
    assert str(violations[0])


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_stale_read_is_rejected(seed: int) -> None:
    """One client sees what another has seen overwritten."""
    history = background(seed)
    t = at_rest(history)
    history += [
        put("old", t, t + 10),
        put("new", t + 20, t + 30),
        read("new", t + 25, t + 60),
        read("old", t + 40, t + 50),
    ]
    rejected(history, seed)


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_stale_read_in_the_midst_of_others_is_rejected(seed: int) -> None:
    history = background(seed)
    writes = [o for o in history if o.kind is Kind.PUT and o.outcome is Outcome.OK]
    pairs = [(a, b) for a in writes for b in writes if a.end_ns < b.start_ns]
    if not pairs:
        return
    rng = random.Random(seed)
    old, new = rng.choice(pairs)
    start_ns = new.end_ns + 1 + rng.randrange(LONG_NS)
    history.append(read(old.value, start_ns, start_ns + rng.randrange(LONG_NS)))
    rejected(history, seed)


@settings(deadline=None, max_examples=60)
@given(seeds, st.booleans())
def test_a_lost_write_is_rejected(seed: int, conditional: bool) -> None:
    """An acknowledged write of which nothing is left, though nothing came after it."""
    history = background(seed)
    t = at_rest(history)
    kind = (
        op(Kind.REPLACE, t + 30, t + 40, value="lost", expected="kept") if conditional else put("lost", t + 30, t + 40)
    )
    history += [put("kept", t, t + 10), read("kept", t + 20, t + 25), kind, read("kept", t + 50, t + 60)]
    rejected(history, seed)


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_first_write_that_is_lost_is_rejected(seed: int) -> None:
    """The key is absent after an acknowledged write, and no delete can have been."""
    history = [o for o in background(seed) if o.kind is not Kind.DELETE or o.outcome is not Outcome.AMBIGUOUS]
    t = at_rest(history)
    history += [put("lost", t, t + 10), read(None, t + 20, t + 30)]
    rejected(history, seed)


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_lost_delete_is_rejected(seed: int) -> None:
    history = background(seed)
    t = at_rest(history)
    history += [put("kept", t, t + 10), delete(t + 20, t + 30), read("kept", t + 40, t + 50)]
    rejected(history, seed)


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from([Outcome.OK, Outcome.AMBIGUOUS]))
def test_a_write_that_takes_effect_twice_is_rejected(seed: int, outcome: Outcome) -> None:
    """A retry repeats what had been done, over what somebody wrote in between."""
    history = background(seed)
    t = at_rest(history)
    history += [
        put("twice", t, t + 100, outcome),
        read("twice", t + 10, t + 20),
        put("between", t + 30, t + 40),
        read("twice", t + 50, t + 60),
    ]
    rejected(history, seed)


def test_a_doubtful_delete_takes_effect_once() -> None:
    once = [
        put("a", 0, 1),
        delete(2, 3, Outcome.AMBIGUOUS),
        read(None, 4, 5),
        put("b", 6, 7),
        read("b", 8, 9),
    ]
    assert check(once) == []
    assert check([*once, read(None, 10, 11)])
    assert check([*once, delete(2, 3, Outcome.AMBIGUOUS), read(None, 10, 11)]) == []


def test_a_condition_that_held_twice_is_rejected() -> None:
    """Two clients cannot both have created a key, nor both replaced one value."""
    assert check([op(Kind.CREATE, 0, 10, value="a"), op(Kind.CREATE, 0, 10, value="b")])
    both = [put("a", 0, 1)]
    both += [op(Kind.REPLACE, 5, 10, value=value, expected="a") for value in ("b", "c")]
    assert check(both)
    assert check(both[:2]) == []


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from(["never written", "refused", "deleted", "future"]))
def test_a_phantom_in_a_listing_is_rejected(seed: int, origin: str) -> None:
    history = background(seed)
    t = at_rest(history)
    if origin == "refused":
        history.append(put("phantom", t, t + 10, Outcome.FAILED))
    elif origin == "deleted":
        history += [put("phantom", t, t + 5), delete(t + 6, t + 10)]
    elif origin == "future":
        history.append(put("phantom", t + 40, t + 50))
    history.append(read("phantom", t + 20, t + 30))
    rejected(history, seed)


@settings(deadline=None, max_examples=60)
@given(seeds)
def test_a_listing_that_omits_a_key_is_rejected(seed: int) -> None:
    history = background(seed)
    t = at_rest(history)
    history += [
        put("there", t, t + 10),
        read("there", t + 20, t + 70),
        read(None, t + 30, t + 40),
        read("there", t + 50, t + 60),
    ]
    rejected(history, seed)


# --- The definition


@settings(deadline=None, max_examples=600)
@given(seeds)
def test_short_histories_are_judged_as_by_definition(seed: int) -> None:
    """Answers are exchanged at random, so that about half of the histories are impossible."""
    rng = random.Random(seed)
    history = simulated(rng, rng.randrange(1, 8), rng.randrange(1, 5), doubt=0.25)
    values = [o.value for o in history if o.value is not None]
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(history))
        o = history[at]
        if o.kind is Kind.READ and o.outcome is Outcome.OK:
            history[at] = op(o.kind, o.start_ns, o.end_ns, o.outcome, observed=rng.choice([None, *values]))
        elif o.kind is Kind.CREATE:
            outcome = rng.choice([Outcome.OK, Outcome.EXISTS, Outcome.FAILED, Outcome.AMBIGUOUS])
            history[at] = op(o.kind, o.start_ns, o.end_ns, outcome, value=o.value)
        elif o.kind is Kind.REPLACE:
            outcome = rng.choice([Outcome.OK, Outcome.EXISTS, Outcome.ABSENT, Outcome.AMBIGUOUS])
            history[at] = op(o.kind, o.start_ns, o.end_ns, outcome, value=o.value, expected=rng.choice(values))
        else:
            outcome = rng.choice([Outcome.OK, Outcome.FAILED, Outcome.AMBIGUOUS])
            history[at] = op(o.kind, o.start_ns, o.end_ns, outcome, value=o.value)
    verdict = check_key(history)
    assert (verdict is None) == explained(history), verdict


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="two operations write a"):
        check([put("a", 0, 1), put("a", 2, 3)])
    with pytest.raises(ValueError, match="ends before it starts"):
        check([put("a", 1, 0)])


def test_a_search_that_outgrows_its_bound_says_so() -> None:
    history = simulated(random.Random(1), 200, 20)
    with pytest.raises(Undecided, match="k: no verdict after 5 configurations"):
        check_key(history, max_configurations=5)
