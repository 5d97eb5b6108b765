"""A full disk refuses writes with 503 SlowDown, leaves nothing behind, goes on serving, and recovers with its space."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.bytecache.blobs import stored_files
from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync
from tests.crash.audit import audit
from tests.crash.inprocess import BLOCK, InProcessNode, opened, part_list, text_of
from tests.crash.small_disk import takes_space
from tests.e2e.wire import Answer, Caller
from tests.kv.failing_vfs import FailingVfs, failing_vfs
from tests.nodes import RunningNode, running_node

REPOSITORY = Path(__file__).parents[2]
GIB = 1024**3


def refused(answer: Answer) -> bool:
    """Whether a request was refused for want of space, in the way that makes clients wait and try again."""
    if answer.status in (200, 204):
        return False
    assert (answer.status, answer.code) == (503, "SlowDown"), answer.body
    assert int(answer.headers["retry-after"]) > 0
    return True


# -- A node over a volume that is small ------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[tuple[RunningNode, Callable[[int], None]]]:
    """A node on a volume of 100 GiB, and a function that says how much of it is available."""
    file = tmp_path / "space"

    def available(size: int) -> None:
        aside = file.with_name("space.new")
        aside.write_text(f"{100 * GIB} {size}")
        aside.rename(file)

    available(50 * GIB)
    environment = {"DISK_SPACE_FILE": str(file), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.crash.small_disk", "serve"]
    with running_node(tmp_path / "data", environment=environment, command=command) as node:
        yield node, available


def test_below_the_reserve_uploads_are_refused_and_everything_else_goes_on(
    volume: tuple[RunningNode, Callable[[int], None]],
) -> None:
    node, available = volume
    caller = Caller(node)
    data = os.urandom(300_000)

    def files() -> list[Path]:
        # No other files: the agent keeps some, and is still at its first scrub perhaps.
        return stored_files(node.data_dir / "cache")

    assert caller.send("PUT", "/bucket").status == 200
    assert caller.send("PUT", "/bucket/before", body=data).status == 200
    upload = text_of(caller.send("POST", "/bucket/k?uploads"), "UploadId")
    part = f"/bucket/k?partNumber=1&uploadId={upload}"
    assert caller.send("PUT", part, body=data).status == 200
    before = files()

    available(GIB // 2)  # of the default reserve of 1 GiB
    for _ in range(5):
        assert refused(caller.send("PUT", "/bucket/large", body=data))
        assert refused(caller.send("PUT", part, body=data))
    assert caller.send("GET", "/bucket/before").body == data
    assert caller.send("PUT", "/bucket/small", body=b"inline").status == 200, "the reserve is there for the database"
    assert caller.send("GET", "/bucket/small").body == b"inline"
    copied = caller.send("PUT", "/bucket/copy", {"x-amz-copy-source": "/bucket/before"})
    assert copied.status == 200, "a copy takes no space"
    assert caller.send("GET", "/bucket/large").status == 404
    assert caller.send("DELETE", "/bucket/before").status == 204
    assert files() == before
    assert not any((node.data_dir / "cache" / "incoming").iterdir())

    available(50 * GIB)
    assert caller.send("PUT", "/bucket/large", body=data).status == 200
    etag = caller.send("PUT", part, body=data).headers["etag"].strip('"')
    assert caller.send("POST", f"/bucket/k?uploadId={upload}", body=part_list({1: etag})).status == 200
    for key in ("large", "k", "copy"):
        assert caller.send("GET", f"/bucket/{key}").body == data


# -- The Nth call fails, N = 1, 2, ... until all goes well -----------------------------------------------------------


def _only_where_space_is_taken(faults: FailNth) -> Callable[[str, tuple[object, ...]], None]:
    def hook(name: str, args: tuple[object, ...]) -> None:
        if takes_space(name, args):
            faults(name, args)

    return hook


class Attempts:
    """Every kind of write, one after the other; what was acknowledged must be there, what was refused must not."""

    def __init__(self, node: InProcessNode, seed: int) -> None:
        self.node = node
        self.rng = random.Random(seed)
        self.expected: dict[str, set[bytes | None]] = {}
        self.refusals = 0

    async def ask(self, key: str, data: bytes | None, *request: Any, **more: Any) -> Answer:
        """A request after which `key` holds `data`. Where the metadata's disk fails, a refusal leaves it in doubt."""
        answer = await self.node.request(*request, **more)
        if refused(answer):
            self.refusals += 1
            self.expected.setdefault(key, {None}).add(data)
        else:
            self.expected[key] = {data}
        return answer

    async def once(self) -> None:
        """One round over fresh keys."""
        name = self.rng.randbytes(4).hex()
        small, large = self.rng.randbytes(100), self.rng.randbytes(2 * BLOCK + 100)
        await self.ask(f"{name}/small", small, "PUT", f"/bucket/{name}/small", body=small)
        pieces = [large[at : at + 50_000] for at in range(0, len(large), 50_000)]
        await self.ask(f"{name}/large", large, "PUT", f"/bucket/{name}/large", body=pieces)
        source = {"x-amz-copy-source": f"/bucket/{name}/small"}
        if self.expected[f"{name}/small"] == {small}:
            await self.ask(f"{name}/copy", small, "PUT", f"/bucket/{name}/copy", None, source)
        begun = await self.node.request("POST", f"/bucket/{name}/parts", {"uploads": ""})
        if refused(begun):
            self.refusals += 1
            return
        upload = text_of(begun, "UploadId")
        query = {"partNumber": "1", "uploadId": upload}
        etags: dict[int, str] = {}
        for _ in range(2):
            answer = await self.node.request("PUT", f"/bucket/{name}/parts", query, body=large)
            if refused(answer):
                self.refusals += 1
            else:
                etags[1] = answer.headers["etag"]
        if self.expected[f"{name}/small"] == {small}:  # an inline source: the part gets a blob of its own
            query = {"partNumber": "2", "uploadId": upload}
            self.refusals += refused(await self.node.request("PUT", f"/bucket/{name}/parts", query, source))
        if etags:
            body = part_list(etags)
            await self.ask(f"{name}/parts", large, "POST", f"/bucket/{name}/parts", {"uploadId": upload}, body=body)
        await self.ask(f"{name}/large", None, "DELETE", f"/bucket/{name}/large")

    async def check(self, *, certain: bool) -> None:
        """`certain`: a refused request has left no trace at all."""
        for key, states in self.expected.items():
            answer = await self.node.request("GET", f"/bucket/{key}")
            found = answer.body if answer.status == 200 else None
            assert found in states
            if certain and len(states) > 1:
                assert found is None or key.endswith("/large"), f"{key} was refused and is there"
        self.expected.clear()
        await self.node.sweep()
        assert await audit(self.node.metadata, self.node.blocks) == []


def _fail_each(
    scratch: Path, break_nth: Callable[[int], None], heal: Callable[[], bool], step: int, *, certain: bool, **disk: Any
) -> int:
    """Rounds of attempts with the Nth call failing, until one passes untouched; how many did not.

    `heal` tells whether anything failed since `break_nth`.
    """

    async def main() -> int:
        async with opened(scratch / "data", **disk) as node:
            assert (await node.request("PUT", "/bucket")).status == 200
            attempts = Attempts(node, step)
            nth, broken = 1, 0
            while True:
                break_nth(nth)
                await attempts.once()
                failed = heal()
                await attempts.check(certain=certain)
                if not failed:
                    break
                nth, broken = nth + step, broken + 1
                assert (await node.request("PUT", "/bucket/later", body=bytes(BLOCK + 1))).status == 200
            assert attempts.refusals
            return broken

    return asyncio.run(main())


def _no_space_for_blocks(scratch: Path, step: int, *, forever: bool) -> int:
    faults = FailNth(errno.ENOSPC)

    def heal() -> bool:
        faults.disarm()
        return bool(faults.failed)

    fs = HookedFileSystem(_only_where_space_is_taken(faults))
    return _fail_each(scratch, lambda nth: faults.arm(nth, forever=forever), heal, step, certain=True, fs=fs)


@pytest.mark.parametrize("forever", [False, True])
def test_no_space_for_blocks_at_some_calls(scratch: Path, forever: bool) -> None:
    assert _no_space_for_blocks(scratch, 4, forever=forever) > 8


@pytest.mark.slow
@pytest.mark.parametrize("forever", [False, True])
def test_no_space_for_blocks_at_any_call(scratch: Path, forever: bool) -> None:
    assert _no_space_for_blocks(scratch, 1, forever=forever) > 30


def _breaking(vfs: FailingVfs, error: apsw.Error, kinds: str, times: int) -> Callable[[int], None]:
    return lambda nth: vfs.fail(nth - 1, error, kinds=kinds, times=times)


@pytest.mark.sqlite
@pytest.mark.parametrize("times", [1, 1000])
def test_no_space_for_metadata_at_any_write(scratch: Path, times: int) -> None:
    with failing_vfs() as vfs:
        break_nth = _breaking(vfs, apsw.FullError("no space left"), "write truncate", times)
        broken = _fail_each(scratch, break_nth, vfs.heal, 3, certain=True, fs=NoSync(), vfs=vfs.name)
    assert broken > 10


@pytest.mark.sqlite
def test_a_failing_sync_of_metadata_leaves_each_request_whole_or_undone(scratch: Path) -> None:
    with failing_vfs() as vfs:
        break_nth = _breaking(vfs, apsw.IOError("the disk is gone"), "sync", 1)
        broken = _fail_each(scratch, break_nth, vfs.heal, 1, certain=False, fs=NoSync(), vfs=vfs.name)
    assert broken > 5


def test_a_full_disk_in_the_middle_of_concurrent_uploads(scratch: Path) -> None:
    """Some of many uploads at once meet the full disk; the others, and all that follow, are untouched."""
    faults = FailNth(errno.ENOSPC)

    async def story() -> None:
        async with opened(scratch / "data", fs=HookedFileSystem(_only_where_space_is_taken(faults))) as node:
            assert (await node.request("PUT", "/bucket")).status == 200
            data = {f"k{n}": random.Random(n).randbytes(BLOCK + n) for n in range(12)}

            def put(key: str) -> Awaitable[Answer]:
                return node.request("PUT", f"/bucket/{key}", body=data[key])

            for nth in range(1, 60, 12):
                faults.arm(nth, forever=True)
                first = asyncio.gather(*(put(key) for key in data))
                await asyncio.sleep(0)
                answers = await first
                faults.disarm()
                assert any(refused(answer) for answer in answers)
                for key, answer in zip(data, answers, strict=True):
                    got = await node.request("GET", f"/bucket/{key}")
                    assert got.status == 404 if refused(answer) else got.body == data[key]
                await node.sweep()
                assert await audit(node.metadata, node.blocks) == []
                for key, answer in zip(data, answers, strict=True):
                    if refused(answer):
                        assert (await put(key)).status == 200
                    assert (await node.request("DELETE", f"/bucket/{key}")).status == 204

    asyncio.run(story())


# -- The same over HTTP, where a body goes from the socket straight into the memory that is written from ---------------


class Faults:
    """What the node's disk is to do: see `small_disk`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fired = file.with_name(file.name + ".fired")
        self.serial = 0

    def arm(self, nth: int, code: int) -> None:
        self.fired.unlink(missing_ok=True)
        aside = self.file.with_name("fault.new")
        self.serial += 1
        aside.write_text(f"{nth} {code} {self.serial}")
        aside.rename(self.file)


@pytest.mark.parametrize(
    ("code", "status", "name"), [(errno.ENOSPC, 503, "SlowDown"), (errno.EIO, 500, "InternalError")]
)
def test_an_upload_whose_nth_call_to_the_disk_fails_is_refused_and_leaves_nothing(
    tmp_path: Path, code: int, status: int, name: str
) -> None:
    """N = 1, 2, ... until an upload passes untouched. From the commit on it succeeds, whatever its move home meets."""
    faults = Faults(tmp_path / "fault")
    faults.arm(0, code)
    environment = {"DISK_FAULT_FILE": str(faults.file), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.crash.small_disk", "serve"]
    flags = ("--workers=1", "--block-size=2MiB")
    with running_node(tmp_path / "data", *flags, environment=environment, command=command) as node:
        caller = Caller(node)
        incoming = node.data_dir / "cache" / "incoming"
        data = random.Random(code).randbytes(5_000_000)
        assert caller.send("PUT", "/bucket").status == 200
        refusals, nth, failed = 0, 0, True
        while failed:
            nth += 1
            faults.arm(nth, code)
            answer = caller.send("PUT", f"/bucket/k{nth}", body=data)
            failed = faults.fired.exists()
            call = faults.fired.read_text() if failed else ""
            faults.arm(0, code)
            got = caller.send("GET", f"/bucket/k{nth}")
            if answer.status == 200:
                assert got.body == data
            else:
                assert (answer.status, answer.code) == (status, name), answer.body
                assert got.status == 404
                left = [str(path.relative_to(incoming)) for path in incoming.rglob("*")]
                assert left == [], f"call {nth}, {call}"
                refusals += 1
                assert caller.send("PUT", f"/bucket/k{nth}", body=data).status == 200
                assert caller.send("GET", f"/bucket/k{nth}").body == data
            assert nth < 200
        assert refusals > 10
        print(f"{refusals} of {nth} uploads refused with {name}")
