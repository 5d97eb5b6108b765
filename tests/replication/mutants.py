"""Defects, planted one at a time into the functions of the queue as they are.

A mutant is a function whose source has one piece replaced, put in the place of the real one wherever that is used.
"""

from __future__ import annotations

import inspect
import textwrap
from types import ModuleType
from typing import NamedTuple

import pytest

from tigrislike.metadata import deciding, leasing, overseeing, owed

MODULES = (owed, leasing, overseeing, deciding)


PLAIN = "two who enqueue, one consumer"


class Mutant(NamedTuple):
    """In `function` of `module`, `new` stands for `old`, which occurs there once. `world` is the one of
    `test_model_check.WORLDS` that shows it soonest."""

    module: ModuleType
    function: str
    old: str
    new: str
    world: str = PLAIN

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        real = getattr(self.module, self.function)
        source = textwrap.dedent(inspect.getsource(real))
        assert source.count(self.old) == 1, f"{self.function} has changed: say anew what its defect is"
        made: dict[str, object] = {}
        exec(source.replace(self.old, self.new), self.module.__dict__, made)
        for module in MODULES:
            if getattr(module, self.function, None) is real:
                patch.setattr(module, self.function, made[self.function])


MUTANTS = {
    "enqueue reads the mark by snapshot": Mutant(
        owed, "ask", "tr.get(ctx.keys.queue_zone(zone))", "tr.get(ctx.keys.queue_zone(zone), snapshot=True)"
    ),
    "that nothing is due is read by snapshot": Mutant(
        leasing, "_rest", "tr.get_range(begin, end, limit=1)", "tr.get_range(begin, end, limit=1, snapshot=True)"
    ),
    "whoever had a lease may finish": Mutant(
        leasing, "_leased", "item.lease == claimed.lease", "True", world="one who enqueues, two consumers"
    ),
    "a deferral is not written into the mark": Mutant(
        leasing, "_rest", "tr.set(keys.queue_zone(zone), deciding.mark_of(rested.vesting_ns))", "pass"
    ),
    "a failure is not announced": Mutant(
        leasing, "fail", "if again is not None:", "if False:", world="two consumers at one item that recurs"
    ),
    "what is given back is not announced": Mutant(
        leasing,
        "release",
        "await announce(tr, ctx, zone, 0, await marks[zone])",
        "pass",
        world="two consumers that are stopped at one item that recurs",
    ),
    "a zone that nobody had room for goes": Mutant(
        leasing,
        "claim",
        "if moved or left:",
        "if left and not moved:\n        put_pointer(tr, ctx, zone, pointer, None)\n"
        "        tr.clear(keys.queue_zone(zone))\n    elif moved:",
        world="a consumer with room for none",
    ),
    "a recurrence is not announced": Mutant(
        leasing,
        "finish",
        "await announce(tr, ctx, claimed.zone, again.vesting_ns,",
        "str(",
        world="two consumers at one item that recurs",
    ),
    "a lost lease on the pointer claims all the same": Mutant(
        leasing,
        "claim",
        "pointer.lease != pointer_lease",
        "False",
        world="one who enqueues, a consumer and a collector",
    ),
    "a recurrence under lease is lost at the end": Mutant(deciding, "finished", "if item.again_ns < 0:", "if True:"),
    "a recurrence takes the item from its holder": Mutant(deciding, "recurred", "if item.lease:", "if False:"),
    "a deferred pointer is not pulled": Mutant(
        deciding, "announcement", "Announcement.PULL if vesting_ns < deferred_ns else", ""
    ),
    "a pointer that moves leaves its old place in the order": Mutant(
        owed, "put_pointer", "if old is not None:", "if False:"
    ),
    "an item that moves leaves its old place in the order": Mutant(
        owed, "put_item", "if was is not None and was != becomes:", "if was is not None and new is None:"
    ),
    "only the most urgent items keep a zone awake": Mutant(
        leasing,
        "_rest",
        "for priority in PRIORITIES]",
        "for priority in PRIORITIES[:1]]",
        world="one who enqueues, two consumers",
    ),
    "a zone is empty when nothing is due": Mutant(leasing, "_rest", "min(heads, default=None)", "None"),
    "a zone rests until its last item": Mutant(
        leasing, "_rest", "min(heads", "max(heads", world="one who enqueues, two consumers"
    ),
    "the mark of a pointer under lease defers it": Mutant(
        leasing, "lease", "if deciding.deferred_ns(mark):", "if False:"
    ),
    "a zone goes, and its pointer stays in the order": Mutant(
        leasing, "_rest", "put_pointer(tr, ctx, zone, pointer, None)", "tr.clear(keys.queue_pointer(zone))"
    ),
    "an item that was leased once is never claimed again": Mutant(
        deciding, "taken", "if item.vesting_ns > now_ns:", "if item.lease or item.vesting_ns > now_ns:"
    ),
    "a pointer that was leased once is never leased again": Mutant(
        deciding, "leased", "if pointer.vesting_ns >", "if pointer.lease or pointer.vesting_ns >"
    ),
    "a clock set back shortens a lease": Mutant(
        deciding,
        "extended",
        "max(item.vesting_ns, now_ns + parameters.item_lease_ns)",
        "now_ns + parameters.item_lease_ns",
        world="a holder whose clock is set back",
    ),
    "what is done still counts as waiting": Mutant(leasing, "finish", "done=1, ", ""),
    "what fails stays on the list when it is done": Mutant(
        owed, "_put_failing", "if was is not None:", "if was is not None and becomes is not None:"
    ),
    "a run that is given back counts as under way": Mutant(
        leasing,
        "release",
        "returned=1",
        "returned=0",
        world="two consumers that are stopped at one item that recurs",
    ),
    "a run counts as begun again when its lease has ended": Mutant(
        leasing, "claim", "+= not old.lease", "+= 1", world="one who enqueues, a consumer and a collector"
    ),
    "a retried letter is not announced": Mutant(
        overseeing,
        "retry",
        "await announce(tr, ctx, zone, 0, mark)",
        "pass",
        world="one who enqueues, a consumer that fails, an operator",
    ),
    "what an operator hurries is not announced": Mutant(
        overseeing, "delay", "await announce(tr, ctx, zone, vesting_ns, mark)", "pass", world="an operator in a hurry"
    ),
    "who claims again does not cover what recurred before": Mutant(
        deciding, "taken", ", again_ns=-1", "", world="two consumers at one item that recurs"
    ),
}
