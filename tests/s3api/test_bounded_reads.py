"""Reads of bounded buckets as a client sees them: how old answers are, what they rest on, and what an outage leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.crash.inprocess import HOST, INLINE, KEY_ID, InProcessNode, opened, text_of
from tests.e2e.wire import Answer, Caller
from tests.metadata.world import small
from tigrislike.metadata import Metadata
from tigrislike.metadata.bounded import Bounds
from tigrislike.metadata.kv import Engine, Faults, ManualClock

SECOND = 1_000_000_000
BOUND_S = 10
OUTAGE_S = 60
LARGE = bytes(range(256)) * 600  # three blocks
FORCE = {"x-tigris-consistent": "true"}


class Counted:
    """The engine, and how often it is used."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.uses = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def read(self, *args: Any, **options: Any) -> Any:
        self.uses += 1
        return await self._engine.read(*args, **options)

    async def transact(self, *args: Any) -> Any:
        self.uses += 1
        return await self._engine.transact(*args)


class World:
    """A node with a bounded bucket `bkt`, its way to the database, its clock, and another process over the store."""

    def __init__(self, node: InProcessNode, elsewhere: Metadata, faults: Faults, clock: ManualClock) -> None:
        self.node = node
        self.elsewhere = elsewhere
        self.faults = faults
        self.clock = clock

    @property
    def uses(self) -> int:
        assert isinstance(self.node.engine, Counted)
        return self.node.engine.uses

    async def get(self, key: str = "k", method: str = "GET", /, **options: Any) -> Answer:
        return await self.node.request(method, f"/bkt/{key}", **options)

    async def put(self, body: bytes, key: str = "k") -> Answer:
        answer = await self.node.request("PUT", f"/bkt/{key}", body=body)
        assert answer.status == 200, answer.body
        return answer

    async def put_elsewhere(self, body: bytes, key: str = "k") -> None:
        """Through another process, which has bytes of its own: these are small."""
        await self.elsewhere.refresh()
        await self.elsewhere.put_object(await self.elsewhere.bucket("bkt"), key, small(body))

    def wait(self, seconds: float) -> None:
        self.clock.advance(int(seconds * SECOND))


@asynccontextmanager
async def world(folder: Path, **bounds: Any) -> AsyncIterator[World]:
    faults, clock = Faults(), ManualClock()
    given = Bounds(**{"outage_ns": OUTAGE_S * SECOND, "wait_s": 30.0, **bounds})
    options: dict[str, Any] = {"bounds": given, "monotonic_ns": clock.monotonic_ns}
    async with (
        opened(folder, faults=faults, around=Counted, **options) as node,
        opened(folder) as other,
    ):
        made = await node.request("PUT", "/bkt", headers={"x-tigrislike-read-mode": f"bounded={BOUND_S}"})
        assert made.status == 200, made.body
        yield World(node, other.metadata, faults, clock)


def play(folder: Path, story: Callable[[World], Awaitable[None]], **bounds: Any) -> None:
    async def main() -> None:
        async with world(folder, **bounds) as made:
            await story(made)

    asyncio.run(main())


def test_the_mode_is_set_with_the_bucket_and_shown_by_head(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        assert (await made.node.request("HEAD", "/bkt")).headers["x-tigrislike-read-mode"] == "bounded=10s"
        assert (await made.node.request("PUT", "/plain")).status == 200
        assert (await made.node.request("HEAD", "/plain")).headers["x-tigrislike-read-mode"] == "strong"
        for nonsense in ("bounded", "bounded=2h", "BOUNDED=10s", "strong,strong"):
            refused = await made.node.request("PUT", "/other", headers={"x-tigrislike-read-mode": nonsense})
            assert (refused.status, text_of(refused, "Code")) == (400, "InvalidArgument")
            assert text_of(refused, "ArgumentValue") == nonsense
        assert (await made.node.request("HEAD", "/other")).status == 404

    play(tmp_path, story)


@pytest.mark.parametrize("body", [b"small", b"", LARGE], ids=["inline", "empty", "blocks"])
def test_a_read_within_the_bound_asks_the_database_nothing(tmp_path: Path, body: bytes) -> None:
    async def story(made: World) -> None:
        stored = await made.put(body)
        first = await made.get()
        assert (first.status, "age" in first.headers, "cache-status" in first.headers) == (200, False, False)
        before = made.uses
        made.wait(2.5)
        again = await made.get()
        assert again.body == body
        assert (again.headers["age"], again.headers["cache-status"]) == ("2", "tigrislike; hit; ttl=7")
        etag = stored.headers["etag"]
        same = {name: again.headers[name] for name in ("etag", "last-modified", "content-length")}
        assert same == {name: first.headers[name] for name in same}
        assert (await made.get("k", "HEAD")).headers["content-length"] == str(len(body))
        assert (await made.get(headers={"if-none-match": etag})).status == 304
        assert (await made.get(headers={"if-match": etag})).status == 200
        if body:
            ranged = await made.get(headers={"range": "bytes=1-3"})
            assert (ranged.status, ranged.body) == (206, body[1:4])
            part = await made.get(query={"partNumber": "1"})
            assert part.body == body
        assert made.uses == before
        # A strong read, for comparison.
        assert (await made.get(headers=FORCE)).body == body
        assert made.uses == before + 1

    play(tmp_path, story)


def test_parts_and_versions_are_read_from_what_is_known(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await made.node.metadata.set_versioning("bkt", "Enabled")
        old = (await made.put(b"old")).headers["x-amz-version-id"]
        await made.put(b"new")
        upload = text_of(await made.node.request("POST", "/bkt/parts", {"uploads": ""}), "UploadId")
        pieces = [bytes([n]) * (5 * 1024 * 1024 if n == 1 else 10) for n in (1, 2)]
        listed = b""
        for n, piece in enumerate(pieces, 1):
            sent = await made.node.request("PUT", "/bkt/parts", {"uploadId": upload, "partNumber": str(n)}, body=piece)
            listed += b"<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>" % (n, sent.headers["etag"].encode())
        listed = b"<CompleteMultipartUpload>%s</CompleteMultipartUpload>" % listed
        assert (await made.node.request("POST", "/bkt/parts", {"uploadId": upload}, body=listed)).status == 200
        queries: list[tuple[str, dict[str, str], bytes]] = [
            ("k", {}, b"new"),
            ("k", {"versionId": old}, b"old"),
            ("parts", {"partNumber": "2"}, pieces[1]),
        ]
        for key, query, body in queries:
            assert (await made.get(key, query=query)).body == body
        before = made.uses
        for key, query, body in queries:
            assert (await made.get(key, query=query)).body == body
            head = await made.get(key, "HEAD", query=query)
            assert head.headers["content-length"] == str(len(body))
        assert (await made.get("parts", "HEAD", query={"partNumber": "2"})).headers["x-amz-mp-parts-count"] == "2"
        assert made.uses == before

    play(tmp_path, story)


def test_an_answer_gets_as_old_as_the_bound_and_no_older(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await made.put(b"old")
        await made.get()
        await made.put_elsewhere(b"new")
        made.wait(BOUND_S)
        assert (await made.get()).body == b"old"
        assert (await made.get(headers=FORCE)).body == b"new"
        assert (await made.get()).body == b"new"  # what somebody has seen here, everybody sees
        await made.put_elsewhere(b"newer")
        made.wait(BOUND_S + 0.001)
        renewed = await made.get()
        assert (renewed.body, renewed.headers["age"]) == (b"newer", "0")

    play(tmp_path, story)


def test_a_refusal_is_the_databases(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        old = await made.put(b"old")
        await made.get()
        await made.put_elsewhere(b"new and longer")
        etag = (await made.node.metadata.head_object(await made.node.metadata.bucket("bkt"), "k")).etag
        # By what is known here both would be refused.
        assert (await made.get(headers={"range": "bytes=5-7"})).body == b"nd "
        await made.put_elsewhere(b"newest")
        made.node.metadata._recollection.forget_version(((await made.node.metadata.bucket("bkt")).id, "k"), None)
        await made.get()
        assert (await made.get(headers={"if-match": f'"{etag}"'})).status == 412
        assert (await made.get(headers={"if-match": old.headers["etag"]})).status == 412
        assert (await made.get("nothing")).status == 404
        await made.put_elsewhere(b"here", "nothing")
        assert (await made.get("nothing")).body == b"here"

    play(tmp_path, story)


def test_a_revoked_key_is_refused_within_the_bound(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        key = await made.elsewhere.create_access_key("root")
        root = await made.elsewhere.access_key(KEY_ID)
        assert root is not None
        key = await made.elsewhere.create_access_key(root.owner)
        made.node.caller = Caller(SimpleNamespace(endpoint=f"http://{HOST}"), key.key_id, key.secret)
        await made.put(b"data")
        assert (await made.get()).status == 200
        await made.elsewhere.delete_access_key(key.key_id)
        made.wait(BOUND_S)
        assert (await made.get()).status == 200
        made.wait(0.001)
        refused = await made.get()
        assert (refused.status, text_of(refused, "Code")) == (403, "InvalidAccessKeyId")

    play(tmp_path, story)


def test_a_wrong_signature_is_refused_whatever_is_known(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await made.put(b"data")
        await made.get()
        made.node.caller = Caller(SimpleNamespace(endpoint=f"http://{HOST}"), KEY_ID, "not the secret")
        assert (await made.get()).status == 403
        made.faults.cut_off = True
        made.wait(BOUND_S + 1)
        refused = await made.get()
        assert (refused.status, text_of(refused, "Code")) == (403, "SignatureDoesNotMatch")

    play(tmp_path, story)


def test_a_bucket_that_ceases_to_be_public_is_closed_within_the_bound(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await made.put(b"data")
        await made.elsewhere.change_bucket("bkt", public=True)
        assert (await made.node.send("GET", "/bkt/k", {"host": HOST}, [])).status == 200
        await made.elsewhere.change_bucket("bkt", public=False)
        made.wait(BOUND_S)
        assert (await made.node.send("GET", "/bkt/k", {"host": HOST}, [])).status == 200
        made.wait(0.001)
        assert (await made.node.send("GET", "/bkt/k", {"host": HOST}, [])).status == 403

    play(tmp_path, story)


def test_own_writes_are_read_at_once(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        for n in range(3):
            await made.put(b"%d" % n)
            assert (await made.get()).body == b"%d" % n
            assert (await made.get()).body == b"%d" % n
        assert (await made.node.request("DELETE", "/bkt/k")).status == 204
        assert (await made.get()).status == 404

    play(tmp_path, story)


def test_bytes_that_are_gone_send_the_read_to_the_database(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await made.put(LARGE)
        assert (await made.get()).body == LARGE
        await made.put_elsewhere(b"instead")
        for file in (tmp_path / "cache" / "home").rglob("*"):  # as reclaiming does once the grace is over
            if file.is_file():
                file.unlink()
        answer = await made.get()
        assert (answer.status, answer.body, "age" in answer.headers) == (200, b"instead", False)

    play(tmp_path, story)


def test_an_outage_leaves_reads_of_what_is_known(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        assert (await made.node.request("PUT", "/plain")).status == 200
        assert (await made.node.request("PUT", "/plain/k", body=b"strong")).status == 200
        await made.node.request("GET", "/plain/k")
        await made.put(b"known")
        await made.put(LARGE, "large")
        await made.put(b"unknown", "unread")
        await made.get()
        await made.get("large")
        made.faults.cut_off = True
        assert (await made.get()).headers["cache-status"].endswith("ttl=10")
        made.wait(BOUND_S + 20)
        stale = await made.get()
        assert (stale.body, stale.headers["age"], stale.headers["cache-status"]) == (
            b"known",
            "30",
            "tigrislike; hit; ttl=-20",
        )
        assert (await made.get("large")).body == LARGE
        assert (await made.get(headers={"range": "bytes=9-"})).status == 416
        before = made.uses
        for method, path, headers in (
            ("GET", "/bkt/unread", {}),
            ("GET", "/bkt/k", FORCE),
            ("GET", "/plain/k", {}),
            ("PUT", "/bkt/k", {}),
            ("DELETE", "/bkt/k", {}),
            ("GET", "/bkt", {}),
        ):
            refused = await made.node.request(method, path, headers=headers)
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert made.uses == before  # nobody waits for what is known to be away
        made.wait(OUTAGE_S - 30)
        assert (await made.get()).body == b"known"
        made.wait(0.001)
        assert (await made.get()).status == 503
        made.faults.cut_off = False
        assert made.node.metadata.outage._probing is not None
        await asyncio.wait([made.node.metadata.outage._probing])
        back = await made.get()
        assert (back.body, "age" in back.headers) == (b"known", False)
        await made.put(b"written again")
        assert (await made.get()).body == b"written again"

    play(tmp_path, story)


def test_a_database_that_does_not_answer_in_time_is_waited_for_once(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await made.put(b"known")
        await made.get()
        made.faults.read_delay_s = 1e6
        made.wait(BOUND_S + 1)
        begun = made.uses
        assert (await made.get()).headers["age"] == "11"
        assert made.node.metadata.outage.under_way
        assert not made.node.metadata.outage.certain
        waited = made.uses
        assert waited == begun + 1
        for _ in range(5):
            assert (await made.get()).headers["age"] == "11"
        assert made.uses <= waited + 1  # but for the question in the background

    play(tmp_path, story, wait_s=0.01)


def test_small_objects_up_to_the_inline_size_need_no_database(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        body = bytes(INLINE)
        await made.put(body)
        await made.get()
        before = made.uses
        assert (await made.get()).body == body
        assert made.uses == before
        await made.get("k", "HEAD")
        assert made.uses == before

    play(tmp_path, story)
