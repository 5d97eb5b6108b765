"""Signatures of the internal route: every part counts, and a window accepts each counter once."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.replication.signing import (
    MAX_COUNTER,
    WINDOW,
    BadSignature,
    Replayed,
    Signature,
    Signer,
    advance,
    sign_answer,
    verify_answer,
)

KEY, NODE, EPOCH = bytes(range(32)), b"n" * 16, b"epoch..1"
PATH, RANGES, BODY = f"/_tigrislike/internal/v1/blobs/{'0f' * 16}?size=10", "bytes=0-9", b"body"


def signed() -> Signature:
    return Signer(KEY).sign(NODE, EPOCH, "GET", PATH, RANGES, BODY)


def received(**changes: Any) -> dict[str, Any]:
    """The arguments of `verify` for the request of `signed`, some of them changed on the way."""
    return {
        "key": KEY,
        "node": NODE,
        "method": "GET",
        "path": PATH.encode(),
        "ranges": RANGES,
        "body": sha256(BODY).digest(),
    } | changes


def test_what_was_signed_is_verified_also_from_its_text() -> None:
    Signature.parse(str(signed())).verify(**received())


@pytest.mark.parametrize(
    "changes",
    [
        {"key": bytes(32)},
        {"node": b"m" * 16},
        {"method": "POST"},
        {"path": PATH.encode() + b"&gather=1"},
        {"path": PATH.encode().replace(b"0f", b"0e", 1)},
        {"ranges": "bytes=0-8"},
        {"ranges": ""},
        {"body": sha256(b"").digest()},
    ],
)
def test_a_request_that_was_changed_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadSignature):
        signed().verify(**received(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": b"m" * 16},
        {"epoch": b"epoch..2"},
        {"sender": b"somebody"},
        {"counter": 2},
        {"mac": bytes(32)},
    ],
)
def test_a_signature_that_was_changed_is_refused(changes: dict[str, Any]) -> None:
    changed = dataclasses.replace(signed(), **changes)
    with pytest.raises(BadSignature):
        changed.verify(**received(node=changed.target))


def test_no_part_can_give_bytes_to_its_neighbour() -> None:
    one = Signer(KEY).sign(NODE, EPOCH, "GET", "/a?b", "c")
    with pytest.raises(BadSignature):
        one.verify(KEY, NODE, "GET", b"/a?", "bc", sha256(b"").digest())


@given(st.text() | st.from_regex(r"1\.[0-9a-f]{32}\.[0-9a-f]{16}\.[0-9a-f]{16}\.[0-9]{1,20}\.[0-9a-f]{64}"))
def test_a_header_is_a_signature_or_refused(text: str) -> None:
    try:
        signature = Signature.parse(text)
    except BadSignature:
        return
    assert str(signature) == text
    assert 1 <= signature.counter <= MAX_COUNTER
    assert any(signature.sender)


def test_senders_differ_and_count_for_each_target() -> None:
    signer = Signer(KEY)
    counters = [signer.sign(node, EPOCH, "GET", "/").counter for node in (NODE, b"m" * 16, NODE, NODE)]
    assert counters == [1, 1, 2, 3]
    assert Signer(KEY).sign(NODE, EPOCH, "GET", "/").sender != Signer(KEY).sign(NODE, EPOCH, "GET", "/").sender


# -- Answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_tells_the_epoch_to_who_asked() -> None:
    request = signed()
    header = sign_answer(KEY, request, 206, b"epoch..2", "bytes 0-9/10", b"")
    assert verify_answer(KEY, request, 206, "bytes 0-9/10", b"", header) == b"epoch..2"


def test_an_answer_that_was_changed_or_is_anothers_is_refused() -> None:
    request, other = signed(), signed()
    header = sign_answer(KEY, request, 404, EPOCH, "", b"{}")
    good = (KEY, request, 404, "", b"{}", header)
    verify_answer(*good)
    changed = header.replace(EPOCH.hex(), b"epoch..2".hex())
    assert changed != header
    for at, value in enumerate((bytes(32), other, 409, "bytes 0-9/10", b"", changed)):
        arguments: list[Any] = list(good)
        arguments[at] = value
        with pytest.raises(BadSignature):
            verify_answer(*arguments)
    with pytest.raises(BadSignature, match="no signature"):
        verify_answer(*good[:-1], "")


# -- The window ------------------------------------------------------------------------------------------------------


class Remembering:
    """A window that remembers all."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accepts(self, counter: int) -> bool:
        if counter in self.seen or counter <= max(self.seen, default=0) - WINDOW:
            return False
        self.seen.add(counter)
        return True


steps = st.lists(
    st.integers(-WINDOW - 2, WINDOW + 2) | st.integers(-3, 3) | st.integers(1, 1 << 40), min_size=1, max_size=200
)


@given(steps)
def test_the_window_accepts_what_one_that_remembers_all_accepts(steps: list[int]) -> None:
    model = Remembering()
    highest = seen = 0
    for step in steps:
        counter = max(1, highest + step)
        try:
            highest, seen = advance(highest, seen, counter)
            accepted = True
        except Replayed:
            accepted = False
        assert accepted == model.accepts(counter)
        assert seen < 1 << WINDOW


@given(steps, st.integers(1, 2 * WINDOW), st.integers(0, WINDOW // 8))
def test_a_window_of_which_only_a_part_was_written_accepts_nothing_twice(
    steps: list[int], ahead: int, written: int
) -> None:
    highest = seen = 0
    accepted = set()
    for step in steps:
        counter = max(1, highest + step)
        try:
            highest, seen = advance(highest, seen, counter)
            accepted.add(counter)
        except Replayed:
            pass
    after, bits = advance(highest, seen, highest + ahead)
    # Whoever wrote it was killed behind the highest counter and some bytes of the rest.
    torn = bits.to_bytes(WINDOW // 8, "little")[:written] + seen.to_bytes(WINDOW // 8, "little")[written:]
    for counter in accepted:
        with pytest.raises(Replayed):
            advance(after, int.from_bytes(torn, "little"), counter)
