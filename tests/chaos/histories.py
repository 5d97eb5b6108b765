"""Histories for the tests of the checker: from a simulated atomic register, and judged without any cleverness."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.chaos.linearisability import Kind, Operation, Outcome

LONG_NS = 1000


@dataclass
class Register:
    """An atomic register of one key that names what it is given, `v0`, `v1`, ..."""

    rng: random.Random
    key: str = "k"
    value: str | None = None
    writes: int = 0

    def fresh(self) -> str:
        self.writes += 1
        return f"{self.key}v{self.writes - 1}"

    def apply(self, operation: Operation) -> Operation:
        """The operation with what came of it; its effect is made."""
        kind = operation.kind
        if kind is Kind.READ:
            return _with(operation, Outcome.OK, observed=self.value)
        if kind is Kind.DELETE:
            self.value = None
        elif kind is Kind.CREATE and self.value is not None:
            return _with(operation, Outcome.EXISTS)
        elif kind is Kind.REPLACE and self.value != operation.expected:
            return _with(operation, Outcome.ABSENT if self.value is None else Outcome.EXISTS)
        else:
            self.value = operation.value
        return _with(operation, Outcome.OK)


def _with(operation: Operation, outcome: Outcome, observed: str | None = None) -> Operation:
    return Operation(
        operation.key,
        operation.kind,
        outcome,
        operation.start_ns,
        operation.end_ns,
        operation.value,
        operation.expected,
        observed,
    )


def simulated(
    rng: random.Random, operations: int, clients: int, *, doubt: float = 0.1, failures: float = 0.05, key: str = "k"
) -> list[Operation]:
    """What `clients`, each doing one thing at a time, see of an atomic register.

    Args:
        doubt: the share of operations whose client never learns what came of them: they take effect then or later,
            perhaps long after, perhaps never.
        failures: the share that is refused without effect.
    """
    register = Register(rng, key)
    free_ns = [0] * clients
    moments: list[tuple[int, int, Operation, bool, bool]] = []
    for at in range(operations):
        client = min(range(clients), key=lambda c: (free_ns[c], rng.random()))
        start_ns = free_ns[client] + rng.randrange(LONG_NS // 4)
        end_ns = start_ns + rng.randrange(1, LONG_NS)
        free_ns[client] = end_ns + 1
        kind = rng.choices(list(Kind), [3, 1, 2, 2, 6])[0]
        value = register.fresh() if kind in (Kind.PUT, Kind.CREATE, Kind.REPLACE) else None
        expected = f"{key}v{rng.randrange(max(register.writes, 1))}" if kind is Kind.REPLACE else None
        operation = Operation(key, kind, Outcome.OK, start_ns, end_ns, value, expected)
        doubtful, fails = rng.random() < doubt, rng.random() < failures
        latest_ns = end_ns + (rng.choice((0, 20 * LONG_NS)) if doubtful else 0)
        moments.append((rng.randint(start_ns, latest_ns), at, operation, doubtful, fails))
    history: list[Operation] = []
    for _, _, operation, doubtful, fails in sorted(moments, key=lambda moment: moment[:2]):
        expected = operation.expected
        if expected is not None and register.value is not None and rng.random() < 0.5:
            expected = register.value  # so that some conditions hold
        operation = Operation(
            key, operation.kind, Outcome.OK, operation.start_ns, operation.end_ns, operation.value, expected
        )
        if fails:
            history.append(_with(operation, Outcome.FAILED))
        elif doubtful and rng.random() < 0.5:
            history.append(_with(operation, Outcome.AMBIGUOUS))
        else:
            done = register.apply(operation)
            history.append(_with(operation, Outcome.AMBIGUOUS) if doubtful else done)
    rng.shuffle(history)
    return history


def explained(history: list[Operation]) -> bool:
    """The definition, tried out: some order of the operations explains every answer. For very short histories."""
    certain = [o for o in history if o.outcome not in (Outcome.FAILED, Outcome.AMBIGUOUS)]
    doubtful = [o for o in history if o.outcome is Outcome.AMBIGUOUS]

    def go(left: list[Operation], maybe: list[Operation], value: str | None) -> bool:
        if not left:
            return True
        for operation in (*left, *maybe):
            if any(other.end_ns < operation.start_ns for other in left if other is not operation):
                continue
            register = Register(random.Random(0), value=value)
            done = register.apply(operation)
            # A doubtful one may as well have found its condition unmet: that is as if it had never been.
            told = (operation.outcome, operation.observed)
            if operation.outcome is not Outcome.AMBIGUOUS and (done.outcome, done.observed) != told:
                continue
            others = [o for o in left if o is not operation]
            if go(others, [o for o in maybe if o is not operation], register.value):
                return True
        return False

    return go(certain, doubtful, None)
