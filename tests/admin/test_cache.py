"""What operators do to the cache: see, warm, pin, unpin, evict, scrub; stopped anywhere, and done again."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.admin.pristine import BLOCK, Pristine, files_of, give_away, make, put, settings_of
from tests.bytecache.faults import FailNth, HookedFileSystem
from tigrislike.admin import cache, cache_commands
from tigrislike.admin.cache import Changed, Presence, Target
from tigrislike.admin.cache_commands import CacheError, Command
from tigrislike.bytecache.errors import NotAtSource, PinsFull, SourceUnavailable
from tigrislike.bytecache.footer import FOOTER_BYTES, padded
from tigrislike.bytecache.source import BlobSource
from tigrislike.metadata.errors import NoSuchBucket
from tigrislike.node import Node
from tigrislike.replication.reclaim import reclaim_due

SMALL = 100_000
LARGE = 3 * BLOCK + 5
ALL = Target("bucket")


def file_bytes(size: int) -> int:
    """Of the block files of a blob."""
    whole, rest = divmod(size, BLOCK)
    return whole * (BLOCK + FOOTER_BYTES) + ((padded(rest) + FOOTER_BYTES) if rest else 0)


class World:
    """A store with `a/large`, `a/small` and `b/small`, whose blocks a source has too."""

    def __init__(self, directory: Path) -> None:
        self.settings = settings_of(directory / "data")
        self.pristine = directory / "pristine"
        self.blobs = asyncio.run(make(self.settings, a_large=LARGE, a_small=SMALL, b_small=SMALL))

    def give_away(self, *keys: str) -> None:
        give_away(self.settings, self.pristine, *(self.blobs[key] for key in keys))

    def source(self, **options: Any) -> Pristine:
        return Pristine(self.pristine, **options)

    def do(self, work: Callable[[Node], Awaitable[Any]], source: BlobSource | None = None, **settings: Any) -> Any:
        """In a process's worth of node: opened, used and closed."""

        async def main() -> Any:
            open_source = None if source is None else lambda _: source
            async with Node.opened(replace(self.settings, **settings), open_source=open_source) as node:
                return await work(node)

        return asyncio.run(main())

    def present(self, target: Target = ALL) -> dict[str, Presence]:
        async def look(node: Node) -> list[Presence]:
            async with aclosing(cache.present(node, target)) as found:
                return [presence async for presence in found]

        return {presence.key: presence for presence in self.do(look)}

    def read(self, key: str, source: BlobSource | None = None) -> bytes:
        async def read(node: Node) -> bytes:
            version = await node.metadata.head_object(await node.metadata.bucket("bucket"), key)
            reader = node.blocks.open_blob(version.content, version.size)
            return b"".join([bytes(piece) async for piece in reader.read(0, version.size)])

        return bytes(self.do(read, source))

    def run(self, command: Command, source: BlobSource | None = None) -> int:
        return cache_commands.run(self.settings, command, open_source=None if source is None else lambda _: source)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- What is meant ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("s3://b", Target("b")),
        ("s3://b/", Target("b")),
        ("s3://b/p", Target("b", "p")),
        ("s3://b//p/", Target("b", "/p/")),
        ("s3://b/s3://c", Target("b", "s3://c")),
    ],
)
def test_places_are_read_as_they_stand(url: str, target: Target) -> None:
    assert Target.parse(url) == target


@pytest.mark.parametrize("url", ["", "bucket", "s3:/b", "s3://", "s3:///k", "http://b/k", "S3://b"])
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected s3://BUCKET"):
        Target.parse(url)


# -- ls --------------------------------------------------------------------------------------------------------------


def test_what_is_here_is_told_by_object(world: World) -> None:
    world.give_away("a/small")
    os.unlink(world.settings.cache_dir / f"home/{(hex_ := world.blobs['a/large'].hex())[:2]}/{hex_}.3")
    assert world.present() == {
        "a/large": Presence("a/large", LARGE, 4, 3, 0, 3 * BLOCK, False),
        "a/small": Presence("a/small", SMALL, 1, 0, 0, 0, False),
        "b/small": Presence("b/small", SMALL, 1, 1, 0, SMALL, False),
    }
    assert world.do(lambda node: cache.warm(node, Target("bucket", "a/s")), world.source()).fetched_bytes == SMALL
    assert world.present(Target("bucket", "a/s")) == {
        "a/small": Presence("a/small", SMALL, 1, 0, 1, SMALL, True),
    }
    assert world.present(Target("bucket", "nothing")) == {}
    with pytest.raises(NoSuchBucket):
        world.present(Target("other"))


def test_many_objects_come_page_by_page_and_deleted_ones_are_left_out(world: World) -> None:
    async def main(node: Node) -> tuple[int, set[str]]:
        for number in range(5):
            await put(node, f"c/{number}", b"x" * 20_000)
        list_objects = node.metadata.list_objects
        bucket = await node.metadata.bucket("bucket")

        async def two_at_a_time(*args: Any, **kwargs: Any) -> Any:
            page = await list_objects(*args, **kwargs, limit=2)
            if page.entries[0][0] == "c/2":
                await node.metadata.delete_object(bucket, "c/3")
            return page

        node.metadata.list_objects = two_at_a_time  # type: ignore[method-assign]
        count, _ = await cache.size_of(node, Target("bucket", "c/"))
        async with aclosing(cache.objects(node, Target("bucket", "c/"))) as found:
            return count, {stored.key async for stored in found}

    count, keys = world.do(main)
    assert count == 5, "c/3 was there when it was listed"
    assert keys == {"c/0", "c/1", "c/2", "c/4"}


# -- warm ------------------------------------------------------------------------------------------------------------


def test_warming_fetches_what_is_not_here_and_pins_it(world: World) -> None:
    large = world.read("a/large")
    world.give_away("a/large", "a/small")
    source, told = world.source(), []
    done = world.do(lambda node: cache.warm(node, Target("bucket", "a/"), told.append), source)
    assert (done.objects, done.bytes, done.fetched_bytes, done.failed) == (2, LARGE + SMALL, LARGE + SMALL, ())
    assert sum(told) == LARGE + SMALL
    assert {key: here.pinned for key, here in world.present().items()} == {
        "a/large": True,
        "a/small": True,
        "b/small": False,
    }
    assert world.read("a/large") == large, "from the cache: no source was given"

    again, told = world.source(), []
    done = world.do(lambda node: cache.warm(node, ALL, told.append), again)
    assert (done.objects, done.fetched_bytes) == (3, 0)
    assert sum(told) == LARGE + 2 * SMALL, "what was here counts as done"
    assert again.asked == []


def test_warming_that_is_stopped_is_gone_on_with(world: World) -> None:
    large = world.read("a/large")
    world.give_away("a/large")
    source = world.source(reads_until_stuck=2)

    async def stop(node: Node) -> None:
        told: list[int] = []
        two_are_here = asyncio.Event()

        def tell(size: int) -> None:
            told.append(size)
            if len(told) == 4:  # two small objects that were here, and two blocks
                two_are_here.set()

        warming = asyncio.ensure_future(cache.warm(node, ALL, tell))
        await source.stuck.wait()
        await two_are_here.wait()
        warming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await warming

    world.do(stop, source)
    assert len(files_of(world.settings, "cache")) == 2
    assert files_of(world.settings, "filling") == set()
    rest = world.source()
    done = world.do(lambda node: cache.warm(node, ALL), rest)
    assert len(rest.asked) == 2
    assert 0 < done.fetched_bytes <= 2 * BLOCK
    assert world.read("a/large") == large


@pytest.mark.parametrize("refusal", [NotAtSource, SourceUnavailable])
def test_what_cannot_be_had_is_named_and_the_rest_is_fetched(
    world: World, refusal: type[NotAtSource] | type[SourceUnavailable]
) -> None:
    world.give_away("a/large", "a/small", "b/small")
    source = world.source()
    source.refuses[world.blobs["a/small"]] = refusal
    done = world.do(lambda node: cache.warm(node, ALL), source)
    assert done.objects == 2
    assert [key for key, _ in done.failed] == ["a/small"]
    assert "is refused" in done.failed[0][1]
    source.refuses.clear()
    assert world.do(lambda node: cache.warm(node, ALL), source).failed == ()


def test_a_source_that_falls_silent_is_given_up(world: World) -> None:
    world.give_away("a/small")
    source = world.source(reads_until_stuck=0)
    done = world.do(lambda node: cache.warm(node, Target("bucket", "a/s")), source, fill_timeout_s=0.1)
    assert [key for key, _ in done.failed] == ["a/small"]
    assert source.stuck.is_set()


def test_without_a_source_only_what_is_here_is_warm(world: World) -> None:
    world.give_away("a/small")
    done = world.do(lambda node: cache.warm(node, ALL))
    assert done.objects == 2
    assert [key for key, _ in done.failed] == ["a/small"]


def test_a_cache_too_small_for_the_pins_says_so_and_keeps_within_its_size(world: World) -> None:
    world.give_away("a/large")
    capacity = 3 * (BLOCK + FOOTER_BYTES)

    async def warm(node: Node) -> None:
        with pytest.raises(PinsFull):
            await cache.warm(node, ALL)
        assert (await node.blocks.usage()).used_bytes <= capacity

    world.do(warm, world.source(), cache_bytes=capacity)


def test_objects_that_lie_beside_their_record_are_always_warm(world: World) -> None:
    from tigrislike.metadata.records import Draft

    async def main(node: Node) -> tuple[Any, list[int]]:
        bucket = await node.metadata.bucket("bucket")
        await node.metadata.put_object(bucket, "c/inline", Draft(3, "etag", inline=b"abc"))
        await node.metadata.put_object(bucket, "c/empty", Draft(0, "etag", inline=b""))
        told: list[int] = []
        return await cache.warm(node, Target("bucket", "c/"), told.append), told

    done, told = world.do(main)
    assert (done.objects, done.bytes, done.fetched_bytes, sum(told)) == (2, 3, 0, 3)
    assert world.present(Target("bucket", "c/"))["c/inline"] == Presence("c/inline", 3, 0, 0, 0, 3, False)


def test_what_dies_while_it_is_warmed_leaves_no_pin(world: World) -> None:
    async def main(node: Node) -> Any:
        pin = node.blocks.pin

        async def pin_too_late(blob_id: bytes) -> None:
            await node.metadata.delete_object(await node.metadata.bucket("bucket"), "a/small")
            assert (await reclaim_due(node.metadata, node.blocks)).contents == 1
            await pin(blob_id)

        node.blocks.pin = pin_too_late  # type: ignore[method-assign]
        done = await cache.warm(node, Target("bucket", "a/small"))
        assert await node.blocks.pins() == []
        return done

    assert world.do(main, reclaim_grace_s=0.0).fetched_bytes == 0


def test_a_cache_that_nobody_has_looked_through_is_looked_through_first(world: World) -> None:
    world.give_away("a/large", "a/small")
    world.do(lambda node: cache.warm(node, Target("bucket", "a/s")), world.source())
    for path in world.settings.cache_dir.glob("index.sqlite*"):
        path.unlink()
    assert not world.do(cache.status).usage.ready
    done = world.do(lambda node: cache.warm(node, Target("bucket", "a/")), world.source())
    assert (done.objects, done.fetched_bytes) == (2, LARGE)
    usage = world.do(cache.status).usage
    assert usage.ready
    assert usage.used_bytes == usage.pinned_bytes == file_bytes(LARGE) + file_bytes(SMALL)


# -- pin, unpin, evict -----------------------------------------------------------------------------------------------


def test_pinned_objects_stay_and_others_are_evicted(world: World) -> None:
    world.give_away("a/large", "a/small")
    world.do(lambda node: cache.warm(node, Target("bucket", "a/")), world.source())
    assert world.do(lambda node: cache.evict(node, ALL)) == Changed(3, 0, 0, left=2)
    assert len(files_of(world.settings, "cache")) == 5

    assert world.do(lambda node: cache.unpin(node, Target("bucket", "a/s"))) == Changed(1, 1)
    assert world.do(lambda node: cache.unpin(node, Target("bucket", "a/s"))) == Changed(1, 0)
    assert world.do(lambda node: cache.evict(node, ALL)) == Changed(3, 1, file_bytes(SMALL), left=1)
    assert {blob for blob, _ in files_of(world.settings, "cache")} == {world.blobs["a/large"]}
    assert files_of(world.settings, "home") == {(world.blobs["b/small"], 0)}, "what only this node has stays"

    assert world.do(lambda node: cache.pin(node, ALL)) == Changed(3, 3)
    assert world.do(cache.status).pins == 3
    assert world.do(lambda node: cache.unpin(node, ALL)) == Changed(3, 3)
    assert world.do(cache.status).pins == 0


# -- The commands ----------------------------------------------------------------------------------------------------


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_commands_tell_people_and_programs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.give_away("a/large", "a/small")
    place = Target("bucket", "a/")

    assert world.run(cache_commands.warm(place, False), world.source()) == 0
    assert "2 of 2 objects are here and pinned: 6.4 MB, 6.4 MB of them fetched now" in capsys.readouterr().out
    assert world.run(cache_commands.warm(place, True), world.source()) == 0
    assert json_lines(capsys.readouterr().out) == [
        {"objects": 2, "bytes": LARGE + SMALL, "fetched_bytes": 0, "failed": []}
    ]

    assert world.run(cache_commands.ls(ALL, False)) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["key", "a/large", "a/small", "b/small", "3"]
    assert "3 objects, 6.5 MB of 6.5 MB here" in out
    assert world.run(cache_commands.ls(ALL, True)) == 0
    assert [line["key"] for line in json_lines(capsys.readouterr().out)] == ["a/large", "a/small", "b/small"]
    assert world.run(cache_commands.ls(Target("bucket", "z"), False)) == 0
    assert capsys.readouterr().out == "0 objects, 0 bytes of 0 bytes here\n"

    assert world.run(cache_commands.stat(True)) == 0
    (status,) = json_lines(capsys.readouterr().out)
    assert status["pins"] == 2
    assert status["usage"]["blocks"] == status["usage"]["pinned_blocks"] == 5
    assert status["usage"]["policy"] == "s3fifo"
    assert status["usage"]["capacity_bytes"] is None
    assert status["scrub"]["blocks"] == 0
    assert world.run(cache_commands.stat(False)) == 0
    out = capsys.readouterr().out
    assert "as the disk allows" in out
    assert "in 5 blocks; 2 pins" in out
    assert "never" in out

    assert world.run(cache_commands.evict(ALL, False)) == 0
    assert "3 objects: 0 bytes evicted; 2 are pinned and stay" in capsys.readouterr().out
    assert world.run(cache_commands.unpin(place, False)) == 0
    assert "2 objects may be evicted; 2 pins dropped" in capsys.readouterr().out
    assert world.run(cache_commands.evict(ALL, True)) == 0
    evicted = file_bytes(LARGE) + file_bytes(SMALL)
    assert json_lines(capsys.readouterr().out) == [{"objects": 3, "blobs": 2, "bytes": evicted, "left": 0}]
    assert world.run(cache_commands.pin(place, False)) == 0
    assert "2 objects pinned" in capsys.readouterr().out


def test_objects_are_shown_a_thousand_at_a_time(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_commands, "_PAGE", 2)
    assert world.run(cache_commands.ls(ALL, False)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["key", "a/large", "a/small", "key", "b/small", "3"]


def test_keys_are_no_commands_to_a_terminal(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async def main(node: Node) -> None:
        await put(node, "c/\x1b[31m[bold]\n", b"x" * 20_000)

    world.do(main)
    target = Target("bucket", "c/\x1b")
    assert world.run(cache_commands.ls(target, False)) == 0
    assert "c/\\x1b[31m[bold]\\n" in capsys.readouterr().out
    give_away(world.settings, world.pristine, *(blob for blob, _ in files_of(world.settings, "home")))
    (world.pristine / "empty").mkdir()
    assert world.run(cache_commands.warm(target, False), Pristine(world.pristine / "empty")) == 1
    said = capsys.readouterr()
    assert "tigrislike: c/\\x1b[31m[bold]\\n: " in said.err
    assert "\x1b[31m" not in said.err + said.out


def test_what_takes_long_shows_how_far_it_is(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.give_away("a/large")
    monkeypatch.setattr(cache_commands, "_SHOW_AFTER_S", 3600.0)
    assert world.run(cache_commands.unpin(ALL, False)) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cache_commands, "_SHOW_AFTER_S", 0.0)
    for command, words in (
        (cache_commands.warm(ALL, True), ["warming s3://bucket/", "6.5/6.5 MB"]),
        (cache_commands.evict(ALL, True), ["s3://bucket/"]),
        (cache_commands.scrub(True), ["scrubbing", "100%"]),
    ):
        assert world.run(command, world.source()) == 0
        said = capsys.readouterr()
        assert all(word in said.err for word in words), said.err
        assert len(said.out.splitlines()) == 1, "what is for programs is not mixed with it"


def test_scrubbing_by_hand_tells_what_is_damaged(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.give_away("a/large")
    world.do(lambda node: cache.warm(node, ALL), world.source())
    assert world.run(cache_commands.scrub(False)) == 0
    assert "6 blocks (6.5 MB) verified: 0 healed, 0 damaged" in capsys.readouterr().out

    def damage(tree: str, blob_id: bytes, number: int) -> str:
        name = f"{tree}/{blob_id.hex()[:2]}/{blob_id.hex()}.{number}"
        path = world.settings.cache_dir / name
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"damaged!")
        return name

    damage("cache", world.blobs["a/large"], 1)
    lost = damage("home", world.blobs["b/small"], 0)
    assert world.run(cache_commands.scrub(False)) == 1
    said = capsys.readouterr()
    assert "1 healed, 1 damaged" in said.out
    assert f"tigrislike: {lost} is damaged, and nobody else has it; of bucket/b/small (version " in said.err
    assert len(files_of(world.settings, "cache")) == 3, "the damaged copy was dropped"
    assert world.run(cache_commands.stat(False)) == 0
    out = capsys.readouterr().out
    assert lost in out
    assert "UTC" in out
    assert world.run(cache_commands.scrub(True), world.source()) == 1, "the source lacks it too"
    capsys.readouterr()

    copy = world.pristine / f"{world.blobs['b/small'].hex()}.0"
    copy.write_bytes((world.settings.cache_dir / lost).read_bytes())
    with copy.open("r+b") as file:
        file.write(b"healthy!")
    world.run(cache_commands.scrub(True), world.source())
    assert json_lines(capsys.readouterr().out)[0]["healed"] == 1
    assert (world.settings.cache_dir / lost).read_bytes()[:8] == b"healthy!"


def test_what_cannot_be_done_is_said_in_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="NoSuchBucket: "):
        world.run(cache_commands.ls(Target("other"), False))
    nowhere = settings_of(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="there is no store in"):
        cache_commands.run(nowhere, cache_commands.stat(False))
    assert not (tmp_path / "nowhere").exists(), "nothing is made for a slip of the pen"
    with pytest.raises(CacheError, match="was made with blocks of"):
        cache_commands.run(replace(world.settings, block_size=2 * BLOCK), cache_commands.stat(False))

    (world.settings.data_dir / "metadata.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CacheError, match=r"metadata\.db"):
        world.run(cache_commands.stat(False))

    async def interrupted(_: Node) -> int:
        raise KeyboardInterrupt

    other = World(tmp_path / "other")
    with pytest.raises(CacheError, match="run it again to go on"):
        other.run(interrupted)

    async def without_its_disk(node: Node) -> int:
        node.blocks.fs = HookedFileSystem(fail)
        fail.arm(1, forever=True)
        return await cache_commands.stat(False)(node)

    fail = FailNth(errno.EIO)
    with pytest.raises(CacheError, match="asking for the space of"):
        other.run(without_its_disk)


def test_the_settings_of_the_store_are_the_servers_to_change(world: World) -> None:
    """Looking at a cache without the node's flags does not arrange it anew."""

    async def main() -> None:
        async with Node.opened(world.settings, policy="lru"):
            pass

    asyncio.run(main())
    assert world.do(cache.status).usage.policy == "lru"
