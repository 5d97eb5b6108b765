"""What operators see of nodes and do to them: shown truly, refused where something would be lost, gone on with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.conftest import scratch
from tests.metadata.world import MASTER, large
from tests.replication.cluster import BUCKET, SECOND, Cluster, cluster, data_of
from tigrislike.admin import nodes, nodes_commands
from tigrislike.admin.check import Check, check_nodes
from tigrislike.admin.nodes import NodesError
from tigrislike.metadata import Metadata
from tigrislike.metadata.homes import ANYBODY, owe_hold
from tigrislike.metadata.kv import Transaction, open_engine
from tigrislike.metadata.records import DRAINING, LOST, REMOVED, UP, Beat, Node
from tigrislike.metadata.secrets import MasterKey
from tigrislike.replication.membership import Members

__all__ = ["scratch"]

Command = Callable[[Metadata, Members], Awaitable[int]]


def play(folder: Path, story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(folder, **options) as it:
            await story(it)

    asyncio.run(main())


async def operator(it: Cluster) -> Metadata:
    return await Metadata.open(it.engine, master_key=MASTER, node_id=ANYBODY, region="")


def resting(it: Cluster, *, work: bool = False) -> nodes.Sleep:
    """What waiting is here: the nodes beat, and may work."""

    async def sleep(_: float) -> None:
        if work:
            await it.work(rounds=1)
        await it.beat()

    return sleep


async def run(it: Cluster, command: Command) -> int:
    metadata = await operator(it)
    return await command(metadata, await nodes.watched(metadata, sleep=resting(it)))


def prefix(it: Cluster, name: str) -> str:
    return it[name].id.hex()[:12]


async def state(it: Cluster, name: str) -> str:
    return next(node.state for node, _ in await it[name].metadata.nodes() if node.node == it[name].id)


def test_the_table_says_who_is_alive_and_what_only_they_have(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("k", data_of(1))
        it.kill("b")
        assert await run(it, nodes_commands.ls(sole=True, as_json=True)) == 0
        rows = {row["node"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        a, b = rows[it["a"].id.hex()], rows[it["b"].id.hex()]
        assert (a["alive"], a["homes"], a["sole"], a["state"], a["region"]) == (True, 1, 1, UP, "iad")
        assert (b["alive"], b["homes"], b["sole"]) == (False, 0, 0)
        assert b["beat_age_s"] >= 12
        assert (a["free_bytes"], a["used_bytes"]) == (1 << 39, 1 << 39)
        assert await run(it, nodes_commands.ls(sole=False, as_json=False)) == 0
        table = capsys.readouterr().out
        assert it["a"].id.hex()[:8] in table
        assert "sole" not in table

    play(scratch, story, a="iad", b="sjc")


def test_a_node_is_drained_and_then_removed(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        with pytest.raises(NodesError, match="is alive: drain it first"):
            await run(it, nodes_commands.remove(prefix(it, "a"), accept_loss=False))
        await it["a"].metadata.set_node_state(it["a"].id, DRAINING)
        with pytest.raises(NodesError, match="1 contents are on no other living node: wait until it is drained"):
            await run(it, nodes_commands.remove(prefix(it, "a"), accept_loss=False))
        assert await run(it, nodes_commands.drain(prefix(it, "a"), wait=True, sleep=resting(it, work=True))) == 0
        assert "holds nothing any more" in capsys.readouterr().out
        remove = nodes_commands.remove(prefix(it, "a"), accept_loss=False, sleep=resting(it))
        assert await run(it, remove) == 0
        assert "is removed; its cache directory can be deleted" in capsys.readouterr().out
        assert await state(it, "b") == UP
        assert await state(it, "a") == REMOVED
        assert not it["a"].up, "it heard of it"
        assert await it["b"].get(content) == data_of(1)
        assert await run(it, remove) == 0, "again"

    play(scratch, story, a="iad", b="iad")


def test_a_drain_that_is_called_off_stops_waiting(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("k", data_of(1))

        async def call_off(_: float) -> None:
            assert await run(it, nodes_commands.undrain(prefix(it, "a"))) == 0

        with pytest.raises(NodesError, match="no longer to drain"):
            await run(it, nodes_commands.drain(prefix(it, "a"), wait=True, sleep=call_off))
        assert await state(it, "a") == UP

    play(scratch, story, a="iad", b="iad")


def test_a_dead_node_is_told_to_drain_once_it_runs(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(it: Cluster) -> None:
        it.kill("a")
        assert await run(it, nodes_commands.drain(prefix(it, "a"), wait=False)) == 0
        assert "shows no life" in capsys.readouterr().err
        assert await state(it, "b") == UP
        assert await state(it, "a") == DRAINING

    play(scratch, story, a="iad", b="iad")


def test_what_is_given_up_is_named_before_it_goes(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("some/key\n", data_of(1))
        await it["b"].put("other", data_of(2))
        it.kill("a")
        with pytest.raises(NodesError, match="start it again and drain it, or give them up with --accept-loss"):
            await run(it, nodes_commands.remove(prefix(it, "a"), accept_loss=False))
        capsys.readouterr()
        assert await run(it, nodes_commands.losses(prefix(it, "a"))) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"to be lost {BUCKET}/some/key\\n (version ")
        assert await state(it, "b") == UP
        assert await state(it, "a") == UP
        assert await run(it, nodes_commands.remove(prefix(it, "a"), accept_loss=True)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("is removed; its cache directory may still have what was lost: keep it")
        assert lines[1:] == [line.removeprefix("to be ")]

    play(scratch, story, a="iad", b="iad")


def test_a_node_that_serves_is_not_removed_whatever_is_accepted(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("k", data_of(1))
        for command in (nodes_commands.losses, lambda name: nodes_commands.remove(name, accept_loss=True)):
            with pytest.raises(NodesError, match="is alive: drain it first"):
                await run(it, command(prefix(it, "a")))
        assert await state(it, "a") == UP
        await it["a"].metadata.set_node_state(it["a"].id, DRAINING)
        assert await run(it, nodes_commands.losses(prefix(it, "a"))) == 1

    play(scratch, story, a="iad", b="iad")


def test_what_is_written_while_a_node_goes_is_named(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].metadata.set_node_state(it["a"].id, DRAINING)

        async def late(_: float) -> None:
            await it["a"].put("late", data_of(1))

        assert await run(it, nodes_commands.remove(prefix(it, "a"), accept_loss=False, sleep=late)) == 1
        assert f"lost {BUCKET}/late" in capsys.readouterr().out

    play(scratch, story, a="iad", b="iad")


def test_a_node_takes_the_place_of_another(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        contents = {await it["a"].put(f"k{seed}", data_of(seed)): seed for seed in range(5)}
        sleep = resting(it, work=True)
        assert await run(it, nodes_commands.replace(prefix(it, "a"), prefix(it, "c"), sleep=sleep)) == 0
        for content, seed in contents.items():
            assert await it.homes(content) == {"c"}
            assert await it["c"].get(content) == data_of(seed)
        assert await state(it, "a") == REMOVED

    play(scratch, story, a="iad", b="iad", c="sjc")


def test_a_dead_node_is_replaced_from_those_that_have_what_it_held(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1))
        b = it["b"].metadata
        await b.background(owe_hold, b.context, it["b"].id, b"", content)
        await it.work()
        it.kill("a")
        sleep = resting(it, work=True)
        assert await run(it, nodes_commands.replace(prefix(it, "a"), prefix(it, "c"), sleep=sleep)) == 0
        assert await it.homes(content) == {"b", "c"}

    play(scratch, story, a="iad", b="iad", c="iad")


def test_a_replacement_that_cannot_be_is_refused(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("k", data_of(1))
        a, b, c = (prefix(it, name) for name in "abc")
        with pytest.raises(NodesError, match="cannot replace itself"):
            await run(it, nodes_commands.replace(a, a))
        it.kill("a")
        with pytest.raises(NodesError, match="1 contents are on no other living node: start it again"):
            await run(it, nodes_commands.replace(a, b))
        with pytest.raises(NodesError, match="shows no life: it can replace no other"):
            await run(it, nodes_commands.replace(b, a))
        await it["c"].metadata.set_node_state(it["c"].id, DRAINING)
        with pytest.raises(NodesError, match="is draining: it can replace no other"):
            await run(it, nodes_commands.replace(b, c))
        assert await run(it, nodes_commands.remove(a, accept_loss=True)) == 0
        with pytest.raises(NodesError, match="was removed already"):
            await run(it, nodes_commands.replace(a, b))

    play(scratch, story, a="iad", b="iad", c="iad")


def test_a_node_is_named_by_enough_of_its_id(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        metadata = await operator(it)
        members = await nodes.watched(metadata, sleep=resting(it))
        assert nodes.found(members, it["a"].id.hex().upper()).node == it["a"].id
        for bad, why in (("", "no node"), ("xyz", "no node")):
            with pytest.raises(NodesError, match=why):
                nodes.found(members, bad)
        for first in range(16):  # of seventeen ids two begin alike
            await metadata.join(Node(bytes([first * 16]) * 16, "iad", ""))
        await members.refresh()
        with pytest.raises(NodesError, match=r"(2|3) nodes' ids begin with"):
            nodes.found(members, it["a"].id.hex()[0])

    play(scratch, story, a="iad", b="iad")


# -- admin check -----------------------------------------------------------------------------------------------------


async def checks(it: Cluster, *, full: bool = False) -> dict[str, list[Check]]:
    metadata = await operator(it)
    found: dict[str, list[Check]] = {}
    async for check in check_nodes(metadata, full=full, sleep=resting(it)):
        found.setdefault(check.name, []).append(check)
    return found


def test_the_check_names_the_dead_and_what_nobody_can_give(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        assert {check.verdict for found in (await checks(it)).values() for check in found} == {"ok"}
        for seed in range(12):
            await it["a"].put(f"k{seed:02}", data_of(seed, 10))
        await it["c"].put("gone", data_of(99))
        it.kill("c")
        assert await run(it, nodes_commands.remove(prefix(it, "c"), accept_loss=True)) == 0
        it.kill("a")
        found = await checks(it)
        assert [check.verdict for check in found["nodes"]].count("attention") == 1
        (contents,) = found["contents"]
        assert contents.verdict == "attention"
        assert "12 contents are only on nodes that show no life, 1 were lost" in contents.detail
        assert contents.detail.endswith(", ...")
        assert len(contents.facts["objects"]) == 10
        (contents,) = (await checks(it, full=True))["contents"]
        assert {name.key for name in contents.facts["objects"]} == {"gone", *(f"k{seed:02}" for seed in range(12))}

    play(scratch, story, a="iad", b="iad", c="iad")


def test_the_check_finds_a_clock_that_strays(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(it: Cluster) -> None:
        late = it["b"].metadata
        monkeypatch.setattr(late, "now_ns", lambda: it.engine.now_ns() - 30 * SECOND)
        (clock,) = (await checks(it))["clock"]
        assert clock.verdict == "attention"
        assert clock.facts["against"] == it["b"].id.hex()
        assert -33 <= clock.facts["skew_least_s"] <= clock.facts["skew_most_s"] <= -27

    play(scratch, story, a="iad", b="iad")


def test_the_check_finds_a_host_whose_clock_was_set(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        it["b"].step_ns = -3600 * SECOND
        (clock,) = (await checks(it))["clock"]
        assert clock.verdict == "attention"
        assert clock.facts == {"against": it["b"].id.hex(), "step_s": -3600.0}
        assert "was set -3600.0 s off since it started" in clock.detail

    play(scratch, story, a="iad", b="iad")


def test_a_store_of_one_node_is_not_asked_for_life(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("k", data_of(1))
        it.kill("a")
        ((contents,),) = (await checks(it)).values()
        assert (contents.name, contents.verdict) == ("contents", "ok")
        assert contents.detail == "nothing was lost with a removed node"

    play(scratch, story, a="iad")


@pytest.mark.parametrize("full", [False, True])
def test_the_check_names_what_was_lost_with_the_only_node(scratch: Path, full: bool) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].put("k", data_of(1))
        it.kill("a")
        assert await run(it, nodes_commands.remove(prefix(it, "a"), accept_loss=True)) == 0
        for others in ("none", "a new one"):
            ((contents,),) = (await checks(it, full=full)).values()
            assert contents.verdict == "attention", others
            assert contents.detail.endswith(f"1 were lost with nodes that were removed: {BUCKET}/k")
            assert [name.key for name in contents.facts["objects"]] == ["k"]
            await (await operator(it)).join(Node(b"b" * 16, "iad", "http://b"))

    play(scratch, story, a="iad")


def test_what_a_node_of_the_store_holds_again_is_not_lost(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        keys = it["a"].metadata.context.keys

        async def note_lost(tr: Transaction) -> None:
            tr.set(keys.home(LOST, content), b"")

        await it.engine.transact(note_lost)
        it.kill("a")
        ((contents,),) = (await checks(it)).values()
        assert contents.verdict == "ok"

    play(scratch, story, a="iad")


# -- The program -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def beating(metadata: Metadata, node: bytes) -> AsyncIterator[None]:
    async def beat() -> None:
        count = 0
        while True:
            count += 1
            await metadata.beat(node, Beat(metadata.now_ns(), count, b"12345678", 2000, 500))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def program(folder: Path, *arguments: str, typed: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tigrislike",
        *arguments,
        "--data-dir",
        str(folder),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate(typed)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


@pytest.mark.slow
def test_the_program_lists_drains_and_removes(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await open_engine(f"sqlite://{tmp_path / 'metadata.db'}")
        master = MasterKey.load(None, tmp_path / "master.key", create=True)
        node = b"a-node-of-a-test"
        metadata = await Metadata.open(engine, master_key=master, node_id=node, region="iad")
        await metadata.join(Node(node, "iad", "http://a"))
        async with beating(metadata, node):
            status, out, error = await program(tmp_path, "nodes", "--json")
            assert (status, error) == (0, "")
            row = json.loads(out)
            assert (row["node"], row["alive"], row["used_bytes"]) == (node.hex(), True, 1500)
            status, _, error = await program(tmp_path, "nodes", "remove", node.hex()[:8])
            assert status == 1
            assert "drain it first" in error
            status, out, _ = await program(tmp_path, "nodes", "drain", node.hex()[:8], "--wait")
            assert status == 0
            assert "holds nothing any more" in out
            status, out, _ = await program(tmp_path, "nodes", "undrain", node.hex()[:8])
            assert status == 0
            status, _, error = await program(tmp_path, "nodes", "replace", node.hex()[:8], "--with", "ff")
            assert (status, error) == (1, "tigrislike: no node's id begins with 'ff'\n")
        status, _, error = await program(tmp_path / "nowhere", "nodes")
        assert status == 1
        assert error.startswith("tigrislike: ")
        await engine.close()

    asyncio.run(main())


@pytest.mark.slow  # the program watches for life for six seconds, each time
def test_the_program_asks_before_objects_are_lost(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await open_engine(f"sqlite://{tmp_path / 'metadata.db'}")
        master = MasterKey.load(None, tmp_path / "master.key", create=True)
        node = b"a-node-of-a-test"
        metadata = await Metadata.open(engine, master_key=master, node_id=node, region="iad")
        await metadata.join(Node(node, "iad", "http://a"))
        await metadata.put_object(await metadata.create_bucket("bucket", "me"), "k", large(b"k"))
        remove = ("nodes", "remove", node.hex()[:8], "--accept-loss")
        for typed, why in ((b"n\n", "nothing was removed"), (b"", "Abort")):
            status, out, error = await program(tmp_path, *remove, typed=typed)
            assert status == 1
            assert out.startswith("to be lost bucket/k (version ")
            assert "Lose these 1 contents for good? [y/N]" in error
            assert why in error
        assert {each.state for each, _ in await metadata.nodes()} == {UP}
        status, out, error = await program(tmp_path, *remove, "--yes")
        assert status == 0
        assert "Lose" not in error
        assert out.splitlines()[-1].startswith("lost bucket/k (version ")
        assert {each.state for each, _ in await metadata.nodes()} == {REMOVED}
        await engine.close()

    asyncio.run(main())
