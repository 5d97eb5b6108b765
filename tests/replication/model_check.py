"""Every interleaving of a few actors at the queue, explored state by state with the real transaction functions.

A *state* is what is stored, the clock, and where each actor is: between two transactions, or inside one. A
transaction begins (the function runs on what is stored at that moment; its writes, its result and what it read with a
conflict are kept) and later commits, unless another commit has written into what it read: then it starts over. That is
what a multi-version engine does, and all that it does. What writes nothing commits as it begins.

A *step* is a begin, a commit, or the clock's next tick that makes a difference. All orders of steps are explored,
without any fairness. So an actor that stops for ever, at any point, inside or outside a transaction, is a crash at that
point, and one that goes on after others did a lot is a long pause: both need no steps of their own. A commit that takes
effect although its caller never hears of it is a commit whose actor stops right after.

In each state the rows must satisfy `Checker.check_rows`, and then everybody dies: one fresh consumer, with nothing to
go by but what is stored, has to work off all that is owed and to remove the zone, every cause's effect happening
exactly once after its last enqueue. Time is counted in units, and the queue's parameters are a few of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.structs import replace

from tigrislike.metadata import leasing, overseeing, owed
from tigrislike.metadata.context import Context
from tigrislike.metadata.deciding import QueueParameters
from tigrislike.metadata.keyspace import Keyspace, unpack_bytes, unpack_int, unpack_text
from tigrislike.metadata.kv.engine import Ready
from tigrislike.metadata.kv.limits import added
from tigrislike.metadata.records import Claimed, Counts, Home
from tigrislike.metadata.records import item as item_codec
from tigrislike.metadata.records import pointer as pointer_codec

NODE = b"node-of-the-test"
ZONE = NODE + b"b"
TASK = "t"
START = 100

PARAMETERS = QueueParameters(
    pointer_lease_ns=2,
    item_lease_ns=4,
    poll_ns=1,
    min_inactive_ns=6,
    back_off_ns=2,
    max_back_off_ns=2,
    max_attempts=3,
    batch=2,
)

Range = tuple[bytes, bytes]


class Violation(AssertionError):
    """A state that must not be. Says what is wrong with it, and how it is reached."""


class ModelTransaction:
    """A transaction on rows that do not change under it."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = rows
        self._own: dict[bytes, bytes | None] = {}
        self.changes: list[tuple[bytes, bytes | int | None]] = []
        self.reads: list[Range] = []

    def get(self, key: bytes, *, snapshot: bool = False) -> Ready[bytes | None]:
        if not snapshot:
            self.reads.append((key, key + b"\0"))
        return Ready(self._own[key] if key in self._own else self._rows.get(key))

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Ready[list[tuple[bytes, bytes]]]:
        assert not reverse
        found = [
            (key, value) for key, value in (self._rows | self._own).items() if begin <= key < end and value is not None
        ]
        found.sort()
        if limit and len(found) >= limit:
            found = found[:limit]
            end = found[-1][0] + b"\0"
        if not snapshot:
            self.reads.append((begin, end))
        return Ready(found)

    def set(self, key: bytes, value: bytes) -> None:
        self._own[key] = value
        self.changes.append((key, value))

    def clear(self, key: bytes) -> None:
        self._own[key] = None
        self.changes.append((key, None))

    def add(self, key: bytes, delta: int) -> None:
        self._own[key] = added(self._own.get(key, self._rows.get(key)), delta)
        self.changes.append((key, delta))


def drive(running: Any) -> Any:
    """The result of a transaction function, which awaits nothing but `ModelTransaction`."""
    try:
        running.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("a transaction function awaited something else")


# --- actors


class Call(NamedTuple):
    """A transaction: its `name`, and what it is given."""

    name: str
    args: tuple[Hashable, ...]


Place = Any
"""Where an actor is between its transactions; hashable, None once it has ended."""


@dataclass(frozen=True)
class Script:
    """Makes one call after another: who enqueues, or an operator."""

    script: tuple[Call, ...]
    skews: tuple[int, ...] = (0,)

    def begin(self) -> Place:
        return 0

    def calls(self, place: Place) -> Iterator[Call]:
        yield self.script[place]

    def after(self, place: Place, call: Call, result: Any) -> Place:
        return place + 1 if place + 1 < len(self.script) else None


def enqueue(subject: bytes, vests_in: int | None = None, priority: int = 0) -> Call:
    """Owe the work, from `vests_in` units on (None: at once)."""
    return Call("enqueue", (subject, vests_in, priority))


def retry(subject: bytes) -> Call:
    """Give the dead letter its attempts again."""
    return Call("retry", (subject,))


def hurry(subject: bytes) -> Call:
    """Let a waiting item vest at once."""
    return Call("delay", (subject, 0))


class At(NamedTuple):
    """A consumer's place: how often it may still lease the pointer, fail, extend and give back; the lease that it has
    on the pointer, if any; and what it has claimed, each with whether its cause has not recurred since."""

    rounds: int
    fails: int
    extends: int
    releases: int
    pointer: bytes = b""
    claimed: tuple[tuple[Claimed, bool], ...] = ()


@dataclass(frozen=True)
class Consumer:
    """Leases the pointer, claims, and ends each item in one way or another, `rounds` times. It has room for so many
    items (None: for all that there are). Its clock shows the time plus any one of `skews`, another one at each look."""

    name: bytes
    rounds: int
    fails: int = 0
    extends: int = 0
    skews: tuple[int, ...] = (0,)
    releases: int = 0
    room: int | None = None

    def begin(self) -> Place:
        return At(self.rounds, self.fails, self.extends, self.releases)

    def calls(self, at: At) -> Iterator[Call]:
        if at.claimed:
            claimed, _ = at.claimed[0]
            yield Call("finish", (claimed,))
            if at.fails:
                yield Call("fail", (claimed,))
            if at.extends:
                yield Call("extend", (claimed,))
            if at.releases:
                yield Call("release", tuple(each for each, _ in at.claimed))
        elif at.pointer:
            yield Call("claim", (at.pointer, b"%s-items-%d" % (self.name, at.rounds), self.room))
        else:
            yield Call("lease", (b"%s-%d" % (self.name, at.rounds),))

    def after(self, at: At, call: Call, result: Any) -> Place:
        match call.name:
            case "lease":
                if not result:
                    return at
                return at._replace(pointer=call.args[0], rounds=at.rounds - 1)
            case "claim":
                claimed = tuple((each, True) for each in result.claimed) if result else ()
                at = at._replace(pointer=b"", claimed=claimed)
            case "extend":
                at = at._replace(extends=at.extends - 1)
                if not result:
                    at = at._replace(claimed=at.claimed[1:])
            case "fail":
                at = at._replace(fails=at.fails - 1, claimed=at.claimed[1:])
            case "release":
                at = at._replace(releases=at.releases - 1, claimed=())
            case "finish":
                at = at._replace(claimed=at.claimed[1:])
        return at if at.claimed or at.rounds else None


Actor = Script | Consumer

# --- causes, as an observer sees them

NEVER, OWED, DONE, TWICE = range(4)
"""What has become of a cause since it was last enqueued: nothing yet, or done by a run that was claimed after that."""


class State(NamedTuple):
    """`rows` and each actor's pending transaction (-1: none) by their numbers; `causes` in the order of `SUBJECTS`."""

    rows: int
    now: int
    causes: tuple[int, ...]
    places: tuple[Place, ...]
    pending: tuple[int, ...]


SUBJECTS = (b"x", b"y")


class Pending(NamedTuple):
    """A transaction that has run and not committed."""

    call: Call
    result: Any
    changes: tuple[tuple[bytes, bytes | int | None], ...]
    reads: frozenset[Range]


class Numbered:
    """Things, each with a number of its own."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self.things: list[Any] = []

    def number(self, key: Hashable, thing: Any) -> int:
        number = self._numbers.setdefault(key, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        return number


Transact = Callable[..., Awaitable[Any]]


@dataclass
class Checker:
    """One exploration: `explore` it, then look at `states`.

    Attributes:
        actors: who does what.
        setup: calls made before, one after the other, each at some number of units after the one before.
        parameters: of the queue.
    """

    actors: tuple[Actor, ...]
    setup: tuple[tuple[int, Call], ...] = ()
    parameters: QueueParameters = PARAMETERS
    states: int = 0
    steps: int = 0
    drains: int = 0
    _rows: Numbered = field(default_factory=Numbered)
    _pending: Numbered = field(default_factory=Numbered)
    _begun: dict[Any, int] = field(default_factory=dict)
    _committed: dict[tuple[int, int], tuple[int, frozenset[bytes]]] = field(default_factory=dict)
    _dooms: dict[Any, bool] = field(default_factory=dict)
    _sound: set[tuple[int, int]] = field(default_factory=set)
    _drained: set[tuple[int, int, tuple[int, ...]]] = field(default_factory=set)
    _times: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _came_from: dict[State, tuple[State, str] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._now = START
        self._ctx = Context(Keyspace(), 0, lambda: self._now, Home("here", NODE), 0, self.parameters)
        self._skews = {0}.union(*(actor.skews for actor in self.actors))

    # --- exploring

    def explore(self) -> None:
        """Visit every state. Raises Violation."""
        rows, causes, now = self._number({}), (NEVER,) * len(SUBJECTS), START
        for wait, call in self.setup:
            now += wait
            begun = self._begin(rows, now, call)
            rows, _ = self._commit(rows, begun)
            causes, _ = self._observe(causes, (), call, self._pending.things[begun].result)
        first = State(rows, now, causes, tuple(actor.begin() for actor in self.actors), (-1,) * len(self.actors))
        self._came_from[first] = None
        stack = [first]
        while stack:
            state = stack.pop()
            self.check(state)
            for label, following in self._steps(state):
                self.steps += 1
                if following not in self._came_from:
                    self._came_from[following] = state, label
                    stack.append(following)
        self.states = len(self._came_from)

    def _steps(self, state: State) -> Iterator[tuple[str, State]]:
        for index, actor in enumerate(self.actors):
            place = state.places[index]
            if place is None:
                continue
            if state.pending[index] >= 0:
                yield self._committing(state, index)
                continue
            for call in actor.calls(place):
                for skew in actor.skews:
                    begun = self._begin(state.rows, state.now + skew, call)
                    following = state._replace(pending=_with(state.pending, index, begun))
                    if self._pending.things[begun].changes:
                        yield f"{index} begins {call.name}", following
                    elif call.name != "lease":  # to be refused the pointer changes nothing
                        yield self._committing(following, index)
        later = [time for time in self._interesting(state.rows) if time > state.now]
        if later:
            yield "time passes", state._replace(now=min(later))

    def _committing(self, state: State, index: int) -> tuple[str, State]:
        number = state.pending[index]
        call, result, _, _ = self._pending.things[number]
        rows, touched = self._commit(state.rows, number)
        places = list(state.places)
        places[index] = self.actors[index].after(places[index], call, result)
        causes, left = self._observe(state.causes, tuple(state.places), call, result, index, tuple(places))
        pending = [-1 if other >= 0 and self._doomed(touched, other) else other for other in state.pending]
        pending[index] = -1
        return f"{index} commits {call.name}", State(rows, state.now, causes, left, tuple(pending))

    def _interesting(self, rows: int) -> tuple[int, ...]:
        """When something vests, by anybody's clock."""
        times = self._times.get(rows)
        if times is None:
            keys = self._ctx.keys
            vesting = set()
            for key in self._rows.things[rows]:
                if key.startswith(keys.queue_due):
                    _, at = unpack_bytes(key, len(keys.queue_due))
                    vesting.add(unpack_int(key, unpack_int(key, at)[1])[0])
                elif key.startswith(keys.queue_tops):
                    vesting.add(unpack_int(key, unpack_bytes(key, len(keys.queue_tops))[1])[0])
            times = self._times[rows] = tuple(time - skew for time in vesting for skew in self._skews)
        return times

    # --- transactions

    def _number(self, rows: dict[bytes, bytes]) -> int:
        return self._rows.number(frozenset(rows.items()), rows)

    def _run(self, tr: ModelTransaction, now: int, call: Call) -> Any:
        self._now = now
        ctx: Any = self._ctx
        args: Any = call.args
        given: Any = tr
        match call.name:
            case "enqueue":
                subject, vests_in, priority = args
                vesting = 0 if vests_in is None else now + vests_in
                return drive(owed.enqueue(given, ctx, ZONE, TASK, subject, vesting_ns=vesting, priority=priority))
            case "retry":
                return drive(overseeing.retry(given, ctx, ZONE, owed.item_id(TASK, *args)))
            case "delay":
                return drive(overseeing.delay(given, ctx, ZONE, owed.item_id(TASK, args[0]), args[1]))
            case "peek":
                return drive(leasing.peek(given, ctx, NODE))
            case "lease":
                return drive(leasing.lease(given, ctx, ZONE, *args))
            case "claim":
                pointer_lease, lease, room = args
                return drive(
                    leasing.claim(given, ctx, ZONE, pointer_lease, lease, None if room is None else {TASK: room})
                )
            case "extend":
                return bool(drive(leasing.extend(given, ctx, args)))
            case "release":
                return bool(drive(leasing.release(given, ctx, args)))
            case "finish":
                return drive(leasing.finish(given, ctx, *args))
            case "fail":
                return drive(leasing.fail(given, ctx, *args, "it broke", 0.5))
        raise AssertionError(call)

    def _begin(self, rows: int, now: int, call: Call) -> int:
        key = rows, now, call
        number = self._begun.get(key)
        if number is None:
            tr = ModelTransaction(self._rows.things[rows])
            result = self._run(tr, now, call)
            pending = Pending(call, result, tuple(tr.changes), frozenset(tr.reads))
            frozen = tuple(map(_frozen, result)) if isinstance(result, tuple) else result
            number = self._begun[key] = self._pending.number(pending._replace(result=frozen), pending)
        return number

    def _commit(self, rows: int, number: int) -> tuple[int, frozenset[bytes]]:
        committed = self._committed.get((rows, number))
        if committed is None:
            changes = self._pending.things[number].changes
            stored = dict(self._rows.things[rows])
            for key, change in changes:
                if change is None:
                    stored.pop(key, None)
                elif isinstance(change, int):
                    stored[key] = added(stored.get(key), change)
                else:
                    stored[key] = self._without_tales(key, change)
            # Nobody but an idle consumer reads the bell, and it only saves waiting; the sums are what is added to the
            # zone's own counters, and only operators read them.
            ignored = self._ctx.keys.queue_bell(NODE), self._ctx.keys.queue_sums
            stored = {key: value for key, value in stored.items() if not key.startswith(ignored)}
            committed = self._number(stored), frozenset(key for key, _ in changes)
            self._committed[rows, number] = committed
        return committed

    def _without_tales(self, key: bytes, value: bytes) -> bytes:
        """A row less what is only told to operators, and decides nothing: else the same state would be many."""
        keys = self._ctx.keys
        if key.startswith(keys.queue_pointers):
            return pointer_codec.encode(replace(pointer_codec.decode(value), since_ns=0))
        if key.startswith((keys.queue_items, keys.queue_dead)):
            return item_codec.encode(replace(item_codec.decode(value), history=()))
        return value

    def _doomed(self, touched: frozenset[bytes], number: int) -> bool:
        doomed = self._dooms.get((touched, number))
        if doomed is None:
            reads = self._pending.things[number].reads
            doomed = any(begin <= key < end for key in touched for begin, end in reads)
            self._dooms[touched, number] = doomed
        return doomed

    def _observe(
        self,
        causes: tuple[int, ...],
        before: tuple[Place, ...],
        call: Call,
        result: Any,
        index: int = -1,
        after: tuple[Place, ...] = (),
    ) -> tuple[tuple[int, ...], tuple[Place, ...]]:
        """What a commit means for the causes, and for what consumers hold of them."""
        if call.name == "enqueue" or (call.name == "retry" and result):
            subject = call.args[0]
            after = tuple(_recurred(place, subject) for place in after)
            return _with(causes, SUBJECTS.index(subject), OWED), after
        if call.name == "finish" and result:
            claimed, fresh = before[index].claimed[0]
            if fresh:
                which = SUBJECTS.index(claimed.item.subject)
                causes = _with(causes, which, DONE if causes[which] == OWED else TWICE)
        return causes, after

    # --- judging

    def check(self, state: State) -> None:
        """Raises Violation."""
        try:
            if TWICE in state.causes:
                raise Violation("an effect happened twice")
            if (state.rows, state.now) not in self._sound:
                self.check_rows(self._rows.things[state.rows], state.now)
                self._sound.add((state.rows, state.now))
            self.drain(state.rows, state.now, state.causes)
        except Violation as found:
            raise Violation(f"{found}\n" + "\n".join(self.path(state))) from None

    def path(self, state: State) -> list[str]:
        """The steps that lead to a state."""
        labels = []
        came = self._came_from[state]
        while came is not None:
            labels.append(f"{came[1]} (at {came[0].now})")
            came = self._came_from[came[0]]
        return labels[::-1]

    def check_rows(self, rows: dict[bytes, bytes], now: int) -> None:
        """Items are in order and counted; they have a zone, with one pointer that is in order and not late."""
        keys = self._ctx.keys
        items, due, failing, counts = {}, set(), set(), {}
        marks, pointers, tops, letters = [], [], [], 0
        for key, value in rows.items():
            if key.startswith(keys.queue_items):
                _, at = unpack_bytes(key, len(keys.queue_items))
                items[unpack_bytes(key, at)[0]] = item_codec.decode(value)
            elif key.startswith(keys.queue_due):
                _, at = unpack_bytes(key, len(keys.queue_due))
                priority, at = unpack_int(key, at)
                vesting, at = unpack_int(key, at)
                enqueued, at = unpack_int(key, at)
                due.add((unpack_bytes(key, at)[0], priority, vesting, enqueued))
            elif key.startswith(keys.queue_failing):
                _, at = unpack_bytes(key, len(keys.queue_failing))
                enqueued, at = unpack_int(key, at)
                failing.add((unpack_bytes(key, at)[0], enqueued))
            elif key.startswith(keys.queue_zones):
                marks.append(int.from_bytes(value, "big"))
            elif key.startswith(keys.queue_pointers):
                pointers.append(pointer_codec.decode(value))
            elif key.startswith(keys.queue_tops):
                tops.append(unpack_int(key, unpack_bytes(key, len(keys.queue_tops))[1])[0])
            elif key.startswith(keys.queue_counts):
                _, at = unpack_bytes(key, len(keys.queue_counts))
                _, at = unpack_text(key, at)
                counts[unpack_text(key, at)[0]] = int.from_bytes(value, "little", signed=True)
            elif key.startswith(keys.queue_dead):
                letters += 1
        ordered = {(id_, item.priority, item.vesting_ns, item.enqueued_ns) for id_, item in items.items()}
        _expect(due == ordered, "items are not in order")
        listed = {(id_, item.enqueued_ns) for id_, item in items.items() if item.attempts}
        _expect(failing == listed, "failing items are not listed")
        counted = Counts.of(counts)
        _expect(counted.waiting == len(items), "waiting items are miscounted")
        _expect(counted.leased == sum(bool(item.lease) for item in items.values()), "leased items are miscounted")
        _expect(counted.failing == len(listed), "failing items are miscounted")
        _expect(counted.dead == letters, "dead letters are miscounted")
        if marks and self.parameters.max_attempts > 1:  # a letter may take another one's place, and is then one
            ended = counts.get("done", 0) + counts.get("dead", 0)
            _expect(counts.get("enqueued", 0) - ended == len(items), "runs are miscounted")
        if not (items or marks or pointers or tops):
            return
        _expect(len(marks) == 1, "a zone without a mark")
        _expect(len(pointers) == 1, "a zone without a pointer")
        ((deferred,), (pointer,)) = marks, pointers
        _expect(tops == [pointer.vesting_ns], "a pointer that is not in order, or more than once")
        now += max(self._skews)
        soon = now + (self.parameters.pointer_lease_ns if pointer.lease else self.parameters.poll_ns)
        if not deferred:
            _expect(pointer.vesting_ns <= soon, "a pointer is late, and nobody would pull it")
            return
        _expect(
            not pointer.lease and pointer.vesting_ns == deferred, "a mark that says something else than its pointer"
        )
        first = min((item.vesting_ns for item in items.values()), default=now + self.parameters.min_inactive_ns)
        _expect(deferred <= max(first, soon), "a pointer is deferred beyond what it is for")

    def drain(self, rows: int, now: int, causes: tuple[int, ...]) -> None:
        """Everybody is dead but for one consumer that knows nothing. Raises Violation."""
        seen = []
        while (rows, now, causes) not in self._drained:
            seen.append((rows, now, causes))
            if len(seen) > 60:
                raise Violation("one consumer alone comes to no end")
            peeked = self._pending.things[self._begin(rows, now, Call("peek", ()))].result
            if not peeked.zones:
                if peeked.next_ns is None:
                    break
                now = peeked.next_ns
                continue
            lease = b"last-%d" % now
            rows, result = self._at_once(rows, now, Call("lease", (lease,)))
            _expect(result, "a pointer that has vested cannot be leased")
            rows, batch = self._at_once(rows, now, Call("claim", (lease, lease, None)))
            for claimed in batch.claimed:
                rows, ended = self._at_once(rows, now, Call("finish", (claimed,)))
                _expect(ended, "a lease was lost to nobody")
                which = SUBJECTS.index(claimed.item.subject)
                causes = _with(causes, which, DONE if causes[which] == OWED else TWICE)
        else:
            self.drains += 1
            self._drained.update(seen)
            return
        stored, keys = self._rows.things[rows], self._ctx.keys
        _expect(
            not any(key.startswith((keys.queue_items, keys.queue_zones)) for key in stored),
            "orphaned: no pointer leads to it",
        )
        buried = {item_codec.decode(value).subject for key, value in stored.items() if key.startswith(keys.queue_dead)}
        for subject, cause in zip(SUBJECTS, causes, strict=True):
            _expect(cause != OWED or subject in buried, f"{subject!r} was enqueued, and not done since")
            _expect(cause != TWICE, f"{subject!r} was done twice")
        self._drained.update(seen)

    def _at_once(self, rows: int, now: int, call: Call) -> tuple[int, Any]:
        begun = self._begin(rows, now, call)
        return self._commit(rows, begun)[0], self._pending.things[begun].result


def _recurred(place: Place, subject: bytes) -> Place:
    if not isinstance(place, At):
        return place
    return place._replace(
        claimed=tuple((each, fresh and each.item.subject != subject) for each, fresh in place.claimed)
    )


def _frozen(thing: Any) -> Any:
    return tuple(thing) if isinstance(thing, list) else thing


def _with(things: tuple[Any, ...], index: int, thing: Any) -> tuple[Any, ...]:
    return (*things[:index], thing, *things[index + 1 :])


def _expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Violation(otherwise)
