"""What this node asks of the others, over their internal route (`s3api/internal.py`).

Guarantees. What is given out are bytes of the range that was asked for, all of them or an error; that a peer has not
got them is believed of nobody but the peer (`signing.py`). Each request has a time-out for connecting and one for
silence, and holds one of a bounded number of connections, which are kept and used again.

Not here: which peer has what (`remote.py`), and trying again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from tigrislike.bytecache.errors import NotAtSource, SourceUnavailable
from tigrislike.bytecache.presence import Present
from tigrislike.config import Settings
from tigrislike.replication.signing import (
    ANSWER_HEADER,
    PREFIX,
    REQUEST_HEADER,
    BadSignature,
    Signer,
    verify_answer,
)

CONNECTIONS: Final = 32
"""To one peer, of one process: more than fills run at once."""
TIMEOUT_S: Final = 10.0
"""How long a peer may be silent, and a request wait for a connection."""

_SLOWEST: Final = 4 << 20
"""Bytes a second at which a peer is to fetch at least what a write waits for: it says nothing until it has them."""

_KEEP_ALIVE_S: Final = (
    60.0  # less than what a node's --idle-timeout is by default, so that few meet a closed connection
)
_MAX_DOCUMENT: Final = 64 * 1024
_SHOWN: Final = 500
_READ_BUFFER: Final = 512 * 1024
_HEADERS: Final = {"User-Agent": "tigrislike", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, as it published itself.

    Attributes:
        node: Its id, 16 bytes.
        endpoint: A URL of scheme, host and port.
        epoch: The one that its requests are signed for, 8 bytes; an old one costs one more round trip.
    """

    node: bytes
    region: str
    endpoint: str
    epoch: bytes


class Facts(msgspec.Struct, frozen=True):
    """What a peer says of itself: ids in hexadecimal."""

    node: str
    region: str
    epoch: str
    version: str


class Peers:
    """One per process; make it on the running event loop.

    Args:
        key: That of the cluster, `metadata.derive_key(KEY_PURPOSE)`.
        node: This node's id.
        connect_timeout_s: For a connection to be made, with TLS.
        timeout_s: For a connection to be free, and for the next bytes to come.
        ca: PEM file of the authorities to trust; None: the system's.
        source_address: An address of this machine to connect from; "": any.
        connections: To one peer at once; who wants more waits.
    """

    def __init__(
        self,
        key: bytes,
        node: bytes,
        *,
        connect_timeout_s: float = 2.0,
        timeout_s: float = TIMEOUT_S,
        ca: str | None = None,
        source_address: str = "",
        connections: int = CONNECTIONS,
    ) -> None:
        self.tell: Callable[[], dict[str, str]] = dict
        """Further headers of each request, which nobody rests anything on."""
        self._key = key
        self._node = node
        self._signer = Signer(key)
        self._epochs: dict[bytes, bytes] = {}  # as peers have answered
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=connections,
                keepalive_timeout=_KEEP_ALIVE_S,
                ssl=ssl.create_default_context(cafile=ca),
                local_addr=(source_address, 0) if source_address else None,
            ),
            timeout=self._patient(0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            read_bufsize=_READ_BUFFER,
        )

    def _patient(self, size: int) -> aiohttp.ClientTimeout:
        """The time-outs of a request for which a peer moves `size` bytes before it answers."""
        return aiohttp.ClientTimeout(
            total=None,
            connect=self._timeout_s,
            sock_connect=self._connect_timeout_s,
            sock_read=self._timeout_s + size / _SLOWEST,
        )

    @classmethod
    def of(cls, settings: Settings, key: bytes, node: bytes) -> Peers:
        """As a node's settings say."""
        return cls(
            key,
            node,
            connect_timeout_s=settings.peer_connect_timeout_s,
            timeout_s=settings.fill_timeout_s,
            ca=str(settings.peer_ca) if settings.peer_ca is not None else None,
            source_address=settings.peer_source_address,
        )

    async def aclose(self) -> None:
        """Close all connections; what is being read fails."""
        await self._session.close()

    async def read(
        self, peer: Peer, blob_id: bytes, size: int, start: int, stop: int, *, gather: bool = False
    ) -> AsyncIterator[bytes | memoryview]:
        """Bytes `start` to `stop` (half open) of a blob, in pieces of any length. Close it when no more is wanted.

        Args:
            blob_id: 16 bytes.
            size: Of the whole blob, in bytes.
            start, stop: 0 <= start < stop <= size.
            gather: Whether the peer may fetch what it has not on its own disk.

        Raises:
            NotAtSource: The peer says that it has not got a block. Nothing was given out.
            SourceUnavailable: Anything else: no answer, another one, too few bytes or too many.
        """
        path = f"{PREFIX}blobs/{blob_id.hex()}?size={size}{'&gather=1' if gather else ''}"
        answer, _ = await self._ask(peer, "GET", path, f"bytes={start}-{stop - 1}")
        try:
            expected = f"bytes {start}-{stop - 1}/{size}"
            if answer.status != 206 or _content_range(answer) != expected or answer.content_length != stop - start:
                raise SourceUnavailable(f"{_named(peer)} answers {answer.status}, and not with {expected}")
            left = stop - start
            while left:
                with _translated(peer):
                    piece = await answer.content.readany()
                if not piece or len(piece) > left:
                    raise SourceUnavailable(f"{_named(peer)} ends {left} bytes early, or goes on behind the range")
                left -= len(piece)
                yield piece
        finally:
            _drop(answer)

    async def ping(self, peer: Peer, timeout_s: float | None = None) -> tuple[float, Facts]:
        """The seconds until a peer's answer, connecting included where no connection is open, and what it says.

        Raises:
            SourceUnavailable
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        body = await self._document(peer, "GET", f"{PREFIX}ping", timeout_s)
        took_s = loop.time() - began_s
        try:
            return took_s, msgspec.json.decode(body, type=Facts)
        except msgspec.DecodeError as error:
            raise SourceUnavailable(f"{_named(peer)} says of itself what is not understood: {error}") from error

    async def presence(self, peer: Peer, content_id: bytes, timeout_s: float | None = None) -> Present | None:
        """What a peer's disk has of a content; None: it does not say, for the content is gone or too large.

        Raises:
            SourceUnavailable
        """
        body = await self._document(peer, "GET", f"{PREFIX}contents/{content_id.hex()}", timeout_s)
        try:
            return msgspec.json.decode(body, type=Present | None)
        except msgspec.DecodeError as error:
            raise SourceUnavailable(f"{_named(peer)} says of its disk what is not understood: {error}") from error

    async def post_copy(self, peer: Peer, blob_id: bytes, size: int, timeout_s: float | None = None) -> None:
        """Have a peer fetch a blob from this node, and wait until it has it durably.

        Raises:
            NotAtSource: The peer says that this node has it not.
            SourceUnavailable
        """
        path = f"{PREFIX}copies/{blob_id.hex()}?size={size}&from={self._node.hex()}"
        await self._document(peer, "POST", path, timeout_s, moved=size)

    async def post_home(self, peer: Peer, content_id: bytes, size: int, timeout_s: float | None = None) -> None:
        """Have a peer become a home of a content of `size` bytes, and wait until that is recorded; or the content is
        gone.

        Raises:
            NotAtSource: The peer finds a block nowhere.
            SourceUnavailable
        """
        await self._document(peer, "POST", f"{PREFIX}homes/{content_id.hex()}", timeout_s, moved=size)

    async def _document(self, peer: Peer, method: str, path: str, timeout_s: float | None, *, moved: int = 0) -> bytes:
        with _translated(peer):
            async with asyncio.timeout(timeout_s):
                answer, body = await self._ask(peer, method, path, moved=moved)
        _drop(answer)
        if answer.status != 200:
            raise SourceUnavailable(f"{_named(peer)} answers {answer.status}")
        return body

    async def _ask(
        self, peer: Peer, method: str, path: str, ranges: str = "", *, moved: int = 0
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """A peer's answer, a success, and its document; b"" where bytes of a blob are still to be read from it.

        Raises:
            NotAtSource, SourceUnavailable
        """
        epoch = self._epochs.get(peer.node, peer.epoch)
        answer, body = await self._ask_once(peer, epoch, method, path, ranges, moved)
        if answer.status == 409:  # it began another epoch, or we were overtaken by too many of our own
            answer, body = await self._ask_once(peer, self._epochs[peer.node], method, path, ranges, moved)
        if answer.status in (200, 206):
            return answer, body
        _drop(answer)
        told = f"{_named(peer)} answers {answer.status}: {body.decode('utf-8', 'replace')}"
        raise NotAtSource(told) if answer.status == 404 else SourceUnavailable(told)

    async def _ask_once(
        self, peer: Peer, epoch: bytes, method: str, path: str, ranges: str, moved: int
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """An answer that the peer has given to this request, and its document."""
        signature = self._signer.sign(peer.node, epoch, method, path, ranges)
        headers = {REQUEST_HEADER: str(signature), **self.tell()}
        if ranges:
            headers["Range"] = ranges
        with _translated(peer):
            url = URL(peer.endpoint + path, encoded=True)
            answer = await self._session.request(
                method, url, headers=headers, allow_redirects=False, timeout=self._patient(moved)
            )
        try:
            body = b""
            if answer.status != 206:
                length = answer.content_length
                if length is None or length > _MAX_DOCUMENT:
                    raise SourceUnavailable(f"{_named(peer)} answers {answer.status} with {length} bytes")
                with _translated(peer):
                    body = await answer.content.readexactly(length)
            signed = answer.headers.get(ANSWER_HEADER, "")
            try:
                present = verify_answer(self._key, signature, answer.status, _content_range(answer), body, signed)
            except BadSignature as error:
                told = f"{_named(peer)} answers {answer.status}, unsigned: {body[:_SHOWN]!r}"
                raise SourceUnavailable(told) from error
            self._epochs[peer.node] = present
        except BaseException:
            _drop(answer)
            raise
        return answer, body


@contextlib.contextmanager
def _translated(peer: Peer) -> Iterator[None]:
    """What a connection can raise, as what the block store knows; ValueError is an endpoint that is no URL."""
    try:
        yield
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
        raise SourceUnavailable(f"{_named(peer)}: {str(error) or type(error).__name__}") from error


def _drop(answer: aiohttp.ClientResponse) -> None:
    """Let go of an answer. A connection of which not all was read is cut: to close it, TLS would read on to the end of
    the answer first."""
    connection = answer.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    answer.close()


def _content_range(answer: aiohttp.ClientResponse) -> str:
    return answer.headers.get("Content-Range", "")


def _named(peer: Peer) -> str:
    return f"node {peer.node.hex()} of {peer.region} at {peer.endpoint}"
