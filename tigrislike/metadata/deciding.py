"""What becomes of an item and of a pointer: the queue's decisions, as functions of a record, a time and an event.

Nothing here reads, writes or looks at a clock. The transactions in `owed`, `leasing` and `overseeing` read rows, ask
here, and write the answer; the model checker of the tests walks through all their interleavings.

Two rules hold everything together:

- A run covers every cause that was enqueued before it was claimed. So a cause that recurs while an item waits adds
  nothing but, perhaps, an earlier time, and one that recurs under a lease is remembered until the lease ends.
- A *deferred* pointer vests no later than anything in its zone, and its mark says when. Whoever lets an item vest
  earlier than that pulls the pointer; whoever finds a mark that is not deferred knows that a consumer will come by
  within `poll_ns`, or within `pointer_lease_ns` if the one that is there now dies, and leaves the pointer alone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from msgspec.structs import replace

from .records import Attempt, Item, Pointer

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class QueueParameters:
    """The queue's times and sizes. All consumers of a store should have the same; nothing breaks where they differ."""

    pointer_lease_ns: int = 5 * SECOND
    """How long a consumer has a zone to itself to claim a batch: milliseconds are enough, a slow commit needs more."""

    item_lease_ns: int = 30 * SECOND
    """How long an item stays away after its holder died. Holders extend at a third of it, so two may get lost."""

    poll_ns: int = SECOND // 10
    """How soon a zone that was just worked on is looked at again. Until then enqueues write nothing but their item."""

    min_inactive_ns: int = 60 * SECOND
    """How long an empty zone keeps its pointer: one that is used every now and then is not made anew each time."""

    batch: int = 64
    """Items under one claim, at most: enough to spread the cost of two transactions (seven round trips in all, to a
    database that may be far away), few enough to be fair to other zones."""

    peek: int = 2_000
    """Vested pointers that one look takes in. QuiCK takes 20,000, which would hold up the event loop for tens of
    milliseconds; with these two hundred consumers can still choose without meeting."""

    selection_fraction: float = 0.05
    """Which part of them one consumer then goes for, at least one: two consumers seldom choose the same."""

    selection_max: int = 50
    """And at most so many, for by the time that it comes to the last of them others will have been there."""

    scan_ns: int = SECOND
    """How often an idle consumer looks by itself; in between it is woken by the bell or the next pointer's time, so
    this is only how long a bell that got lost costs."""

    back_off_ns: int = SECOND
    max_back_off_ns: int = 60 * SECOND
    """How long to wait after a failure: from the first to the second, doubling."""

    max_attempts: int = 10
    """Failures in a row after which an item becomes a dead letter: about four minutes of trying."""

    set_back_ns: int = 10 * SECOND
    """How long an item of a paused task is set back each time that its turn comes."""


QUEUE = QueueParameters()
"""The defaults."""

HISTORY = 10
"""How many failed runs an item remembers, and `HISTORY_ERROR` how many characters of the error of each."""
HISTORY_ERROR = 300


def back_off_ns(parameters: QueueParameters, attempts: int, jitter: float) -> int:
    """How long to wait after the `attempts`-th failure, times 0.5 to 1.5 as `jitter` goes from 0 to 1."""
    doubled = parameters.back_off_ns << min(attempts - 1, 20)
    return int(min(parameters.max_back_off_ns, doubled) * (0.5 + jitter))


# --- items


def recurred(item: Item, vesting_ns: int) -> Item:
    """An item whose cause came up again, to be done from `vesting_ns` on."""
    if item.lease:
        again_ns = vesting_ns if item.again_ns < 0 else min(item.again_ns, vesting_ns)
        return replace(item, again_ns=again_ns)
    return replace(item, vesting_ns=min(item.vesting_ns, vesting_ns))


def taken(parameters: QueueParameters, item: Item, lease: bytes, now_ns: int) -> Item | None:
    """A due item under a fresh lease; None where it is not due."""
    if item.vesting_ns > now_ns:
        return None
    return replace(item, lease=lease, vesting_ns=now_ns + parameters.item_lease_ns, again_ns=-1)


def set_back(parameters: QueueParameters, item: Item, now_ns: int) -> Item:
    """A due item of a paused task: away for a while, and nobody's."""
    return replace(item, lease=b"", vesting_ns=now_ns + parameters.set_back_ns, again_ns=-1)


def extended(parameters: QueueParameters, item: Item, now_ns: int) -> Item:
    """A leased item whose holder is alive. Never earlier than before: a clock set back must not shorten a lease, for
    the zone's pointer may be deferred to its end."""
    return replace(item, vesting_ns=max(item.vesting_ns, now_ns + parameters.item_lease_ns))


def let_go(item: Item) -> Item:
    """A leased item that its holder gives back untouched, or half done: due at once, as it was, with the attempts that
    it had. Whoever claims it next covers what recurred meanwhile."""
    return replace(item, lease=b"", vesting_ns=0, again_ns=-1)


def finished(item: Item, now_ns: int) -> Item | None:
    """What stays of a leased item whose work is done: nothing, or one that waits, if its cause recurred."""
    if item.again_ns < 0:
        return None
    return replace(
        item,
        lease=b"",
        vesting_ns=item.again_ns,
        enqueued_ns=now_ns,
        again_ns=-1,
        attempts=0,
        error="",
        history=(),
    )


def _with_attempt(item: Item, now_ns: int, error: str, node: bytes) -> tuple[Attempt, ...]:
    return (*item.history, Attempt(now_ns, node, error[:HISTORY_ERROR]))[-HISTORY:]


def failed(
    parameters: QueueParameters, item: Item, now_ns: int, error: str, jitter: float, node: bytes
) -> tuple[Item | None, Item | None]:
    """What stays of a leased item whose work failed on `node`, and its dead letter: one of them, and both where the
    cause recurred during the last attempt, which is as good as a new item and gets attempts of its own."""
    history = _with_attempt(item, now_ns, error, node)
    ended = replace(item, lease=b"", again_ns=-1, attempts=item.attempts + 1, error=error[:1000], history=history)
    if ended.attempts >= parameters.max_attempts:
        return finished(item, now_ns), ended
    return replace(ended, vesting_ns=now_ns + back_off_ns(parameters, ended.attempts, jitter)), None


def postponed(parameters: QueueParameters, item: Item, now_ns: int, error: str, jitter: float, node: bytes) -> Item:
    """A leased item whose work cannot be done for now, whatever `node` tries: it keeps the attempts that it has, and
    waits for as long again as it has been owed, within the bounds of the back-off."""
    waited_ns = max(parameters.back_off_ns, min(parameters.max_back_off_ns, now_ns - item.enqueued_ns))
    vesting_ns = now_ns + int(waited_ns * (0.5 + jitter))
    history = _with_attempt(item, now_ns, error, node)
    return replace(item, lease=b"", again_ns=-1, error=error[:1000], vesting_ns=vesting_ns, history=history)


# --- pointers


class Announcement(enum.Enum):
    """What an item that vests at some time takes, so that a consumer comes for it."""

    NOTHING = enum.auto()
    CREATE = enum.auto()
    PULL = enum.auto()


def deferred_ns(mark: bytes | None) -> int | None:
    """What a zone's mark says: the time to which its pointer is deferred, 0 where it is not; None without a mark."""
    return None if mark is None else int.from_bytes(mark, "big")


def mark_of(deferred_ns: int) -> bytes:
    """The mark that says `deferred_ns`."""
    return deferred_ns.to_bytes(8, "big") if deferred_ns else b""


def announcement(deferred_ns: int | None, vesting_ns: int) -> Announcement:
    """What the zone's pointer needs when an item comes to vest at `vesting_ns`."""
    if deferred_ns is None:
        return Announcement.CREATE
    return Announcement.PULL if vesting_ns < deferred_ns else Announcement.NOTHING


def leased(
    parameters: QueueParameters, pointer: Pointer, lease: bytes, now_ns: int, early_ns: int = 0
) -> Pointer | None:
    """A pointer under a fresh lease; None while it has not vested. One that nobody holds may be taken `early_ns` before
    its time, which is a courtesy and no promise."""
    if pointer.vesting_ns > now_ns + (0 if pointer.lease else early_ns):
        return None
    return replace(pointer, lease=lease, vesting_ns=now_ns + parameters.pointer_lease_ns)


def released(parameters: QueueParameters, pointer: Pointer, now_ns: int, since_ns: int, *, more: bool) -> Pointer:
    """A pointer whose holder took something of what had been due since `since_ns`, or had no room to: it vests at once
    if there is `more`, else soon."""
    vesting_ns = 0 if more else now_ns + parameters.poll_ns
    return replace(pointer, lease=b"", vesting_ns=vesting_ns, active_ns=now_ns, since_ns=since_ns)


def rested(parameters: QueueParameters, pointer: Pointer, now_ns: int, head_ns: int | None) -> Pointer | None:
    """A pointer whose holder found nothing due, deferred: to when the first item vests, or (`head_ns` None: there is no
    item) to when the zone may go. None: it may go now."""
    if head_ns is not None:
        # Not into the past: were an index entry damaged, consumers would come by without a pause.
        return replace(pointer, lease=b"", vesting_ns=max(head_ns, now_ns + parameters.poll_ns), since_ns=0)
    idle_ns = pointer.active_ns + parameters.min_inactive_ns
    return None if idle_ns <= now_ns else replace(pointer, lease=b"", vesting_ns=idle_ns, since_ns=0)
