"""A node on a sealed store: writes are answered 503 with Retry-After, reads as ever, background work rests quietly."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.crash.requests import Client
from tests.e2e.wire import EMPTY_SHA256, Answer, connect, head_of
from tests.nodes import RunningNode, engine_settings, running_node
from tigrislike import node as node_module
from tigrislike.bytecache import BlockStore
from tigrislike.config import Settings
from tigrislike.metadata.kv import CommitUnknown, Engine, EngineUnavailable, StoreSealed, open_engine
from tigrislike.metadata.kv.errors import TemporarilyRefused

REASON = "its metadata is being copied to a secret place"
LARGE = bytes(100_000)


class Plain(Client):
    """Answers as they are, whatever their status."""

    def answer(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        headers = {"content-length": str(len(body))} if method in ("PUT", "POST") else {}
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        signed = self.caller.sign(
            method, target, headers, payload=hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
        )
        with contextlib.closing(connect(self.node)) as connection:
            connection.sendall(head_of(method, target, signed) + body)
            with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
                response.begin()
                data = response.read()
                found = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, found, data)


def with_engine(data_dir: Path, act: Callable[[Engine], object]) -> None:
    async def main() -> None:
        engine = await open_engine(Settings(data_dir=data_dir, **engine_settings(data_dir)).metadata)
        try:
            await act(engine)  # type: ignore[misc]
        finally:
            await engine.close()

    asyncio.run(main())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running_node(tmp_path / "data", "--reclaim-grace=0", "--sweep-interval=1s", "--disk-reserve=0") as running:
        yield running


def test_writes_are_refused_with_retry_after_and_reads_go_on(node: RunningNode) -> None:
    client = Plain(node)
    assert client.answer("PUT", "/bucket").status == 200
    for key, data in (("small", b"small"), ("large", LARGE)):
        assert client.answer("PUT", f"/bucket/{key}", body=data).status == 200
    begun = client.answer("POST", "/bucket/upload", {"uploads": ""})
    upload = begun.body.split(b"<UploadId>")[1].split(b"<")[0].decode()
    part = {"partNumber": "1", "uploadId": upload}
    etag = client.answer("PUT", "/bucket/upload", part, LARGE).headers["etag"]
    complete = (
        f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
    ).encode()

    with_engine(node.data_dir, lambda engine: engine.seal(REASON))
    refused = {
        "put": client.answer("PUT", "/bucket/new", body=b"data"),
        "put over": client.answer("PUT", "/bucket/small", body=LARGE),
        "delete": client.answer("DELETE", "/bucket/small"),
        "begin": client.answer("POST", "/bucket/other", {"uploads": ""}),
        "part": client.answer("PUT", "/bucket/upload", {**part, "partNumber": "2"}, LARGE),
        "complete": client.answer("POST", "/bucket/upload", {"uploadId": upload}, complete),
        "abort": client.answer("DELETE", "/bucket/upload", {"uploadId": upload}),
        "make": client.answer("PUT", "/another-bucket"),
        "remove": client.answer("DELETE", "/bucket"),
    }
    for what, answer in refused.items():
        if what == "remove":
            assert answer.status in (409, 503)  # the bucket is not empty, which is for it to say first
            continue
        assert answer.status == 503, (what, answer)
        assert int(answer.headers["retry-after"]) >= 1, what
        assert answer.code == "SlowDown", what
        assert b"secret place" not in answer.body, "where the store goes is not for clients"
    assert client.answer("GET", "/bucket/small").body == b"small"
    assert client.answer("GET", "/bucket/large").body == LARGE
    assert client.answer("HEAD", "/bucket/large").status == 200
    assert client.answer("GET", "/bucket", {"list-type": "2"}).body.count(b"<Key>") == 2
    assert client.answer("GET", "/readyz").status == 200

    with_engine(node.data_dir, lambda engine: engine.unseal())
    assert client.answer("PUT", "/bucket/new", body=b"data").status == 200
    assert client.answer("DELETE", "/bucket/small").status == 204
    assert client.answer("POST", "/bucket/upload", {"uploadId": upload}, complete).status == 200
    assert client.answer("GET", "/bucket/upload").body == LARGE
    assert node.stop() == 0
    assert "Traceback" not in node.log.read_text()


def test_a_node_starts_on_a_sealed_store(node: RunningNode, tmp_path: Path) -> None:
    client = Plain(node)
    client.answer("PUT", "/bucket")
    client.answer("PUT", "/bucket/large", body=LARGE)
    client.answer("DELETE", "/bucket/large")  # reclaim has something to do
    client.answer("PUT", "/bucket/kept", body=LARGE)
    assert node.stop() == 0
    with_engine(node.data_dir, lambda engine: engine.seal(REASON))
    node.log.write_text("")
    with running_node(tmp_path / "data", "--reclaim-grace=0", "--sweep-interval=1s", "--disk-reserve=0") as again:
        client = Plain(again)
        assert client.answer("GET", "/bucket/kept").body == LARGE
        assert client.answer("PUT", "/bucket/new", body=b"").status == 503
        deadline = time.monotonic() + 30
        while f"rests, for the store is sealed: {REASON}" not in again.log.read_text():
            assert time.monotonic() < deadline, again.log.read_text()
            time.sleep(0.02)
        assert again.stop() == 0
        log = again.log.read_text()
        assert log.count("beat rests") == 1, "once, though it is tried again and again"
        assert "Traceback" not in log
        assert "failed" not in log


def test_a_duty_rests_while_the_store_is_sealed_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[Exception | None] = [
        None,
        *[StoreSealed("one")] * 5,
        *[StoreSealed("two")] * 5,
        None,
        None,
        OSError("disk"),
        EngineUnavailable("away"),
        TemporarilyRefused("throttled", 1213),
        CommitUnknown("unknown"),
        StoreSealed("two"),
    ]
    pauses: list[float] = []

    class Done(BaseException):
        pass

    async def duty() -> None:
        if not outcomes:
            raise Done
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    monkeypatch.setattr(node_module.asyncio, "sleep", sleep)
    with caplog.at_level("INFO", "tigrislike.node"), pytest.raises(Done):
        asyncio.run(node_module._repeat("sweep", duty, 1.0))
    assert [record.message for record in caplog.records] == [
        "sweep rests, for the store is sealed: one",
        "sweep rests, for the store is sealed: two",
        "sweep goes on",
        "sweep failed; next try in 30 s",
        "sweep waits for the database: away",
        "sweep rests, for the store is sealed: two",
    ]
    assert pauses == [1.0, *[30.0] * 10, 1.0, 1.0, 30.0, *[2.0] * 3, 30.0]
    assert [record.message for record in caplog.records if record.exc_info] == ["sweep failed; next try in 30 s"]


def test_a_sweep_that_meets_the_seal_leaves_everything_for_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        settings = Settings(data_dir=tmp_path / "data", reserve_bytes=0)
        async with node_module.Node.opened(settings) as node:
            writer = node.blocks.create_blob()
            await writer.write(LARGE)
            await writer.finish()
            blob_id = writer.blob_id
            node.blocks.release(blob_id)
            await node.engine.seal(REASON)
            with pytest.raises(StoreSealed):
                await node.blocks.sweep(node.metadata.settle_blob)
            assert [blob.place for blob in await _blobs(node.blocks)] == ["incoming"]
            await node.engine.unseal()
            stats = await node.blocks.sweep(node.metadata.settle_blob)
            assert (stats.removed, stats.live) == (1, 0)

    asyncio.run(main())


async def _blobs(blocks: BlockStore) -> list[object]:
    return [blob async for blob in blocks.blobs()]  # type: ignore[misc]
