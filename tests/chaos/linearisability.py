"""Whether a history of operations on single keys could have come from a store that does one thing at a time.

Every key is an atomic register: absent, or holding one value, named by its ETag. An operation takes effect at one
moment between its call and its answer. One whose outcome is unknown (`AMBIGUOUS`) takes effect at one moment from its
call on, even long after its answer, or never. `check` finds an order that explains everything that was answered, or
says for which keys there is none.

Keys are checked one by one: a history is linearisable exactly if each key's is (Herlihy and Wing, "Linearizability: a
correctness condition for concurrent objects", 1990, theorem 1).

The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's memory of where it
has been ("Testing for linearizability", 2017). What makes it nearly linear is that no two writes write the same value:

- a value that somebody saw was written by one known operation, once, and before whoever saw it first had its answer,
  whatever became of the writer's own answer;
- a value cannot come back, so the register may leave it only when all who saw it have had their turn;
- hence the time between the first answer and the last call of those who wrote or saw a value belongs to that value
  alone, and two values whose times overlap are a contradiction without any search (Gibbons and Korach, "Testing shared
  memories", 1997);
- values that nobody saw are all alike, and so are operations of unknown outcome that would have written them.

It deliberately does not judge sets of keys together (a listing is a read of each of its keys), nor versions.
"""

from __future__ import annotations

import enum
import itertools
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

MAX_CONFIGURATIONS = 200_000
"""For one key, beyond which the search gives up: each takes some hundred bytes."""


class Kind(enum.Enum):
    PUT = "put"
    CREATE = "create"  # put with If-None-Match: *
    REPLACE = "replace"  # put with If-Match: `expected`
    DELETE = "delete"
    READ = "read"  # get, head, or a listing that may hold the key


class Outcome(enum.Enum):
    OK = "ok"
    FAILED = "failed"  # certainly without effect, and tells nothing
    AMBIGUOUS = "ambiguous"  # may take effect once, at any time from its call on
    EXISTS = "exists"  # a condition failed: there was a value, and for REPLACE another than expected
    ABSENT = "absent"  # REPLACE found no value


@dataclass(frozen=True)
class Operation:
    """One operation on one key as its client saw it.

    Attributes:
        value: what a PUT, CREATE or REPLACE wrote or would have written; no two operations share one.
        expected: the value that a REPLACE asked for.
        observed: what a READ saw; None for an absent key.
        start_ns, end_ns: before its call and after its answer, on one clock for all clients.
        name: for people, to find it again.
    """

    key: str
    kind: Kind
    outcome: Outcome
    start_ns: int
    end_ns: int
    value: str | None = None
    expected: str | None = None
    observed: str | None = None
    name: str = ""

    def __str__(self) -> str:
        about = {"writes": self.value, "expects": self.expected}
        words = [f"{word} {value}" for word, value in about.items() if value is not None]
        if self.kind is Kind.READ and self.outcome is Outcome.OK:
            words.append(f"sees {self.observed or 'nothing'}")
        text = " ".join([self.name or self.kind.value, *words, self.outcome.value])
        return f"[{self.start_ns / 1e9:.6f} {self.end_ns / 1e9:.6f}] {text}"


@dataclass(frozen=True)
class Violation:
    """A key whose history no atomic register can have produced, and the operations that show it."""

    key: str
    reason: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.key}: {self.reason}", *(f"  {operation}" for operation in self.operations)])


class Undecided(Exception):
    """The search for one key outgrew `MAX_CONFIGURATIONS`."""


def check(history: Iterable[Operation]) -> list[Violation]:
    """Every key whose history is not linearisable; empty if all is well. All keys begin absent.

    Raises:
        ValueError: two operations on a key write the same value, or one ends before it starts.
        Undecided
    """
    by_key: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    found = (check_key(operations) for operations in by_key.values())
    return [violation for violation in found if violation is not None]


def check_key(operations: list[Operation], *, max_configurations: int = MAX_CONFIGURATIONS) -> Violation | None:
    """What is wrong with one key's history, None if nothing is. See `check`."""
    register = _Register(operations)
    violation = register.impossible_value() or register.overlapping_values() or register.no_reason()
    return violation or _Search(register, max_configurations).run()


class _State(enum.Enum):
    """What the register may hold, or an operation demand of it, beside a value that somebody named."""

    ABSENT = enum.auto()
    UNSEEN = enum.auto()  # some value that nobody saw or asked for
    PRESENT = enum.auto()  # any value at all: demanded, never held


Value = str | _State
ABSENT, UNSEEN, PRESENT = _State


def _demand(operation: Operation) -> Value | None:
    """What the register must hold at the operation's moment, None if anything. `_satisfies` knows the whole of it."""
    match operation.kind, operation.outcome:
        case Kind.READ, _:
            return ABSENT if operation.observed is None else operation.observed
        case ((Kind.CREATE | Kind.REPLACE), Outcome.EXISTS):
            return PRESENT
        case Kind.REPLACE, Outcome.ABSENT:
            return ABSENT
        case Kind.CREATE, _:
            return ABSENT
        case Kind.REPLACE, _:
            return operation.expected
        case _:
            return None


def _satisfies(value: Value, operation: Operation) -> bool:
    demanded = _demand(operation)
    if demanded is PRESENT:
        return value is not ABSENT and (operation.kind is Kind.CREATE or value != operation.expected)
    return demanded is None or demanded == value


def _mutates(operation: Operation) -> bool:
    return operation.kind is not Kind.READ and operation.outcome in (Outcome.OK, Outcome.AMBIGUOUS)


def _called_later(one: Operation, other: Operation) -> Operation:
    return other if other.start_ns > one.start_ns else one


class _Register:
    """One key's history, made ready: what must have happened, in the order of its calls, and what may have."""

    def __init__(self, operations: list[Operation]) -> None:
        self.key = operations[0].key if operations else ""
        self.writers: dict[str, Operation] = {}
        for operation in operations:
            if operation.end_ns < operation.start_ns:
                raise ValueError(f"ends before it starts: {operation}")
            if operation.value is not None and self.writers.setdefault(operation.value, operation) is not operation:
                raise ValueError(f"two operations write {operation.value}: {operation}")
        told = [o for o in operations if o.outcome is not Outcome.FAILED]
        told = [o for o in told if o.kind is not Kind.READ or o.outcome is Outcome.OK]
        self._seen_by_ns: dict[str, int] = {}
        for operation in told:
            if operation.outcome is Outcome.OK and isinstance(value := _demand(operation), str):
                self._see(value, operation.end_ns)
        certain: list[Operation] = []
        doubtful: list[Operation] = []
        for operation in told:
            if operation.value in self._seen_by_ns and _mutates(operation):
                seen_ns = self._seen_by_ns[operation.value]
                end_ns = seen_ns if operation.outcome is Outcome.AMBIGUOUS else min(operation.end_ns, seen_ns)
                operation = replace(operation, outcome=Outcome.OK, end_ns=end_ns)
            (doubtful if operation.outcome is Outcome.AMBIGUOUS else certain).append(operation)
        self.certain = sorted(certain, key=lambda o: o.start_ns)
        self._named = {o.observed for o in certain} | {o.expected for o in (*certain, *doubtful)}
        # Those of one class can stand for each other, and the earliest can whenever another could.
        classes: dict[tuple[Kind, Value, str | None], list[Operation]] = {}
        for operation in sorted(doubtful, key=lambda o: o.start_ns):
            classes.setdefault((operation.kind, self.produced(operation), operation.expected), []).append(operation)
        self.doubtful = list(classes.values())

    def _see(self, value: str, by_ns: int) -> None:
        """Note that `value` was there by then; and so was what its writer expected, if it did."""
        seen: str | None = value
        while seen is not None and by_ns < self._seen_by_ns.get(seen, 1 << 63):
            self._seen_by_ns[seen] = by_ns
            writer = self.writers.get(seen)
            if writer is None or writer.kind is not Kind.REPLACE:
                return
            if writer.outcome is Outcome.OK:
                by_ns = min(by_ns, writer.end_ns)
            seen = writer.expected

    def produced(self, operation: Operation) -> Value:
        """What the register holds after a mutation."""
        if operation.kind is Kind.DELETE:
            return ABSENT
        assert operation.value is not None
        return operation.value if operation.value in self._named else UNSEEN

    def impossible_value(self) -> Violation | None:
        """Somebody saw what nobody wrote, or not yet."""
        for operation in self.certain:
            value = _demand(operation)
            if isinstance(value, str):
                writer = self.writers.get(value)
                if writer is None:
                    return Violation(self.key, f"nobody wrote {value}", (operation,))
                if not _mutates(writer):
                    return Violation(self.key, f"the write of {value} had no effect", (writer, operation))
            if operation.end_ns < operation.start_ns:  # pulled forward by those who saw what it wrote
                return Violation(self.key, f"{operation.value} was seen before it was written", (operation,))
        return None

    def overlapping_values(self) -> Violation | None:
        """Two values at one time, or something else in the middle of a value's time."""
        first: dict[str, Operation] = {}
        last: dict[str, Operation] = {}
        for operation in self.certain:
            written = operation.value if _mutates(operation) else None
            for value in {written, _demand(operation)}:
                if not isinstance(value, str):
                    continue
                if value not in first or operation.end_ns < first[value].end_ns:
                    first[value] = operation
                if value not in last or operation.start_ns > last[value].start_ns:
                    last[value] = operation
        held = [value for value in first if first[value].end_ns < last[value].start_ns]
        held.sort(key=lambda value: first[value].end_ns)
        for one, two in itertools.pairwise(held):
            if last[one].start_ns > first[two].end_ns:
                reason = f"{one} and {two} at the same time"
                return Violation(self.key, reason, (first[one], first[two], last[one], last[two]))
        ends = [first[value].end_ns for value in held]
        for operation in self.certain:
            at = bisect_left(ends, operation.start_ns) - 1
            if at < 0 or operation.end_ns >= last[held[at]].start_ns:
                continue
            value = held[at]
            if not _satisfies(value, operation) or (_mutates(operation) and operation.value != value):
                reason = f"{value} was there before and after"
                return Violation(self.key, reason, (first[value], operation, last[value]))
        return None

    def no_reason(self) -> Violation | None:
        """Somebody found nothing though nobody can have deleted since the last write, or something the other way."""
        doubtful = [replace(o, end_ns=1 << 63) for alike in self.doubtful for o in alike]
        for demanded in (ABSENT, PRESENT):

            def makes(operation: Operation, wanted: bool, demanded: Value = demanded) -> bool:
                return _mutates(operation) and ((self.produced(operation) is ABSENT) == (demanded is ABSENT)) == wanted

            causes = sorted((o for o in (*self.certain, *doubtful) if makes(o, True)), key=lambda o: o.start_ns)
            starts = [o.start_ns for o in causes]
            ends = list(itertools.accumulate((o.end_ns for o in causes), max))
            undoings = sorted((o for o in self.certain if makes(o, False)), key=lambda o: o.end_ns)
            undone = [o.end_ns for o in undoings]
            latest = list(itertools.accumulate(undoings, _called_later))
            for operation in self.certain:
                if _demand(operation) is not demanded:
                    continue
                before = bisect_left(undone, operation.start_ns)
                possible = bisect_right(starts, operation.end_ns)
                if not before and (demanded is ABSENT or possible):
                    continue
                if not possible or (before and ends[possible - 1] < latest[before - 1].start_ns):
                    last = latest[before - 1 : before] if before else []
                    what = "found nothing, and nobody deleted it" if demanded is ABSENT else "found a value, of nobody"
                    return Violation(self.key, what, (*last, operation))
        return None


@dataclass(frozen=True, slots=True)
class _Point:
    """Where the search stands: everything before has had its moment.

    Attributes:
        called: how many of the certain operations were called before the earliest answer still owed.
        pending: those of them that have not had their moment yet.
        value: what the register holds.
        used: how many of each class of doubtful operations have taken effect.
        idle: the last one that did was doubtful and has served nobody yet.
    """

    called: int
    pending: tuple[int, ...]
    value: Value
    used: tuple[int, ...]
    idle: bool


class _Search:
    """The search for an order of one key's operations."""

    def __init__(self, register: _Register, max_configurations: int) -> None:
        self._register = register
        self._certain = register.certain
        self._doubtful = register.doubtful
        self._max_configurations = max_configurations
        self._mutates = [_mutates(operation) for operation in self._certain]
        self._writer: dict[Value, int] = {}
        self._last_demand: dict[Value, int] = {}
        for at, operation in enumerate(self._certain):
            if self._mutates[at] and operation.value is not None:
                self._writer[operation.value] = at
            if isinstance(value := _demand(operation), str):
                self._last_demand[value] = at

    def run(self) -> Violation | None:
        point = self._settle(0, (), ABSENT, (0,) * len(self._doubtful), doubtful=False)
        deepest = point
        visited = {point}
        path = [self._moves(point)]
        while path:
            if point.called == len(self._certain) and not point.pending:
                return None
            if not path[-1]:
                path.pop()
                continue
            point = self._take(*path[-1].pop())
            if point in visited:
                continue
            if len(visited) >= self._max_configurations:
                raise Undecided(f"{self._register.key}: no verdict after {len(visited)} configurations")
            visited.add(point)
            if point.called - len(point.pending) > deepest.called - len(deepest.pending):
                deepest = point
            path.append(self._moves(point))
        stuck = sorted((self._certain[at] for at in deepest.pending), key=lambda o: o.end_ns)
        done = deepest.called - len(deepest.pending)
        holds = (
            "nothing" if deepest.value is ABSENT else "a value nobody saw" if deepest.value is UNSEEN else deepest.value
        )
        reason = (
            f"no order explains more than {done} of {len(self._certain)} operations; holding {holds}, these are stuck"
        )
        return Violation(self._register.key, reason, tuple(stuck))

    def _settle(
        self, called: int, pending: tuple[int, ...], value: Value, used: tuple[int, ...], *, doubtful: bool
    ) -> _Point:
        """Give every reader that can be served now its moment: that is never wrong, for it changes nothing."""
        certain, mutates = self._certain, self._mutates
        before = called - len(pending)
        waiting = [at for at in pending if mutates[at] or not _satisfies(value, certain[at])]
        due_ns = min((certain[at].end_ns for at in waiting), default=1 << 63)
        while called < len(certain) and certain[called].start_ns <= due_ns:
            if mutates[called] or not _satisfies(value, certain[called]):
                waiting.append(called)
                due_ns = min(due_ns, certain[called].end_ns)
            called += 1
        served = called - len(waiting) > before
        return _Point(called, tuple(waiting), value, used, doubtful and not served)

    def _take(self, point: _Point, at: int, doubtful: bool) -> _Point:
        """`at`: of a certain operation, or of a class of doubtful ones."""
        if not doubtful:
            pending = tuple(other for other in point.pending if other != at)
            produced = self._register.produced(self._certain[at])
            # One served: the operation itself.
            return self._settle(point.called, pending, produced, point.used, doubtful=False)
        used = (*point.used[:at], point.used[at] + 1, *point.used[at + 1 :])
        produced = self._register.produced(self._doubtful[at][0])
        return self._settle(point.called, point.pending, produced, used, doubtful=True)

    def _moves(self, point: _Point) -> list[tuple[_Point, int, bool]]:
        """The mutations that may come next, the most promising last."""
        if not point.pending:
            return []
        certain, value = self._certain, point.value
        holders = [at for at in point.pending if self._mutates[at] and _demand(certain[at]) == value]
        if isinstance(value, str) and (self._last_demand.get(value, -1) >= point.called or len(holders) > 1):
            return []  # it would have to come back
        urgent = min(point.pending, key=lambda at: certain[at].end_ns)
        due_ns = certain[urgent].end_ns
        available = [
            at
            for at, alike in enumerate(self._doubtful)
            if point.used[at] < len(alike) and alike[point.used[at]].start_ns <= due_ns
        ]
        wanted = self._wanted(point, urgent, available)
        if wanted is None:
            return []
        mutations = [at for at in point.pending if self._mutates[at] and _satisfies(value, certain[at])]
        if isinstance(value, str) and holders:
            mutations = holders
            available = []
        elif point.idle:
            mutations = [at for at in mutations if _demand(certain[at]) is not None]
        # Of those that are alike and have been called, the first to be due goes first: any order in which another
        # does can exchange the two. Those that need not happen come last for the same reason.
        alike_due: dict[tuple[Kind, Value, Value | None], int] = {}
        for at in sorted(mutations, key=lambda at: certain[at].end_ns):
            alike_due.setdefault(self._class_of(certain[at]), at)
        ranked: list[tuple[int, int, int, bool]] = []
        for at in alike_due.values():
            produced = self._register.produced(certain[at])
            if at == urgent or produced in wanted:
                rank = 0
            elif produced is ABSENT and value is ABSENT:
                rank = 3  # wasted, and may be dear later
            else:
                rank = 2
            ranked.append((rank, certain[at].end_ns, at, False))
        for at in available:
            alike = self._doubtful[at]
            produced = self._register.produced(alike[0])
            if not _satisfies(value, alike[0]) or (produced is ABSENT and value is ABSENT):
                continue
            if self._class_of(alike[0]) in alike_due or (point.idle and _demand(alike[0]) is None):
                continue
            ranked.append((1 if produced in wanted else 4, alike[point.used[at]].start_ns, at, True))
        ranked.sort(reverse=True)
        return [(point, at, doubtful) for _, _, at, doubtful in ranked]

    def _class_of(self, operation: Operation) -> tuple[Kind, Value, Value | None]:
        return operation.kind, self._register.produced(operation), _demand(operation)

    def _wanted(self, point: _Point, urgent: int, available: list[int]) -> set[Value] | None:
        """What the next mutation had better leave behind for the sake of the one that is `urgent`; None: hopeless."""
        certain = self._certain
        operation = certain[urgent]
        doubtful = {self._register.produced(self._doubtful[at][0]): self._doubtful[at][0] for at in available}
        for _ in range(len(point.pending) + len(available) + 1):
            if _satisfies(point.value, operation):
                return set()
            demanded = _demand(operation)
            if not isinstance(demanded, str):
                produced = {self._register.produced(certain[at]) for at in point.pending if self._mutates[at]}
                produced |= set(doubtful)
                if demanded is ABSENT:
                    return {demanded} if demanded in produced else None
                return {value for value in produced if _satisfies(value, operation)} or None
            # Only one operation can bring it, and may itself wait for something.
            at = self._writer.get(demanded, -1)
            if at in point.pending:
                operation = certain[at]
            elif demanded in doubtful:
                operation = doubtful[demanded]
            else:
                return None
            if _satisfies(point.value, operation):
                return {demanded}
        return None
