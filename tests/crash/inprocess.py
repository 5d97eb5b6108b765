"""A node's application in this process, over whatever file systems a test puts under it, driven request by request.

Between a test and the store lie only ASGI and the signature: no sockets, so that every step is the test's. A body may
be sent in pieces, and a client may vanish in the middle of one. The engine is the one under test (`tests/clusters.py`).
"""

from __future__ import annotations

import contextlib
import functools
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import quote, urlencode

from tests.e2e.wire import UNSIGNED, Answer, Caller, moment_of
from tests.nodes import engine_settings
from tigrislike.bytecache import BlockStore
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.config import Settings
from tigrislike.metadata import MasterKey, Metadata
from tigrislike.metadata.kv import Clock, Engine, Faults, open_engine
from tigrislike.metadata.kv.sqlite import SqliteEngine
from tigrislike.s3api.app import create_app
from tigrislike.s3api.protocol import Protocol, load_protocol

BLOCK = 64 * 1024
"""Small blocks, so that an object of several is cheap."""

INLINE = 4096
MASTER = MasterKey(bytes(range(32)))
KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HOST = "node.test"


class Vanished(Exception):
    """In place of a piece of a body: the client's connection is reset here."""


@dataclass
class InProcessNode:
    """The open parts of a node and its application; `caller` signs as the root user."""

    engine: Engine
    metadata: Metadata
    blocks: BlockStore
    app: Any
    caller: Caller

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes | Vanished] = b"",
        *,
        length: int | None = None,
        payload: str = UNSIGNED,
    ) -> Answer:
        """One signed request. `path` is `/bucket/key`, not yet encoded; `length` overrides the body's Content-Length.

        Raises:
            ConnectionError: the answer was cut, or the client had vanished.
        """
        pieces: list[bytes | Vanished] = [body] if isinstance(body, bytes) else list(body)
        given = dict(headers or {})
        if length is None:
            length = sum(len(piece) for piece in pieces if isinstance(piece, bytes))
        if method in ("PUT", "POST") or length:
            given.setdefault("content-length", str(length))
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        moment = moment_of(self.metadata.now_ns() / 1e9)
        signed = self.caller.sign(method, target, given, payload=payload, moment=moment)
        return await self.send(method, target, signed, pieces)

    async def send(
        self, method: str, target: str, headers: Mapping[str, str], pieces: Iterable[bytes | Vanished]
    ) -> Answer:
        """One request with headers as given."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "http_version": "1.1",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        left = list(pieces) or [b""]
        gone = False
        status = 0
        received: dict[str, str] = {}
        body = bytearray()
        done = False

        async def receive() -> dict[str, Any]:
            nonlocal gone
            if not left or isinstance(left[0], Vanished):
                gone = gone or bool(left)
                return {"type": "http.disconnect"}
            piece = left.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(left)}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, done
            if gone:
                raise ConnectionResetError("the client has gone")
            if message["type"] == "http.response.start":
                status = message["status"]
                received.update((name.decode().lower(), value.decode()) for name, value in message["headers"])
            else:
                body.extend(message.get("body", b""))
                done = not message.get("more_body", False)

        await self.app(scope, receive, send)
        if gone or not done:
            raise ConnectionError("no whole answer")
        return Answer(status, received, bytes(body))

    async def sweep(self) -> None:
        stats = await self.blocks.sweep(self.metadata.settle_blob)
        assert stats.failures == ()
        assert stats.live == 0


@contextlib.asynccontextmanager
async def opened(
    data_dir: Path,
    *,
    fs: FileSystem | None = None,
    vfs: str | None = None,
    clock: Clock | None = None,
    grace_s: float = 0.0,
    around: Callable[[Engine], Engine] | None = None,
    faults: Faults | None = None,
    regional: Any = None,
    **options: Any,
) -> AsyncIterator[InProcessNode]:
    """A node under `data_dir`, laid out as `node.py` lays it out, for the length of a `with` block.

    Args:
        vfs: the SQLite VFS to open the database with, where SQLite is the engine.
        faults: of the engine, where no `vfs` is given.
        options: for `Metadata.open`.
        around: makes the engine that the node gets out of the one that was opened.
        regional: the other nodes, as its application sees them.
    """
    settings = Settings(
        data_dir=data_dir,
        block_size=BLOCK,
        inline_bytes=INLINE,
        reserve_bytes=0,
        reclaim_grace_s=grace_s,
        **engine_settings(data_dir),
    )
    blocks = BlockStore.open(settings.cache_dir, block_size=BLOCK, reserve_bytes=0, threads=4, fs=fs)
    try:
        engine: Engine
        if vfs is None:
            engine = await open_engine(settings.metadata, clock=clock, faults=faults)
        else:
            assert settings.sqlite_path is not None
            engine = await SqliteEngine.open(str(settings.sqlite_path), vfs=vfs, clock=clock)
        if around is not None:
            engine = around(engine)
        try:
            metadata = await Metadata.open(
                engine, master_key=MASTER, node_id=blocks.node_id, region="here", reclaim_grace_s=grace_s, **options
            )
            async with contextlib.aclosing(metadata):
                await metadata.ensure_root(KEY_ID, SECRET)
                with mock.patch("tigrislike.s3api.app.load_protocol", _protocol):
                    app = create_app(metadata=metadata, blocks=blocks, settings=settings, regional=regional)
                caller = Caller(SimpleNamespace(endpoint=f"http://{HOST}"), KEY_ID, SECRET)
                yield InProcessNode(engine, metadata, blocks, app, caller)
        finally:
            await engine.close()
    finally:
        blocks.close()


@functools.cache
def _protocol() -> Protocol:
    """The compiled S3 model: it never changes, and nodes are opened here by the hundred."""
    return load_protocol()


def text_of(answer: Answer, name: str) -> str:
    """The first element `name` of an XML answer, whatever its namespace."""
    found = ET.fromstring(answer.body).find(f".//{{*}}{name}")
    assert found is not None, answer.body
    return found.text or ""


def part_list(etags: Mapping[int, str]) -> bytes:
    """The body of a CompleteMultipartUpload."""
    rows = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in etags.items())
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()


def key_list(keys: Iterable[str]) -> bytes:
    """The body of a DeleteObjects."""
    rows = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete>{rows}</Delete>".encode()
