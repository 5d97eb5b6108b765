"""What clients see of regions, through the application of one node: the others are stood in for by `Elsewhere`."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bytecache.faults import NoSync
from tests.bytecache.scripted_source import ScriptedSource
from tests.crash.inprocess import BLOCK, INLINE, KEY_ID, SECRET, InProcessNode, opened, part_list, text_of
from tests.e2e.wire import Answer
from tigrislike.metadata import homes
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Content, Home, Item
from tigrislike.replication.consumer import Consumer
from tigrislike.replication.spreading import TooFewHomes
from tigrislike.s3api.sigv4 import signing_key

LARGE = 2 * BLOCK + 17
OTHER = Home("fra", b"a node elsewhere")


def data_of(seed: int, size: int = LARGE) -> bytes:
    return random.Random(seed).randbytes(size)


class Elsewhere:
    """The other nodes of a store, as its operations see them: `Regional`."""

    def __init__(self) -> None:
        self.node: InProcessNode
        self.counted: list[bytes] = []
        self.demand = SimpleNamespace(count=self.counted.append)
        self.source = SimpleNamespace(served_from=lambda blob_id: "fra")
        self.members = SimpleNamespace(alive=self._alive)
        self.asked: list[tuple[int, int, tuple[str, ...]]] = []
        self.refusal: TooFewHomes | None = None

    def _alive(self) -> dict[bytes, str]:
        own = self.node.metadata.context.home
        return {own.node: own.region, OTHER.node: OTHER.region}

    async def spread(self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]) -> tuple[Home, ...]:
        self.asked.append((size, copies, regions))
        assert await self.node.metadata.blob(blob_id) is None  # nobody has heard of it yet
        assert blob_id in await stored(self.node)
        if self.refusal is not None:
            raise self.refusal
        return (OTHER,)


async def stored(node: InProcessNode) -> list[bytes]:
    return [blob.blob_id async for blob in node.blocks.blobs()]


Story = Callable[[InProcessNode, Elsewhere], Awaitable[None]]


def play(folder: Path, story: Story, *, alone: bool = False) -> None:
    """One story on a node of region `here`; other nodes are in `fra` and `sjc`, unless it is `alone`."""

    async def main() -> None:
        elsewhere = Elsewhere()
        async with opened(folder, fs=NoSync(), regional=None if alone else elsewhere) as node:
            elsewhere.node = node
            if not alone:
                node.metadata.regions.known = frozenset({"here", "fra", "sjc"})
            await node.blocks.reconcile()
            await story(node, elsewhere)

    asyncio.run(main())


async def ok(request: Awaitable[Answer]) -> Answer:
    answer = await request
    assert answer.status in (200, 204, 206), answer.body
    return answer


async def content_of(node: InProcessNode, key: str, bucket: str = "bucket") -> Content:
    found = await node.metadata.find_object(await node.metadata.bucket(bucket), key)
    content = await node.metadata.content(found.version.content)
    assert content is not None
    return content


async def begin(node: InProcessNode, key: str, **headers: str) -> str:
    return text_of(await ok(node.request("POST", f"/bucket/{key}", {"uploads": ""}, headers)), "UploadId")


# --- policies of buckets


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("iad", "iad"),
        ("iad,sjc", "iad,sjc"),
        (" IAD , sjc,iad", "iad,sjc"),
        ("usa", "usa"),
        ("global", None),
        ("", None),
        (None, None),
    ],
)
def test_a_bucket_has_the_regions_that_it_was_made_with(tmp_path: Path, header: str | None, kept: str | None) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        headers = {} if header is None else {"X-Tigris-Regions": header}
        await ok(node.request("PUT", "/bucket", headers=headers))
        assert (await ok(node.request("HEAD", "/bucket"))).headers.get("x-tigris-regions") == kept

    play(tmp_path, story)


@pytest.mark.parametrize(("header", "kept"), [("local", None), ("homes=1", None), ("homes=3", "homes=3"), (None, None)])
def test_a_bucket_has_the_durability_that_it_was_made_with(
    tmp_path: Path, header: str | None, kept: str | None
) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        headers = {} if header is None else {"X-Tigrislike-Durability": header}
        await ok(node.request("PUT", "/bucket", headers=headers))
        assert (await ok(node.request("HEAD", "/bucket"))).headers.get("x-tigrislike-durability") == kept

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Tigris-Regions", "iad,,sjc"),
        ("X-Tigris-Regions", "no region"),
        ("X-Tigris-Regions", ",".join(f"r{number}" for number in range(17))),
        ("X-Tigris-Regions", "global,iad,-"),
        ("X-Tigrislike-Durability", ""),
        ("X-Tigrislike-Durability", "homes=0"),
        ("X-Tigrislike-Durability", "homes=10"),
        ("X-Tigrislike-Durability", "eleven nines"),
    ],
)
def test_nonsense_makes_no_bucket(tmp_path: Path, name: str, value: str) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        answer = await node.request("PUT", "/bucket", headers={name: value})
        assert (answer.status, answer.code, answer.error["ArgumentValue"]) == (400, "InvalidArgument", value)
        assert (await node.request("HEAD", "/bucket")).status == 404

    play(tmp_path, story)


# --- where objects are wanted


def test_a_request_says_where_its_object_is_kept_and_else_its_bucket_does(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket", headers={"x-tigris-regions": "fra"}))
        at_sjc = {"x-tigris-regions": "sjc"}
        await ok(node.request("PUT", "/bucket/plain", body=data_of(1)))
        await ok(node.request("PUT", "/bucket/put", headers=at_sjc, body=data_of(2)))
        assert (await content_of(node, "plain")).regions == ("fra",)
        assert (await content_of(node, "put")).regions == ("sjc",)
        upload = await begin(node, "parts", **at_sjc)
        query = {"partNumber": "1", "uploadId": upload}
        part = await ok(node.request("PUT", "/bucket/parts", query, body=data_of(3)))
        body = part_list({1: part.headers["etag"]})
        await ok(node.request("POST", "/bucket/parts", {"uploadId": upload}, body=body))
        assert (await content_of(node, "parts")).regions == ("sjc",)
        # The two share their bytes, which are wanted wherever either is.
        copy = {"x-amz-copy-source": "/bucket/plain", **at_sjc}
        await ok(node.request("PUT", "/bucket/copy", headers=copy))
        assert (await content_of(node, "copy")).regions == ("fra", "sjc")
        # Also an object copied to itself changes in this way.
        itself = {"x-amz-copy-source": "/bucket/put", "x-tigris-regions": "fra"}
        await ok(node.request("PUT", "/bucket/put", headers=itself))
        assert (await content_of(node, "put")).regions == ("sjc", "fra")

    play(tmp_path, story)


@pytest.mark.parametrize("method", ["put", "copy", "upload"])
def test_nonsense_for_an_object_writes_nothing(tmp_path: Path, method: str) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/source", body=b"x"))
        headers = {"x-tigris-regions": "*"}
        if method == "upload":
            answer = await node.request("POST", "/bucket/k", {"uploads": ""}, headers)
        else:
            headers |= {"x-amz-copy-source": "/bucket/source"} if method == "copy" else {}
            answer = await node.request("PUT", "/bucket/k", headers=headers, body=b"" if method == "copy" else b"x")
        assert (answer.status, answer.code) == (400, "InvalidArgument")
        assert (await node.request("HEAD", "/bucket/k")).status == 404
        assert b"<Upload>" not in (await ok(node.request("GET", "/bucket", {"uploads": ""}))).body

    play(tmp_path, story)


def test_a_read_that_names_regions_is_served_as_any(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/k", body=b"x"))
        assert (await ok(node.request("GET", "/bucket/k", headers={"x-tigris-regions": "iad"}))).body == b"x"

    play(tmp_path, story)


# --- several homes before a write is acknowledged

SEVERAL = [({"x-tigrislike-durability": "homes=2"}, ()), ({"x-tigris-regions": "fra,sjc"}, ("fra", "sjc"))]


@pytest.mark.parametrize(("policy", "regions"), SEVERAL)
def test_what_is_acknowledged_has_as_many_homes_as_its_bucket_wants(
    tmp_path: Path, policy: dict[str, str], regions: tuple[str, ...]
) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket", headers=policy))
        await ok(node.request("PUT", "/bucket/put", body=data_of(1)))
        await ok(form(node, "form", data_of(2)))
        upload = await begin(node, "parts")
        query = {"partNumber": "1", "uploadId": upload}
        part = await ok(node.request("PUT", "/bucket/parts", query, body=data_of(3, 5 * 1024**2)))
        # A copied part of an object that lies in the database has bytes of its own.
        await ok(node.request("PUT", "/bucket/small", body=b"small"))
        query["partNumber"] = "2"
        source = {"x-amz-copy-source": "/bucket/small"}
        copied = text_of(await ok(node.request("PUT", "/bucket/parts", query, source)), "ETag")
        body = part_list({1: part.headers["etag"], 2: copied})
        await ok(node.request("POST", "/bucket/parts", {"uploadId": upload}, body=body))
        assert elsewhere.asked == [(size, 2, regions) for size in (LARGE, LARGE, 5 * 1024**2, 5)]
        for key in ("put", "form", "parts"):
            content = await content_of(node, key)
            assert (content.homes, content.copies) == ((node.metadata.context.home, OTHER), 2)

    play(tmp_path, story)


def test_one_home_is_enough_where_nothing_else_is_said_and_for_what_the_database_holds(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/large", body=data_of(1)))
        await ok(node.request("PUT", "/bucket/single", headers={"x-tigris-regions": "fra"}, body=data_of(2)))
        await ok(node.request("PUT", "/safe", headers={"x-tigrislike-durability": "homes=9"}))
        await ok(node.request("PUT", "/safe/small", body=data_of(3, INLINE)))
        await ok(node.request("PUT", "/safe/empty"))
        assert elsewhere.asked == []
        assert (await content_of(node, "single")).homes == (node.metadata.context.home,)

    play(tmp_path, story)


@pytest.mark.parametrize("kind", ["put", "part", "form"])
def test_a_write_that_too_few_nodes_hold_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket", headers={"x-tigrislike-durability": "homes=3"}))
        await ok(node.request("PUT", "/bucket/k", body=data_of(1)))
        before = await stored(node)
        upload = await begin(node, "k")
        elsewhere.refusal = TooFewHomes("2 of the 3 nodes that must hold this object could be reached")
        if kind == "put":
            answer = await node.request("PUT", "/bucket/k", body=data_of(2))
        elif kind == "form":
            answer = await form(node, "k", data_of(2))
        else:
            answer = await node.request("PUT", "/bucket/k", {"partNumber": "1", "uploadId": upload}, body=data_of(2))
        assert (answer.status, answer.code) == (503, "ServiceUnavailable")
        assert answer.error["Message"] == str(elsewhere.refusal)
        assert int(answer.headers["retry-after"]) > 0
        assert await stored(node) == before
        assert (await ok(node.request("GET", "/bucket/k"))).body == data_of(1)
        assert b"<Part>" not in (await ok(node.request("GET", "/bucket/k", {"uploadId": upload}))).body

    play(tmp_path, story)


@pytest.mark.parametrize("kind", ["put", "copied part"])
def test_a_node_that_knows_of_no_other_refuses_at_once(tmp_path: Path, kind: str) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket", headers={"x-tigrislike-durability": "homes=2"}))
        await ok(node.request("PUT", "/bucket/small", body=b"x"))
        if kind == "put":
            answer = await node.request("PUT", "/bucket/k", body=data_of(1))
        else:
            query = {"partNumber": "1", "uploadId": await begin(node, "k")}
            answer = await node.request("PUT", "/bucket/k", query, {"x-amz-copy-source": "/bucket/small"})
        assert (answer.status, answer.code) == (503, "ServiceUnavailable")
        assert "held by others beside this node" in answer.error["Message"]
        assert "retry-after" in answer.headers
        assert await stored(node) == []

    play(tmp_path, story, alone=True)


async def form(node: InProcessNode, key: str, file: bytes, **fields: str) -> Answer:
    """Upload `file` by a form, signed as boto3 signs one."""
    now, day = "20360101T000000Z", "20360101"
    given = {
        "key": key,
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": f"{KEY_ID}/{day}/auto/s3/aws4_request",
        "x-amz-date": now,
        **fields,
    }
    conditions = [{"bucket": "bucket"}, *({name: value} for name, value in given.items())]
    policy = base64.b64encode(json.dumps({"expiration": "2099-01-01T00:00:00Z", "conditions": conditions}).encode())
    signature = signing_key(SECRET, day, "auto", "s3").sign(policy)
    given |= {"policy": policy.decode(), "x-amz-signature": signature}
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in given.items()]
    head = "".join(f"--b\r\n{part}" for part in parts)
    head += '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body = head.encode() + file + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(len(body)), "host": "node.test"}
    return await node.send("POST", "/bucket", headers, [body])


def test_a_form_says_where_its_object_is_kept(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(form(node, "k", data_of(1), **{"X-Tigris-Regions": "fra"}))
        assert (await content_of(node, "k")).regions == ("fra",)

    play(tmp_path, story)


# --- where bytes came from


async def served_from(node: InProcessNode, method: str = "GET", **headers: str) -> str | None:
    answer = await node.request(
        method, "/bucket/k", headers={name.replace("_", "-"): headers[name] for name in headers}
    )
    assert answer.status in (200, 206, 304)
    return answer.headers.get("x-tigris-served-from")


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("size", [0, INLINE, LARGE, 5 * BLOCK])
def test_what_is_here_is_served_from_here(tmp_path: Path, size: int, alone: bool) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        etag = (await ok(node.request("PUT", "/bucket/k", body=data_of(1, size)))).headers["etag"]
        assert await served_from(node) == "here"
        assert await served_from(node, "HEAD") == "here"
        assert await served_from(node, if_none_match=etag) == "here"
        if size:
            assert await served_from(node, range="bytes=0-0") == "here"

    play(tmp_path, story, alone=alone)


@pytest.mark.parametrize("size", [BLOCK // 2, 5 * BLOCK], ids=["small", "large"])
def test_what_is_fetched_is_served_from_where_it_was_and_from_here_ever_after(tmp_path: Path, size: int) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/k", body=data_of(1, size)))
        (blob_id,) = await stored(node)
        node.blocks.fill_from(ScriptedSource(blobs={blob_id: data_of(1, size)}))
        await node.blocks.delete_blob(blob_id)
        assert await served_from(node, "HEAD") == "here"
        assert await served_from(node) == "fra"
        await node.blocks.warm(blob_id, size)
        assert await served_from(node) == "here"

    play(tmp_path, story)


def test_what_can_not_be_fetched_is_an_error_and_served_from_nowhere(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/k", body=data_of(1)))
        (blob_id,) = await stored(node)
        node.blocks.fill_from(ScriptedSource())
        await node.blocks.delete_blob(blob_id)
        answer = await node.request("GET", "/bucket/k")
        assert answer.status == 500
        assert "x-tigris-served-from" not in answer.headers

    play(tmp_path, story)


def test_each_get_of_stored_bytes_is_counted_as_demand(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/k", body=data_of(1)))
        (blob_id,) = await stored(node)
        await ok(node.request("GET", "/bucket/k"))
        await ok(node.request("GET", "/bucket/k", headers={"range": f"bytes={BLOCK}-"}))
        assert elsewhere.counted == [blob_id] * 2
        await ok(node.request("HEAD", "/bucket/k"))
        await ok(node.request("PUT", "/bucket/small", body=b"x"))
        await ok(node.request("GET", "/bucket/small"))
        assert elsewhere.counted == [blob_id] * 2

    play(tmp_path, story)


# --- copies in caches


class Recorder:
    """A task `warm` that notes what it is asked to warm."""

    name = homes.WARM
    priority = homes.WARM_PRIORITY
    concurrency = 1

    def __init__(self) -> None:
        self.warmed: list[bytes] = []

    async def run(self, item: Item) -> Effect | None:
        self.warmed.append(item.subject)
        return None


async def owed_to(node: InProcessNode, region: str) -> list[bytes]:
    """Contents that a region owes its cache a copy of; they are not owed any more."""
    recorder = Recorder()
    await Consumer(node.metadata.queue, [homes.region_destination(region)], [recorder]).drain()
    return recorder.warmed


async def accelerate(node: InProcessNode, status: str) -> Answer:
    body = f"<AccelerateConfiguration><Status>{status}</Status></AccelerateConfiguration>".encode()
    return await node.request("PUT", "/bucket", {"accelerate": ""}, body=body)


def test_what_is_written_to_an_accelerated_bucket_is_warmed_in_every_other_region(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(accelerate(node, "Enabled"))
        await ok(node.request("PUT", "/bucket/put", body=data_of(1)))
        await ok(node.request("PUT", "/bucket/small", body=b"x"))
        upload = await begin(node, "parts")
        query = {"partNumber": "1", "uploadId": upload}
        part = await ok(node.request("PUT", "/bucket/parts", query, body=data_of(3)))
        body = part_list({1: part.headers["etag"]})
        await ok(node.request("POST", "/bucket/parts", {"uploadId": upload}, body=body))
        wanted = {
            (await node.metadata.find_object(await node.metadata.bucket("bucket"), key)).version.content
            for key in ("put", "parts")
        }
        for region in ("fra", "sjc"):
            assert set(await owed_to(node, region)) == wanted
        assert await owed_to(node, "here") == []
        await ok(node.request("PUT", "/bucket/copy", headers={"x-amz-copy-source": "/bucket/put"}))
        assert len(await owed_to(node, "fra")) == 1

    play(tmp_path, story)


def test_nothing_is_warmed_where_nobody_asked_or_where_regions_are_named(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/never", body=data_of(1)))
        await ok(accelerate(node, "Enabled"))
        await ok(node.request("PUT", "/bucket/named", headers={"x-tigris-regions": "here"}, body=data_of(2)))
        await ok(accelerate(node, "Suspended"))
        await ok(node.request("PUT", "/bucket/suspended", body=data_of(3)))
        assert await owed_to(node, "fra") + await owed_to(node, "sjc") == []

    play(tmp_path, story)


def test_acceleration_is_what_was_put_last(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        for status in ("Enabled", "Suspended", "Enabled"):
            await ok(accelerate(node, status))
            assert text_of(await ok(node.request("GET", "/bucket", {"accelerate": ""})), "Status") == status
        for body in (b"", b"<AccelerateConfiguration/>", b"<AccelerateConfiguration><Status>On</Status>"):
            answer = await node.request("PUT", "/bucket", {"accelerate": ""}, body=body)
            assert answer.status == 400
        assert (await accelerate(node, "Maybe")).code == "MalformedXML"
        assert text_of(await ok(node.request("GET", "/bucket", {"accelerate": ""})), "Status") == "Enabled"

    play(tmp_path, story)


async def prefetch(node: InProcessNode, **query: str) -> Answer:
    return await ok(node.request("GET", "/bucket", {"list-type": "2", **query}, {"x-tigris-prefetch": "true"}))


def test_what_is_listed_is_warmed_here_if_asked_and_once(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        # More than one transaction takes.
        upload = {f"k{number:03}": data_of(number, INLINE + 1) for number in range(120)}
        for key, data in upload.items():
            await ok(node.request("PUT", f"/bucket/{key}", body=data))
        await ok(node.request("PUT", "/bucket/copy", headers={"x-amz-copy-source": "/bucket/k000"}))
        await ok(node.request("PUT", "/bucket/small", body=b"x"))
        plain = await ok(node.request("GET", "/bucket", {"list-type": "2"}))
        assert await owed_to(node, "here") == []
        assert (await prefetch(node)).body == plain.body
        await prefetch(node, prefix="k00")
        assert sorted(await owed_to(node, "here")) == sorted(await stored(node))
        await prefetch(node, prefix="k", **{"max-keys": "7"})
        assert len(await owed_to(node, "here")) == 7
        await ok(node.request("GET", "/bucket", {"list-type": "2"}, {"x-tigris-prefetch": "false"}))
        assert await owed_to(node, "here") + await owed_to(node, "fra") == []

    play(tmp_path, story)


def test_a_node_alone_has_nothing_to_prefetch(tmp_path: Path) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/k", body=data_of(1)))
        await prefetch(node)
        assert await owed_to(node, "here") == []

    play(tmp_path, story, alone=True)


def test_a_listing_stands_though_nothing_can_be_prefetched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(node: InProcessNode, elsewhere: Elsewhere) -> None:
        await ok(node.request("PUT", "/bucket"))
        await ok(node.request("PUT", "/bucket/k", body=data_of(1)))
        await node.engine.seal("the test says so")
        assert b"<Key>k</Key>" in (await prefetch(node)).body
        assert "nothing is prefetched" in caplog.text

    play(tmp_path, story)
