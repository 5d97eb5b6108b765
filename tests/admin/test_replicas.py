"""The replica map of an object: who holds it, who is to, and what is owed, as several nodes come to have it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import play, small
from tests.replication.cluster import BUCKET, Cluster, ClusterNode, cluster, data_of
from tigrislike.admin import replicas
from tigrislike.admin.desk import AdminError, Desk
from tigrislike.admin.replicas import ReplicaMap, replica_map
from tigrislike.bytecache.presence import Present, on_disk
from tigrislike.config import Settings
from tigrislike.metadata import Metadata


def desk_of(node: ClusterNode, *others: ClusterNode) -> Desk:
    """Of a node that asks itself and others what is on their disks."""

    async def presences(content_id: bytes) -> dict[bytes, Present]:
        held = await node.metadata.held(content_id)
        assert held is not None
        return {each.id: on_disk(each.blocks.layout, each.blocks.block_size, held.blobs) for each in (node, *others)}

    settings = Settings(data_dir=node.root, region=node.region)
    desk = Desk(node.metadata, settings, members=node.members, blocks=node.blocks)
    desk.presences = presences
    return desk


async def shown(node: ClusterNode, *others: ClusterNode, key: str = "k", version: str | None = None) -> ReplicaMap:
    await node.metadata.refresh()
    return await replica_map(desk_of(node, *others), BUCKET, key, version)


def disks(found: ReplicaMap) -> list[tuple[str, int, int, int]]:
    return [(disk.region, disk.home_blocks, disk.cache_blocks, disk.here_bytes) for disk in found.versions[0].disks]


def homes(found: ReplicaMap) -> list[tuple[str, str, bool]]:
    return [(home.region, home.state, home.alive) for home in found.versions[0].homes]


def refused(code: str) -> Any:
    return pytest.raises(AdminError, check=lambda error: error.code == code)


def run(folder: Path, story: Any, **regions: str) -> None:
    async def main() -> None:
        async with cluster(folder, **regions) as it:  # type: ignore[arg-type]
            await story(it)

    asyncio.run(main())


def test_the_map_says_what_is_lacking_until_it_is_there(tmp_path: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="iad,sjc")
        for node in it.nodes.values():
            node.metadata.regions.known = frozenset(("iad", "sjc"))
        content_id = await it["a"].put("k", data_of(1))
        before = await shown(it["a"])
        version = before.versions[0]
        assert homes(before) == [("iad", "whole", True)]
        assert (version.wanted_regions, version.missing_regions) == (["iad", "sjc"], ["sjc"])
        assert (version.latest, version.delete_marker, version.inline, version.content) == (
            True,
            False,
            False,
            content_id.hex(),
        )
        assert [(row.task, row.region, row.state) for row in version.owed] == [("replicate", "sjc", "due")]
        size, blocks = version.size, version.disks[0].blocks
        assert disks(before) == [("iad", blocks, 0, size)]
        assert disks(await shown(it["a"], it["b"])) == [("iad", blocks, 0, size), ("sjc", 0, 0, 0)]
        assert await it["b"].get(content_id) == data_of(1)
        async with asyncio.timeout(60):  # a reader has its bytes a moment before they are kept
            while disks(await shown(it["a"], it["b"])) != [("iad", blocks, 0, size), ("sjc", 0, blocks, size)]:
                pass
        await it.work()
        after = await shown(it["b"])
        assert sorted(homes(after)) == [("iad", "whole", True), ("sjc", "whole", True)]
        assert (after.versions[0].missing_regions, after.versions[0].missing_copies) == ([], 0)
        assert after.versions[0].owed == []
        assert disks(await shown(it["a"], it["b"])) == [("iad", blocks, 0, size), ("sjc", blocks, 0, size)]
        await it.silence("a")
        assert ("iad", "whole", False) in homes(await shown(it["b"]))

    run(tmp_path, story, a="iad", b="sjc")


def test_every_version_has_a_map_of_its_own(tmp_path: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        metadata = it["a"].metadata
        await metadata.change_bucket(BUCKET, versioning="Enabled")
        first = await it["a"].put("k", data_of(1))
        second = await it["a"].put("k", data_of(2))
        await it["a"].put("kk", data_of(3))
        await metadata.refresh()
        await metadata.delete_object(await metadata.bucket(BUCKET), "k")
        found = await shown(it["a"])
        assert [each.delete_marker for each in found.versions] == [True, False, False]
        assert [each.content for each in found.versions] == ["", second.hex(), first.hex()]
        assert [each.latest for each in found.versions] == [True, False, False]
        oldest = found.versions[-1].version
        alone = await shown(it["a"], version=oldest)
        assert [(each.version, each.latest) for each in alone.versions] == [(oldest, False)]
        with refused("NoSuchVersion"):
            await shown(it["a"], version=str(int(oldest) - 256))

    run(tmp_path, story, a="iad")


def test_a_dead_letter_for_an_object_is_shown_with_it(tmp_path: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="iad,sjc")
        for node in it.nodes.values():
            node.metadata.regions.known = frozenset(("iad", "sjc"))
        await it["a"].put("k", data_of(1))
        owed = (await shown(it["a"])).versions[0].owed[0]
        zone, _, _ = owed.item.partition(".")
        queue = it["a"].metadata.queue
        for _ in range(queue.parameters.max_attempts):
            it.clock.advance(queue.parameters.max_back_off_ns * 2)
            lease = await queue.lease(bytes.fromhex(zone), early_ns=10**18)
            assert lease is not None
            batch = await queue.claim(bytes.fromhex(zone), lease)
            assert batch is not None
            await queue.fail(batch.claimed[0], "the disk is full")
        left = (await shown(it["a"])).versions[0].owed
        assert [(row.state, row.error) for row in left] == [("dead", "the disk is full")]

    run(tmp_path, story, a="iad", b="sjc")


def test_what_lies_in_the_database_has_no_homes_and_what_is_not_there_is_refused(tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        desk = Desk(metadata, Settings(data_dir=tmp_path))
        with refused("NoSuchBucket"):
            await replica_map(desk, "bucket", "k")
        bucket = await metadata.create_bucket("bucket", "root")
        with refused("NoSuchKey"):
            await replica_map(desk, "bucket", "k")
        with refused("KeyTooLongError"):
            await replica_map(desk, "bucket", "k" * 1025, "null")
        await metadata.put_object(bucket, "k", small(b"bytes"))
        version = (await replica_map(desk, "bucket", "k")).versions[0]
        assert (version.inline, version.homes, version.disks, version.origin, version.owed) == (True, [], [], None, [])

    play("memory", tmp_path, story)


def test_more_versions_than_are_shown_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].metadata.change_bucket(BUCKET, versioning="Enabled")
        monkeypatch.setattr(replicas, "VERSIONS", 2)
        for seed in range(3):
            await it["a"].put("k", data_of(seed, 100))
            found = await shown(it["a"])
            assert (len(found.versions), found.more) == (min(2, seed + 1), seed == 2)

    run(tmp_path, story, a="iad")
