"""The signatures of the internal route, by which nodes know each other's requests; pure, without I/O or clock.

Who has the cluster's master key is a node of it. A request is signed (HMAC-SHA256) over all that it means: method,
path with query, Range, body, the node it is for; and over what makes it new: the receiver's *epoch*, the sender and a
counter. No clock is asked, for those of nodes may be an hour apart. An epoch is 8 random bytes that a receiver renews
every few minutes (`epochs.py`); within one, a sender's counters are each accepted once, by a window as of IPsec
(RFC 4303, 3.4.3) and DTLS (RFC 9147, 4.5.1), kept as a ring (RFC 6479).

An answer is signed over the MAC of its request, its status, its Content-Range, a digest of its body where that is a
document, and the present epoch: so "not here" and "another epoch" are believed of nobody else, nor of an answer to
another request. Not signed: the bytes of blobs, which only TLS protects on their way.

    Refused             HTTP status
    +-- BadSignature    403     not made with this key, or for another node or request
    +-- UnknownEpoch    409     neither the present epoch nor the one before: sign again
    +-- Replayed        409     its counter was accepted already, or is too old to tell
    +-- TableFull       503     no room, or no time, to note one more sender
"""

from __future__ import annotations

import hmac
import itertools
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Final

KEY_PURPOSE: Final = "internal route"
"""What the key is derived from the master key for."""
PREFIX: Final = "/_tigrislike/internal/v1/"
REQUEST_HEADER: Final = "x-tigrislike-peer"
ANSWER_HEADER: Final = "x-tigrislike-answer"
EPOCH_BYTES: Final = 8
SENDER_BYTES: Final = 8
WINDOW: Final = 1024
"""How far requests of one sender may overtake each other."""
MAX_COUNTER: Final = 2**63 - 1

_MAC_BYTES: Final = 32
_REQUEST: Final = re.compile(
    r"1\.([0-9a-f]{32})\.([0-9a-f]{16})\.((?!0{16})[0-9a-f]{16})\.([1-9][0-9]{0,18})\.([0-9a-f]{64})"
)
_ANSWER: Final = re.compile(r"1\.([0-9a-f]{16})\.([0-9a-f]{64})")


class Refused(Exception):
    """A request that is not answered; `status` is what it is told."""

    status: ClassVar[int] = 403


class BadSignature(Refused):
    """It is not what a node of this cluster has signed for this node; or, of an answer, for this request."""


class UnknownEpoch(Refused):
    """It was signed in an epoch that is over, or before the receiver started anew."""

    status: ClassVar[int] = 409


class Replayed(Refused):
    """Its counter was seen, or is so far behind that it cannot be told."""

    status: ClassVar[int] = 409


class TableFull(Refused):
    """It cannot be noted, and so not be accepted."""

    status: ClassVar[int] = 503


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request says of itself.

    Attributes:
        target: Node id of the receiver, 16 bytes.
        epoch: The receiver's, 8 bytes.
        sender: The sending process, 8 random bytes.
        counter: 1 and up, for each sender and target.
        mac: 32 bytes.
    """

    target: bytes
    epoch: bytes
    sender: bytes
    counter: int
    mac: bytes

    def __str__(self) -> str:
        return f"1.{self.target.hex()}.{self.epoch.hex()}.{self.sender.hex()}.{self.counter}.{self.mac.hex()}"

    @classmethod
    def parse(cls, text: str) -> Signature:
        """What a header says, not yet verified.

        Raises:
            BadSignature: It is none.
        """
        match = _REQUEST.fullmatch(text)
        if match is None or int(match[4]) > MAX_COUNTER:
            raise BadSignature(f"the header {REQUEST_HEADER} holds no signature")
        target, epoch, sender, counter, mac = match.groups()
        return cls(bytes.fromhex(target), bytes.fromhex(epoch), bytes.fromhex(sender), int(counter), bytes.fromhex(mac))

    def verify(self, key: bytes, node: bytes, method: str, path: bytes, ranges: str, body: bytes) -> None:
        """See that this was made with `key`, for this node and this request.

        Args:
            node: Id of the node that received it.
            path: As it came, percent-encoded, with its query.
            ranges: The Range header, "" where there is none.
            body: SHA-256 of the body.

        Raises:
            BadSignature
        """
        expected = _request_mac(key, method, path, ranges, body, self.target, self.epoch, self.sender, self.counter)
        if not hmac.compare_digest(self.mac, expected):
            raise BadSignature("the signature is not of this request with this cluster's key")
        if self.target != node:
            raise BadSignature(f"the request is for node {self.target.hex()}, and this is another")


class Signer:
    """Signs the requests of one process. Each gets a counter of its own, so sign just before sending, and once."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sender = secrets.token_bytes(SENDER_BYTES)
        self._counters: dict[bytes, Iterator[int]] = {}

    def sign(
        self, target: bytes, epoch: bytes, method: str, path: str, ranges: str = "", body: bytes = b""
    ) -> Signature:
        """A signature for the node `target` in its `epoch`; `path` percent-encoded and with its query."""
        counter = next(self._counters.setdefault(target, itertools.count(1)))
        digest = sha256(body).digest()
        mac = _request_mac(
            self._key, method, path.encode("ascii"), ranges, digest, target, epoch, self._sender, counter
        )
        return Signature(target, epoch, self._sender, counter, mac)


def sign_answer(key: bytes, request: Signature, status: int, epoch: bytes, content_range: str, body: bytes) -> str:
    """The header of an answer; `body` is the document that it carries, b"" where it carries bytes of a blob."""
    return f"1.{epoch.hex()}.{_answer_mac(key, request, status, epoch, content_range, body).hex()}"


def verify_answer(key: bytes, request: Signature, status: int, content_range: str, body: bytes, header: str) -> bytes:
    """The receiver's present epoch, from the answer to `request`.

    Raises:
        BadSignature: No node of this cluster has given this answer to this request.
    """
    match = _ANSWER.fullmatch(header)
    if match is None:
        raise BadSignature(f"the header {ANSWER_HEADER} holds no signature")
    epoch, mac = bytes.fromhex(match[1]), bytes.fromhex(match[2])
    if not hmac.compare_digest(mac, _answer_mac(key, request, status, epoch, content_range, body)):
        raise BadSignature("the answer's signature is not of this answer to this request")
    return epoch


def advance(highest: int, seen: int, counter: int) -> tuple[int, int]:
    """Note a counter in a sender's window.

    The bit of a counter is at its remainder by `WINDOW`, so that a window of which only the highest counter was written
    has bits too many and none too few.

    Args:
        highest: Of the counters so far, 0 where there are none.
        seen: A bit for each of the last `WINDOW`.
        counter: 1 and up.

    Returns:
        The new `highest` and `seen`.

    Raises:
        Replayed
    """
    if counter > highest:
        ahead = counter - highest
        if ahead >= WINDOW:
            seen = 0
        else:
            fresh = ((1 << ahead) - 1) << (highest + 1) % WINDOW
            seen &= ~(fresh | fresh >> WINDOW)
        highest = counter
    elif counter <= highest - WINDOW:
        raise Replayed(f"counter {counter} is too far behind {highest}")
    bit = 1 << counter % WINDOW
    if seen & bit:
        raise Replayed(f"counter {counter} was seen")
    return highest, seen | bit


def _request_mac(
    key: bytes,
    method: str,
    path: bytes,
    ranges: str,
    body: bytes,
    target: bytes,
    epoch: bytes,
    sender: bytes,
    counter: int,
) -> bytes:
    return _mac(
        key, b"request 1", method.encode(), path, ranges.encode("latin-1"), body, target, epoch, sender, b"%d" % counter
    )


def _answer_mac(key: bytes, request: Signature, status: int, epoch: bytes, content_range: str, body: bytes) -> bytes:
    return _mac(
        key, b"answer 1", request.mac, b"%d" % status, epoch, content_range.encode("latin-1"), sha256(body).digest()
    )


def _mac(key: bytes, *parts: bytes) -> bytes:
    """Of parts with their lengths, so that none can give bytes to its neighbour."""
    return hmac.digest(key, b"".join(b"%d:%b" % (len(part), part) for part in parts), "sha256")
