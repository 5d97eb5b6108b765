"""What nodes counted over time, in the database: for plots of caches and throughput that outlive the nodes.

Each node writes what it has counted since its start, as it is, into one row of each of `RESOLUTIONS`: the row of the
slot of time that it is in, in place of what it wrote there earlier. So a slot ends as the last sample of it, a coarse
series costs no reading of the fine one, and whoever writes forgets what is too old of everybody, also of nodes that are
gone. Rates are told from differences, by whoever reads.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .context import Context
from .deciding import SECOND
from .keyspace import unpack_bytes, unpack_int
from .kv.engine import Transaction
from .records import NodeSample
from .records import node_sample as codec


class Resolution(NamedTuple):
    """A series: the length of its slots, and for how long they are kept."""

    step_s: int
    kept_s: int


RESOLUTIONS: Final = (Resolution(15, 3 * 3600), Resolution(300, 3 * 86400))
"""The finest first: 720 and 864 rows of some 80 bytes for each node."""

SAMPLE_S: Final = 15
"""How often a node is to call `note`."""


async def note(tr: Transaction, ctx: Context, sample: NodeSample) -> None:
    """Keep what this node has counted until now."""
    for step_s, kept_s in RESOLUTIONS:
        slot = sample.at_ns // (step_s * SECOND)
        tr.set(ctx.keys.history(step_s, slot, ctx.home.node), codec.encode(sample))
        oldest = slot - kept_s // step_s
        if oldest > 0:
            tr.clear_range(*ctx.keys.history_range(step_s, 0, oldest))


async def samples(
    tr: Transaction, ctx: Context, step_s: int, after: bytes, after_ns: int, before_ns: int, limit: int
) -> list[tuple[bytes, bytes, NodeSample]]:
    """Up to `limit` samples of all nodes at one resolution, in the order of their slots, from the slot of `after_ns` up
    to that of `before_ns`, or after the row `after`: the row's key, the node and its sample."""
    step_ns = step_s * SECOND
    begin, end = ctx.keys.history_range(step_s, after_ns // step_ns, before_ns // step_ns + 1)
    rows = await tr.get_range(after + b"\x00" if after else begin, end, limit=limit, snapshot=True)
    found = []
    for key, value in rows:
        _, at = unpack_int(key, len(ctx.keys.histories))
        _, at = unpack_int(key, at)
        found.append((key, unpack_bytes(key, at)[0], codec.decode(value)))
    return found
