"""Two real nodes, of which one has buckets that look through to the other's: what the tests of shadows share."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.nodes import RunningNode, running_node
from tigrislike.config import Settings
from tigrislike.metadata import origins
from tigrislike.metadata.records import OriginPlace
from tigrislike.node import Node


def client(node: RunningNode) -> Any:
    return node.client(retries={"max_attempts": 1}, max_pool_connections=32)


def place_of(node: RunningNode, bucket: str, **changes: str) -> OriginPlace:
    """A bucket of a node, as an origin."""
    fields: dict[str, Any] = {
        "url": f"s3://{bucket}",
        "endpoint": node.endpoint,
        "region": "auto",
        "access_key": node.access_key_id,
        "secret_key": node.secret_access_key,
    }
    return OriginPlace(**{**fields, **changes})


def look_through(node: RunningNode, bucket: str, place: OriginPlace | None, **also: object) -> None:
    """Have a bucket of a running node look through to `place`."""

    async def use() -> None:
        async with Node.opened(Settings(data_dir=node.data_dir, cache_dir=node.data_dir.with_name("beside"))) as beside:
            await beside.metadata.use_origin(bucket, origins.SHADOW, place, **also)

    asyncio.run(use())


@dataclass
class Pair:
    """`store` looks through to `origin`; `at_store` and `at_origin` are their clients."""

    store: RunningNode
    origin: RunningNode
    at_store: Any
    at_origin: Any
    buckets: int = 0

    def bucket(self, **also: object) -> tuple[str, str]:
        """A fresh bucket at the store and the bucket of the origin that it looks through to."""
        self.buckets += 1
        mine, other = f"mine-{self.buckets}", f"other-{self.buckets}"
        self.at_store.create_bucket(Bucket=mine)
        self.at_origin.create_bucket(Bucket=other)
        look_through(self.store, mine, place_of(self.origin, other), **also)
        return mine, other

    def requests(self, bucket: str) -> list[dict[str, Any]]:
        """What the origin has answered about a bucket."""
        lines = [json.loads(line) for line in self.origin.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if str(line.get("path", "")).startswith(f"/{bucket}")]


@contextlib.contextmanager
def running_pair(folder: Path, *flags: str) -> Iterator[Pair]:
    """Two nodes for the length of a `with` block; `flags` are the store's."""
    with (
        running_node(folder / "origin") as origin,
        running_node(folder / "store", "--allow-private-origins", *flags) as store,
    ):
        yield Pair(store, origin, client(store), client(origin))
