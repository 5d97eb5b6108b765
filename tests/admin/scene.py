"""A scene for operators, made from a seed by the real metadata functions: some things are wrong, and much is not.

- Region `STUCK` has nodes that show no life, and work that has been due for hours.
- A piece of work of region `HERE` is *poisoned*: it failed until it became a dead letter. Whatever made it fail is
  gone, so that it is done once somebody retries it. Beside it another one is failing.
- Bucket `FLOOD` floods region `BUSY`, whose node is alive (for as long as `beat` is called): thousands of items, and a
  few of other buckets between them.

- Given an origin (`tests/origin/lying.py`), bucket `MODELS` migrates from there, and is half done: the origin asked for
  patience, for so long that the rest waits until somebody has it done sooner. What is poisoned is then the copy of an
  object of that origin, which gives it by now.

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
from typing import Any

from msgspec.structs import replace

from tests.origin.lying import Lying
from tigrislike.metadata import MasterKey, Metadata, owed, shadow_migration, shadows
from tigrislike.metadata.context import Context
from tigrislike.metadata.deciding import QueueParameters
from tigrislike.metadata.homes import ANYBODY, region_destination
from tigrislike.metadata.kv import Engine, Transaction, open_engine
from tigrislike.metadata.origins import SHADOW
from tigrislike.metadata.records import Beat, Bucket, Draft, Elsewhere, Node, OriginPlace
from tigrislike.metadata.records import node as node_codec

HERE, BUSY, STUCK = "iad", "ams", "sjc"
MODELS, FLOOD = "models", "flood-of-logs"
WHY = "PeerUnavailable: node 10.1.2.3:9000 answered 503 while it was sending block 7"
WAITS = "s3://origin answers 503: SlowDown"
POISONED_KEY = "checkpoints/step-00000.bin"
OBJECT_TYPE = "application/x-checkpoint"
OBJECT_BYTES = 70_000
"""Of an object of the origin: more than fits into the database."""
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
    migrate: str = ""
    """The item of the migration that waits."""


async def build(
    engine: Engine,
    master: MasterKey,
    seed: int,
    *,
    flood: int = 2000,
    stuck: int = 40,
    origin: Lying | None = None,
    objects: int = 120,
) -> Scene:
    """Make the scene in a store, which is founded where there is none. Prints the seed.

    Args:
        objects: that are put into the origin, and of which a half was adopted.
    """
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

    if origin is None:
        poisoned_zone = await owe(hours_ago(6), HERE, buckets[MODELS], "replicate", 1)
    else:
        poisoned_zone = owed.zone_of(region_destination(HERE), buckets[MODELS].id)
        for number in range(objects):
            key = POISONED_KEY.replace("00000", f"{number:05}")
            origin.put(key, rng.randbytes(OBJECT_BYTES), headers={"Content-Type": OBJECT_TYPE})
        place = OriginPlace(f"s3://{origin.bucket}", origin.endpoint, "auto", "an-access-key", "a-secret-key")
        buckets[MODELS] = await home.use_origin(MODELS, SHADOW, place)
        await _adopt(home, hours_ago(6), buckets[MODELS], origin, [POISONED_KEY], rng)
    poisoned = await _fail(home, poisoned_zone, QUICK.max_attempts)
    migrate = ""
    if origin is not None:
        migrate = await _migrate_half(home, hours_ago(2), buckets[MODELS], origin, rng)
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
        migrate,
    )


async def _adopt(
    metadata: Metadata, ctx: Context, bucket: Bucket, origin: Lying, keys: list[str], rng: random.Random
) -> None:
    """Adopt objects of the origin, whose bytes are then owed to region `HERE`."""
    for key in keys:
        stored = origin.objects[key]
        draft = Draft(len(stored.data), stored.etag, blob=rng.randbytes(16), content_type=OBJECT_TYPE)
        source = Elsewhere(bucket.shadow, key, stored.etag)
        modified_ns = stored.modified_s * 10**9
        adopted = await metadata.engine.transact(shadows.adopt, ctx, bucket, None, key, draft, modified_ns, source)
        assert adopted is not None


async def _migrate_half(metadata: Metadata, ctx: Context, bucket: Bucket, origin: Lying, rng: random.Random) -> str:
    """Be a node that migrates a bucket until its origin asks for patience; the name of the item that waits."""
    engine = metadata.engine
    keys = sorted(origin.objects)
    half = keys[: len(keys) // 2]
    _, begun = await engine.transact(shadow_migration.begin, ctx, bucket.name, "", 0)
    await _adopt(metadata, ctx, bucket, origin, [key for key in half if key != POISONED_KEY], rng)
    walked = replace(begun, after=half[-1], looked=len(half), adopted=len(half) - 1, error=WAITS)
    assert await engine.transact(shadow_migration.advance, ctx, bucket.id, begun, walked) is not None
    zone = owed.zone_of(ANYBODY, bucket.id)
    lease = await metadata.queue.lease(zone, early_ns=10**9)
    batch = await metadata.queue.claim(zone, lease) if lease is not None else None
    assert batch is not None
    (item,) = batch.claimed

    async def wait(tr: Transaction, ctx: Context) -> None:
        await shadow_migration.owe(tr, ctx, bucket.id, vesting_ns=ctx.now_ns() + HOUR_NS)

    assert await metadata.queue.finish(item, wait)
    return f"{zone.hex()}.{item.id.hex()}"


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
async def built(data_dir: Path, seed: int, **options: Any) -> AsyncIterator[tuple[Scene, Engine]]:
    """The scene in the SQLite store of a data directory, on which nodes may be started afterwards, or meanwhile."""
    data_dir.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    master = MasterKey.load(None, data_dir / "master.key", create=True)
    engine = await open_engine(f"sqlite://{data_dir / 'metadata.db'}")
    try:
        yield await build(engine, master, seed, **options), engine
    finally:
        await engine.close()
