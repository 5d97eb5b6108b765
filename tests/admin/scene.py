"""A scene for operators, made from a seed by the real metadata functions: three things are wrong, and much is not.

- Region `STUCK` has nodes that show no life, and work that has been due for hours.
- A piece of work of region `HERE` is *poisoned*: it failed until it became a dead letter. Whatever made it fail is
  gone, so that it is done once somebody retries it. Beside it another one is failing.
- Bucket `FLOOD` floods region `BUSY`, whose node is alive (for as long as `beat` is called): thousands of items, and a
  few of other buckets between them.

Nothing here is done by a consumer of its own accord; a node of region `HERE` that is started on the store does what is
due there. The oldest thing that needs somebody is `Scene.poisoned`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tigrislike.metadata import MasterKey, Metadata, owed
from tigrislike.metadata.context import Context
from tigrislike.metadata.deciding import QueueParameters
from tigrislike.metadata.homes import region_destination
from tigrislike.metadata.kv import Engine, Transaction, open_engine
from tigrislike.metadata.records import Beat, Bucket, Node
from tigrislike.metadata.records import node as node_codec

HERE, BUSY, STUCK = "iad", "ams", "sjc"
MODELS, FLOOD = "models", "flood-of-logs"
WHY = "PeerUnavailable: node 10.1.2.3:9000 answered 503 while it was sending block 7"
HOUR_NS = 3600 * 10**9

QUICK = QueueParameters(
    back_off_ns=1, max_back_off_ns=1, max_attempts=3, poll_ns=1, pointer_lease_ns=10**9, min_inactive_ns=60 * 10**9
)
"""Of whoever makes the scene: failures follow each other at once."""


@dataclass
class Scene:
    """What was made; items by their names for the admin API."""

    seed: int
    buckets: dict[str, Bucket]
    poisoned: str
    failing: str
    stuck_zone: str
    flooded_zone: str
    flood: int
    stuck: int
    nodes: dict[str, bytes]


async def build(engine: Engine, master: MasterKey, seed: int, *, flood: int = 2000, stuck: int = 40) -> Scene:
    """Make the scene in a store, which is founded where there is none. Prints the seed."""
    print(f"scene of seed {seed}")
    rng = random.Random(seed)
    nodes = {name: rng.randbytes(16) for name in ("busy", "stuck", "stuck too")}
    home = await Metadata.open(engine, master_key=master, node_id=b"maker-of-a-scene", region=HERE, queue=QUICK)
    now_ns = home.now_ns()

    def hours_ago(hours: float) -> Context:
        return dataclasses.replace(home.context, now_ns=lambda: now_ns - int(hours * HOUR_NS))

    for name, node in nodes.items():
        region = BUSY if name == "busy" else STUCK
        await engine.transact(_joined_before, home.context, Node(node, region, f"http://{region}.example:9000"))
        age_ns = 0 if name == "busy" else 5 * HOUR_NS
        await home.beat(node, Beat(now_ns - age_ns, 1, b"", 10**12, rng.randrange(10**11, 10**12), 0, 10**9, 10**11))
    buckets = {}
    for name in (MODELS, FLOOD, *(f"team-{number}" for number in range(8))):
        buckets[name] = await home.create_bucket(name, "root")

    async def owe(ctx: Context, region: str, bucket: Bucket, task: str, count: int, vesting_ns: int = 0) -> bytes:
        zone = owed.zone_of(region_destination(region), bucket.id)
        subjects = [rng.randbytes(16) for _ in range(count)]

        async def some(tr: Transaction, some: list[bytes]) -> None:
            await owed.enqueue_all(tr, ctx, zone, task, some, priority=1, bucket=bucket.id)

        for first in range(0, count, 100):
            await engine.transact(some, subjects[first : first + 100])
        return zone

    # Much that is well: work that is not due yet
    async def later(tr: Transaction) -> None:
        for bucket in buckets.values():
            zone = owed.zone_of(region_destination(HERE), bucket.id)
            due_ns = now_ns + rng.randrange(1, 48) * HOUR_NS
            await owed.enqueue(
                tr, home.context, zone, "warm", bucket.id, vesting_ns=due_ns, priority=2, bucket=bucket.id
            )

    await engine.transact(later)

    poisoned_zone = await owe(hours_ago(6), HERE, buckets[MODELS], "replicate", 1)
    poisoned = await _fail(home, poisoned_zone, QUICK.max_attempts)
    failing_zone = await owe(hours_ago(1), HERE, buckets["team-1"], "replicate", 1)
    failing = await _fail(home, failing_zone, 1)

    stuck_zone = await owe(hours_ago(4), STUCK, buckets[MODELS], "replicate", stuck // 2)
    for name in ("team-2", "team-3"):
        await owe(hours_ago(rng.uniform(1, 3)), STUCK, buckets[name], "replicate", stuck // 4)

    flooded_zone = await owe(hours_ago(0.005), BUSY, buckets[FLOOD], "replicate", flood)
    for number in range(8):
        await owe(hours_ago(0.001), BUSY, buckets[f"team-{number}"], "replicate", 3)
    return Scene(
        seed,
        buckets,
        poisoned,
        failing,
        stuck_zone.hex(),
        flooded_zone.hex(),
        flood,
        stuck // 2 + 2 * (stuck // 4),
        nodes,
    )


async def _joined_before(tr: Transaction, ctx: Context, node: Node) -> None:
    """A node that joined when there was nothing yet: its region owes no look at what there was before it."""
    tr.set(ctx.keys.node(node.node), node_codec.encode(node))


async def beat(metadata: Metadata, scene: Scene, count: int) -> None:
    """Let the node of region `BUSY` show life: to be called every two seconds, with ever larger counts from 2 on."""
    sign = Beat(metadata.now_ns(), count, b"", 10**12, 5 * 10**11, 0, 10**9, 10**11)
    await metadata.beat(scene.nodes["busy"], sign)


async def _fail(metadata: Metadata, zone: bytes, times: int) -> str:
    """Be a consumer whose runs fail; the item's name."""
    name = ""
    for _ in range(times):
        claimed = []
        while not claimed:  # the next vests a nanosecond later
            lease = await metadata.queue.lease(zone, early_ns=10**9)
            batch = await metadata.queue.claim(zone, lease) if lease is not None else None
            claimed = batch.claimed if batch is not None else []
            await asyncio.sleep(0)
        (item,) = claimed
        assert await metadata.queue.fail(item, WHY)
        name = f"{zone.hex()}.{item.id.hex()}"
    return name


@asynccontextmanager
async def built(data_dir: Path, seed: int, **options: int) -> AsyncIterator[tuple[Scene, Engine]]:
    """The scene in the SQLite store of a data directory, on which nodes may be started afterwards, or meanwhile."""
    data_dir.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    master = MasterKey.load(None, data_dir / "master.key", create=True)
    engine = await open_engine(f"sqlite://{data_dir / 'metadata.db'}")
    try:
        yield await build(engine, master, seed, **options), engine
    finally:
        await engine.close()
