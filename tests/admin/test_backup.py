"""Backups: complete while the node writes and deletes, cheap to repeat, whole at every moment; and the documents' own
commands, walked from a store to its restored copy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import fresh_url
from tests.crash.requests import Client
from tests.crash.writers import PLAIN, VERSIONED, Progress, Writer
from tests.nodes import RunningNode, running_node, start_node
from tigrislike.admin.backup import BackupError, back_up
from tigrislike.admin.fsck import fsck
from tigrislike.bytecache.errors import BlobBusy
from tigrislike.bytecache.hold import holding, passing
from tigrislike.config import Settings
from tigrislike.metadata.errors import BucketAlreadyOwnedByYou
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.records import Draft
from tigrislike.node import Node
from tigrislike.replication.reclaim import reclaim_due

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = 2 * 1024 * 1024
SMALL_BLOCK = 64 * 1024


def data_of(key: str, size: int = SMALL_BLOCK + 10_000) -> bytes:
    return random.Random(key).randbytes(size)


def settings_of(data_dir: Path, block: int = SMALL_BLOCK) -> Settings:
    return Settings(data_dir=data_dir, metadata=f"sqlite://{data_dir}/metadata.db", block_size=block, reserve_bytes=0)


async def _put(settings: Settings, *keys: str) -> None:
    async with Node.opened(settings) as node:
        await node.ensure_root()
        with contextlib.suppress(BucketAlreadyOwnedByYou):
            await node.metadata.create_bucket("bucket", "root")
        bucket = await node.metadata.bucket("bucket")
        for key in keys:
            writer = node.blocks.create_blob()
            await writer.write(data_of(key))
            await writer.finish()
            await node.metadata.put_object(bucket, key, Draft(len(data_of(key)), "etag", blob=writer.blob_id))
            await node.blocks.publish(writer.blob_id)


async def _delete(settings: Settings, key: str) -> None:
    async with Node.opened(replace(settings, reclaim_grace_s=0.0)) as node:
        await node.metadata.delete_object(await node.metadata.bucket("bucket"), key)
        await reclaim_due(node.metadata, node.blocks)


async def _read(settings: Settings, *, strays: bool = False) -> dict[str, bytes]:
    """Every object, and fsck's word that nothing is amiss, or only that there are files too many (`strays`)."""
    async with Node.opened(settings) as node:
        findings = [finding async for finding in fsck(node.metadata, node.blocks)]
        assert [finding for finding in findings if not strays or finding.kind != "file-orphan"] == []
        found = {}
        page = await node.metadata.list_objects(await node.metadata.bucket("bucket"))
        for key, _ in page.entries:
            version = await node.metadata.head_object(await node.metadata.bucket("bucket"), key)
            reader = node.blocks.open_blob(version.content, version.size)
            found[key] = b"".join([bytes(piece) async for piece in reader.read(0, version.size)])
        return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a store with two objects of two blocks each."""
    made = settings_of(tmp_path / "data")
    asyncio.run(_put(made, "one", "two"))
    return made


def restored(backup_dir: Path, to: Path, settings: Settings, *, strays: bool = False) -> dict[str, bytes]:
    """What a store restored from a backup holds."""
    shutil.copytree(backup_dir, to)
    shutil.copy(settings.data_dir / "master.key", to / "master.key")
    return asyncio.run(_read(settings_of(to), strays=strays))


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_backup_is_a_data_directory(settings: Settings, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = back_up(settings, tmp_path / "backup", report=lambda blocks, size: told.append((blocks, size)))
    assert (made.blocks, made.copied_blocks, made.removed_blocks, made.missing) == (4, 4, 0, 0)
    assert told[-1] == (made.blocks, made.bytes)
    assert not (tmp_path / "backup" / "master.key").exists()
    assert (tmp_path / "backup").stat().st_mode & 0o77 == 0
    assert (tmp_path / "backup" / "metadata.db").stat().st_mode & 0o77 == 0
    assert restored(tmp_path / "backup", tmp_path / "restored", settings) == {
        "one": data_of("one"),
        "two": data_of("two"),
    }


def test_a_second_backup_copies_what_is_new_and_removes_what_is_gone(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, tmp_path / "backup")
    asyncio.run(_put(settings, "three"))
    asyncio.run(_delete(settings, "one"))
    made = back_up(settings, tmp_path / "backup")
    assert (made.blocks, made.copied_blocks, made.removed_blocks) == (4, 2, 2)
    assert restored(tmp_path / "backup", tmp_path / "restored", settings) == {
        "two": data_of("two"),
        "three": data_of("three"),
    }


def test_links_take_no_space_and_outlive_their_source(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, tmp_path / "backup", link=True)
    block = next((tmp_path / "backup" / "cache" / "home").rglob("*.0"))
    assert block.stat().st_nlink == 2
    asyncio.run(_delete(settings, "one"))
    assert set(restored(tmp_path / "backup", tmp_path / "restored", settings)) == {"one", "two"}


def test_the_master_key_is_copied_only_if_asked_for(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, tmp_path / "backup", with_master_key=True)
    key = tmp_path / "backup" / "master.key"
    assert key.read_bytes() == (settings.data_dir / "master.key").read_bytes()
    assert key.stat().st_mode & 0o77 == 0
    inline = replace(settings, master_key="5a" * 32)
    with pytest.raises(BackupError, match="not in a file"):
        back_up(inline, tmp_path / "other", with_master_key=True)


def test_a_committed_blob_that_is_not_published_yet_is_in_the_backup(settings: Settings, tmp_path: Path) -> None:
    home = settings.cache_dir / "home"
    blocks = sorted(home.rglob("*.*"))
    blob = blocks[0].name.split(".")[0]
    incoming = settings.cache_dir / "incoming" / blob
    incoming.mkdir()
    for block in blocks:
        if block.name.startswith(blob):
            block.rename(incoming / block.name.split(".")[1])
    made = back_up(settings, tmp_path / "backup")
    assert (made.blocks, made.missing) == (4, 0)
    assert len(restored(tmp_path / "backup", tmp_path / "restored", settings)) == 2


def test_a_block_that_is_missing_is_counted_and_the_rest_copied(settings: Settings, tmp_path: Path) -> None:
    next((settings.cache_dir / "home").rglob("*.1")).unlink()
    made = back_up(settings, tmp_path / "backup")
    assert (made.copied_blocks, made.missing) == (3, 1)


def test_nothing_is_given_back_while_a_backup_holds_the_store(settings: Settings) -> None:
    async def main() -> None:
        async with Node.opened(replace(settings, reclaim_grace_s=0.0)) as node:
            await node.metadata.delete_object(await node.metadata.bucket("bucket"), "one")
            with holding(settings.cache_dir, 0):
                before = files(settings.cache_dir)
                await node.consumer().drain()
                assert files(settings.cache_dir) == before
                with pytest.raises(BlobBusy), holding(settings.cache_dir, 0):
                    pass
            await node.consumer().drain()
            assert len(files(settings.cache_dir)) == len(before) - 2

    asyncio.run(main())


def test_a_backup_waits_for_a_pass_that_gives_space_back(settings: Settings, tmp_path: Path) -> None:
    with passing(settings.cache_dir) as free, passing(settings.cache_dir) as also:
        assert free
        assert also
        with pytest.raises(BlobBusy), holding(settings.cache_dir, 0.01):
            pass
        done = threading.Event()

        def make() -> None:
            back_up(settings, tmp_path / "backup")
            done.set()

        making = threading.Thread(target=make)
        making.start()
        assert not done.wait(0.3)
    making.join(30)
    assert done.is_set()


@pytest.mark.parametrize("place", ["data", "data/inside", "."])
def test_a_place_within_the_store_or_around_it_is_refused(settings: Settings, tmp_path: Path, place: str) -> None:
    with pytest.raises(BackupError, match="lie in each other"):
        back_up(settings, tmp_path / place)


def test_a_directory_that_holds_something_else_is_refused(settings: Settings, tmp_path: Path) -> None:
    other = settings_of(tmp_path / "other")
    asyncio.run(_put(other, "three"))
    with pytest.raises(BackupError, match="something else than a backup"):
        back_up(settings, other.data_dir)
    back_up(other, tmp_path / "backup")
    before = files(tmp_path / "backup")
    with pytest.raises(BackupError, match="of another store or node"):
        back_up(settings, tmp_path / "backup")
    after = files(tmp_path / "backup")
    assert {name: after[name] for name in before} == before
    assert set(restored(tmp_path / "backup", tmp_path / "restored", other)) == {"three"}


def test_a_backup_that_a_node_was_started_on_is_refused(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, tmp_path / "backup")
    (tmp_path / "backup" / "metadata.db-wal").write_bytes(b"written since")
    with pytest.raises(BackupError, match="it is no backup any more"):
        back_up(settings, tmp_path / "backup")


def test_no_store_is_no_backup(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(BackupError, match="there is no store"):
        back_up(settings_of(tmp_path / "nothing"), tmp_path / "backup")
    assert not (tmp_path / "nothing").exists()
    (settings.data_dir / "metadata.db").rename(tmp_path / "aside")
    with pytest.raises(BackupError, match="there is no store"):
        back_up(settings, tmp_path / "backup")
    (settings.data_dir / "metadata.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(EngineError, match="not a database"):
        back_up(settings, tmp_path / "backup")


class Cut(Exception):
    """The backup was killed."""


@pytest.mark.slow
def test_a_backup_cut_off_anywhere_leaves_the_earlier_one_whole_and_can_be_repeated(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(settings, tmp_path / "earlier")
    asyncio.run(_put(settings, "three"))
    asyncio.run(_delete(settings, "one"))
    old, new = {"one", "two"}, {"two", "three"}
    rename, unlink = Path.rename, Path.unlink
    held: list[set[str]] = []

    def attempt(nth: int) -> bool:
        target = tmp_path / f"backup{nth}"
        shutil.copytree(tmp_path / "earlier", target)
        left = nth

        def counted(call: Any) -> Any:
            def run(path: Path, *args: Any, **options: Any) -> Any:
                nonlocal left
                if path.is_relative_to(target):
                    left -= 1
                    if left == 0:
                        raise Cut
                return call(path, *args, **options)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted(rename))
            patch.setattr(Path, "unlink", counted(unlink))
            try:
                back_up(settings, target)
            except Cut:
                cut = True
            else:
                cut = False
        found = restored(target, tmp_path / f"restored{nth}", settings, strays=True) if cut else {}
        if cut:
            held.append(set(found))
            assert all(data == data_of(key) for key, data in found.items())
            back_up(settings, target)
        assert set(restored(target, tmp_path / f"again{nth}", settings)) == new
        for leftover in (target, tmp_path / f"restored{nth}", tmp_path / f"again{nth}"):
            shutil.rmtree(leftover, ignore_errors=True)
        return cut

    nth = 1
    while attempt(nth):
        nth += 1
    assert nth > 8
    assert all(one in (old, new) for one in held)
    assert held[0] == old
    assert held[-1] == new


# -- While clients write


def _backed_up_while_written(directory: Path, seed: int, rounds: int) -> None:
    print(f"seed {seed}")
    progress = Progress()
    flags = ("--reclaim-grace=0", "--disk-reserve=0", f"--block-size={BLOCK}", "--access-log=off")
    metadata = f"--metadata=sqlite://{directory}/data/metadata.db"
    key = f"--master-key-file={directory}/data/master.key"
    writers = [Writer(f"w{n}", seed, progress) for n in range(3)]
    with running_node(directory / "data", *flags, metadata, key) as node:
        client = Client(node)
        for bucket in (PLAIN, VERSIONED):
            client.call("PUT", f"/{bucket}")
        body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        client.document("PUT", f"/{VERSIONED}", {"versioning": ""}, body)
        still = Writer("still", seed, progress)  # has finished before the backups: all that it did is in them
        writers = [writer.next_life(node) for writer in writers]
        still = still.next_life(node)
        for writer in writers:
            writer.start()
        for turn in range(rounds):
            for _ in range(20):
                still.step()
            progress.wait_for(progress.acknowledged + 30)
            said = tigrislike(
                "admin", "backup", str(directory / "backup"), f"--data-dir={directory}/data", metadata,
                f"--block-size={BLOCK}", "--json",
            )  # fmt: skip
            made = json.loads(said)
            assert made["missing"] == 0
            copy = directory / f"restored{turn}"
            shutil.copytree(directory / "backup", copy)
            shutil.copy(directory / "data" / "master.key", copy / "master.key")
            asyncio.run(_no_findings(settings_of(copy, BLOCK)))
            with running_node(
                copy, *flags, f"--metadata=sqlite://{copy}/metadata.db", f"--master-key-file={copy}/master.key"
            ) as other:
                heir = still.next_life(other)
                heir.check(other)
        for writer in writers:
            writer.finish()


async def _no_findings(settings: Settings) -> None:
    async with Node.opened(settings) as node:
        await node.blocks.sweep(node.metadata.settle_blob)
        assert [finding async for finding in fsck(node.metadata, node.blocks)] == []


@pytest.mark.slow
def test_a_backup_of_a_busy_node_is_whole(tmp_path: Path) -> None:
    _backed_up_while_written(tmp_path, 1, rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_backups_of_a_busy_node_are_each_whole(tmp_path: Path, seed: int) -> None:
    _backed_up_while_written(tmp_path, seed, rounds=5)


# -- The documents' own commands


def tigrislike(*words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
    done = subprocess.run(
        [sys.executable, "-m", "tigrislike", *words], capture_output=True, text=True, timeout=120, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Walk:
    """A machine on which a document's commands run: its paths are a test's, `tigrislike` is this one."""

    def __init__(self, document: str, root: Path, cluster: str = "") -> None:
        self.blocks = dict(
            re.findall(r"<!-- walk: (\S+) -->\n```sh\n(.*?)```", (DOCS / document).read_text(), re.DOTALL)
        )
        self.root = root
        self.cluster = cluster
        self.done: set[str] = set()
        for name in ("srv", "backups", "safe", "bin"):
            (root / name).mkdir(exist_ok=True)
        script = root / "bin" / "tigrislike"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tigrislike "$@"\n')
        script.chmod(0o755)

    def commands(self, name: str) -> list[str]:
        """The lines of a block, at home here."""
        self.done.add(name)
        text: str = self.blocks[name]
        if self.cluster:
            base, prefix = self.cluster.split("?prefix=")
            place = r"fdb:///etc/foundationdb/fdb\.cluster(?:\?prefix=(\S+))?"
            text = re.sub(place, lambda found: f"'{base}?prefix={prefix}{found[1] or 'main/'}'", text)
        text = re.sub(r"/(srv|backups|safe)/", lambda found: f"{self.root}/{found[1]}/", text)
        return text.splitlines()

    def run(self, name: str) -> str:
        """Run a block to its end; what it printed."""
        return self._sh("\n".join(line for line in self.commands(name) if not line.startswith("tigrislike serve")))

    @contextlib.contextmanager
    def serve(self, name: str) -> Iterator[RunningNode]:
        """Run a block up to its `tigrislike serve`, and that for the length of a `with` block."""
        *before, last = self.commands(name)
        if before:
            self._sh("\n".join(before))
        flags = re.findall(r"(--\S+) (\S+)", last)
        data_dir = Path(dict(flags)["--data-dir"])
        given = [f"{flag}={value.strip(chr(39))}" for flag, value in flags]
        if not any(flag == "--metadata" for flag, _ in flags):
            # What the command means by itself; whatever engine other tests run on.
            given += [f"--metadata=sqlite://{data_dir}/metadata.db", f"--master-key-file={data_dir}/master.key"]
        with running_node(data_dir, *given) as node:
            yield node

    def _sh(self, script: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
        environment["PATH"] = f"{self.root / 'bin'}:{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=240, check=False,
            env=environment, cwd=self.root,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def finish(self, *elsewhere: str) -> None:
        """Every block of the document was walked, here or in the test that walks the blocks named."""
        assert self.done | set(elsewhere) == set(self.blocks)


OBJECTS = {"small": b"small", "large": data_of("large", 9_000_000), "nested/ü": data_of("nested", 50_000)}


def fill(node: RunningNode) -> None:
    client = Client(node)
    client.call("PUT", "/weights")
    for key, data in OBJECTS.items():
        client.call("PUT", f"/weights/{key}", body=data)


def assert_filled(node: RunningNode) -> None:
    client = Client(node)
    for key, data in OBJECTS.items():
        assert client.call("GET", f"/weights/{key}").body == data
    client.call("PUT", "/weights/after", body=b"it takes writes")


def sqlite_node(walk: Walk) -> RunningNode:
    data_dir = walk.root / "srv" / "tigrislike"
    key = data_dir / "master.key"
    data_dir.mkdir()
    key.write_text("5a" * 32)
    (walk.root / "safe" / "master.key").write_text("5a" * 32)
    return start_node(data_dir, f"--metadata=sqlite://{data_dir}/metadata.db", f"--master-key-file={key}")


FDB_BLOCKS = ("fdb-blocks", "fdb-backup", "fdb-restore")


@pytest.mark.slow
def test_the_walk_of_a_backup_and_its_restore(tmp_path: Path) -> None:
    walk = Walk("backup.md", tmp_path)
    data_dir = tmp_path / "srv" / "tigrislike"
    node = sqlite_node(walk)
    try:
        fill(node)
        assert "are in" in walk.run("sqlite-backup")
        client = Client(node)
        client.call("PUT", "/weights/later", body=b"later")
        walk.run("sqlite-backup")
        client.call("DELETE", "/weights/small")  # the mishap
    finally:
        node.stop()
        node.kill()
    shutil.rmtree(data_dir)  # and the disaster
    with walk.serve("sqlite-restore") as back:
        assert_filled(back)
        assert Client(back).call("GET", "/weights/later").body == b"later"
    walk.finish(*FDB_BLOCKS)


@pytest.mark.fdb
def test_the_walk_of_a_move_to_foundationdb_of_its_backup_and_restore(tmp_path: Path) -> None:
    with fresh_url() as url:
        moving = Walk("moving-to-foundationdb.md", tmp_path, url)
        data_dir = tmp_path / "srv" / "tigrislike"
        node = sqlite_node(moving)
        try:
            fill(node)
            checked = moving.run("check")
            assert "SQLite" in checked
            assert "no store yet" in checked
            assert "was not sealed" in moving.run("abort")
            assert "the store has moved" in moving.run("move")
            assert Client(node).call("GET", "/weights/small").body == b"small", "reads go on"
        finally:
            node.stop()
            node.kill()
        with moving.serve("start") as node:
            assert_filled(node)
            moving.finish()
            backing = Walk("backup.md", tmp_path, url)
            backing.run("fdb-blocks")
            shutil.rmtree(tmp_path / "backups" / "tigrislike")
            said = backing.run("fdb-backup")
            assert "takes writes again" in said
            Client(node).call("PUT", "/weights/later", body=b"later")
        shutil.rmtree(data_dir)
        with backing.serve("fdb-restore") as back:
            assert_filled(back)
        with running_node(
            tmp_path / "backups" / "tigrislike",
            f"--metadata=sqlite://{tmp_path}/backups/tigrislike/metadata.db",
            f"--master-key-file={tmp_path}/safe/master.key",
        ) as alone:
            assert_filled(alone)
        backing.finish("sqlite-backup", "sqlite-restore")
