"""Stores that obstore has a client for: Azure Blob Storage, and directories of this machine.

object_store, the library beneath, names an object by a path without empty, dotted or trailing parts, so that not every
key has a name here: one that has none is refused, and no other object is taken for it, but neither can a container that
has such a one be listed. Nor does it know tags, Expires or checksums of what it reads, nor metadata beyond ASCII. Its
retries and the credentials that it finds in a machine's surroundings are turned off.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, LocalStore

from . import trees
from .egress import Egress
from .errors import EgressRefused, OriginBroken, OriginChanged, OriginMissing, OriginRefused, OriginUnavailable
from .location import Location, as_folder, bucket_and_prefix, checked_url
from .protocol import Attributes, Buffer, OriginObject, OriginPage, OriginSummary, Written
from .proxy import Pass
from .transport import Timeouts

if TYPE_CHECKING:  # not there when it runs
    from obstore.store import ClientConfig, RetryConfig

WHOLE_BYTES = 64 << 20  # what is at most written in one request, from memory
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 3
_PIECE = 1 << 20
_PAGE = 1000
_SHOWN = 300

# What object_store calls the headers that it knows; whatever else it tells of is the user's.
_HEADERS = {
    "CacheControl": "Cache-Control",
    "ContentDisposition": "Content-Disposition",
    "ContentEncoding": "Content-Encoding",
    "ContentLanguage": "Content-Language",
}
_CONTENT_TYPE, _STORAGE_CLASS = "Content-Type", "Storage-Class"
_LOSES = frozenset({"tags", "headers.Expires", "headers.WebsiteRedirectLocation", "checksum", "md5"})

# Of a file whose name is too long, or where a folder would have to be, or in a folder that is a file.
_NO_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}

_NOT_TEXT = "contained non UTF-8 characters"  # what object_store says of a header beyond ASCII

Make = Callable[["ClientConfig"], Any]


def open_azure(location: Location, egress: Egress, timeouts: Timeouts) -> ObjectStoreOrigin:
    """``az://container/prefix``. `access_key` is the account's name, `secret_key` its key; "" asks as anybody.

    Options: ``sas`` (a shared access signature, in place of a key).
    """
    container, prefix = bucket_and_prefix(location)
    if not location.access_key:
        raise OriginRefused("an Azure origin wants its account's name as the access key")
    config: dict[str, Any] = {"container_name": container, "account_name": location.access_key}
    if location.secret_key:
        config["account_key"] = location.secret_key
    elif sas := location.options.get("sas"):
        config["sas_key"] = sas
    else:
        config["skip_signature"] = True
    if location.endpoint:
        config["endpoint"] = checked_url(location.endpoint)

    def make(client: ClientConfig) -> AzureStore:
        return AzureStore(**config, client_options=client, retry_config=_NO_RETRIES)

    name = f"az://{location.access_key}/{container}/{prefix}"
    return ObjectStoreOrigin(name, prefix, make, egress, timeouts, _LOSES | {"storage_class"})


def open_directory(location: Location, egress: Egress, timeouts: Timeouts) -> ObjectStoreOrigin:
    """``file:///directory``, which must be there. For operators only: nobody else is to read this machine's files."""
    if not egress.allow_private:
        raise EgressRefused("a directory of this machine is no origin unless the operator allows private ones")
    path = Path(unquote(location.url.partition("://")[2]))
    if not path.is_absolute() or not path.is_dir():
        raise OriginRefused(f"{path} is no directory: a file origin is written file:///directory")
    loses = _LOSES | {"content_type", "metadata", "storage_class"} | {f"headers.{member}" for member in _HEADERS}

    def make(client: ClientConfig) -> LocalStore:
        return LocalStore(path)

    return ObjectStoreOrigin(f"file://{path}", "", make, egress, timeouts, loses, is_tree=True)


class ObjectStoreOrigin:
    """A store of obstore as an origin.

    Args:
        make: the store, from its client's options.
        is_tree: whether it lists folders in no order, and keeps nothing but bytes.
    """

    def __init__(
        self,
        name: str,
        prefix: str,
        make: Make,
        egress: Egress,
        timeouts: Timeouts,
        loses: frozenset[str],
        *,
        is_tree: bool = False,
    ) -> None:
        self.name = name
        self.loses = loses
        self._prefix = prefix
        self._make = make
        self._egress = egress
        self._timeouts = timeouts
        self._is_tree = is_tree
        self._store: Any = None
        self._pass: Pass | None = None

    async def head(self, key: str) -> OriginObject:
        path = self._path(key)
        store = await self._opened()
        with self._translated():
            # Of files there are no attributes to ask for, and a GET of a head would open them.
            if self._is_tree:
                meta, told = await obstore.head_async(store, path), {}
            else:
                result = await obstore.get_async(store, path, options={"head": True})
                meta, told = result.meta, dict(result.attributes)
        headers = {member: told.pop(name) for member, name in _HEADERS.items() if name in told}
        attributes = Attributes(
            content_type=told.pop(_CONTENT_TYPE, ""),
            headers=headers,
            storage_class=told.pop(_STORAGE_CLASS, ""),
            metadata=told,
        )
        one = self._summary(meta)
        return OriginObject(key, one.size, one.etag, one.modified_ns, attributes)

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        path = self._path(key)
        if start == stop:
            return
        store = await self._opened()
        with self._translated():
            result = await obstore.get_async(store, path, options={"range": (start, stop), "if_match": f'"{etag}"'})
        told = self._summary(result.meta)
        if told.etag != etag:
            raise OriginBroken(f"{self.name} answers with version {told.etag!r}, not with {etag!r}")
        if tuple(result.range) != (start, stop) or told.size != size:
            raise OriginBroken(
                f"{self.name} answers with {result.range} of {told.size} bytes, not with {start, stop} of {size}"
            )
        left = stop - start
        stream = aiter(result.stream(min_chunk_size=_PIECE))
        while True:
            with self._translated():
                try:
                    piece = memoryview(await anext(stream))
                except StopAsyncIteration:
                    break
            left -= len(piece)
            if left < 0:
                raise OriginBroken(f"{self.name} goes on behind the {stop - start} bytes asked for")
            yield piece
        if left:
            raise OriginBroken(f"{self.name} ends {left} bytes early, of {stop - start}")

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        if self._is_tree:
            return await trees.page(self._children, prefix, after, delimiter, limit)
        return await trees.page_of(self._from, prefix, after, delimiter, limit)

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        path = self._path(key)
        store = await self._opened()
        feed = _Feed(pieces, size)
        with self._translated(feed):
            written = await obstore.put_async(
                store,
                path,
                feed.all() if size else b"",
                attributes=None if self._is_tree else _attributes(attributes),
                use_multipart=size > WHOLE_BYTES or (self._is_tree and size > 0),
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        etag = (written["e_tag"] or "").strip('"') or (await self.head(key)).etag
        return Written(etag, False)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        store = await self._opened()
        with contextlib.suppress(OriginMissing), self._translated():
            await obstore.delete_async(store, path)

    async def close(self) -> None:
        self._store = None
        if self._pass is not None:
            self._egress.revoke_pass(self._pass)

    # -- listing ---------------------------------------------------------------------------------------------------

    async def _children(self, folder: str) -> tuple[Sequence[OriginSummary], Sequence[str]]:
        store = await self._opened()
        if folder.startswith("/") or "//" in folder:
            return (), ()  # no object has such a name here
        with self._translated():
            found = await obstore.list_with_delimiter_async(store, folder or None)
        entries = [self._summary(meta) for meta in found["objects"]]
        return entries, [as_folder(prefix) for prefix in found["common_prefixes"]]

    async def _from(self, folder: str, after: str) -> AsyncGenerator[OriginSummary, None]:
        """What lies in a folder or beneath it, after a key, in the store's order, which is that of its keys."""
        store = await self._opened()
        with self._translated():
            chunks = obstore.list(
                store, self._prefix + folder or None, offset=self._prefix + after or None, chunk_size=_PAGE
            )
        strip = len(self._prefix)
        while True:
            with self._translated():
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
            for meta in chunk:
                yield self._summary(meta, meta["path"][strip:])

    # -- obstore ---------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        segments = key.split("/")
        if any(segment in ("", ".", "..") for segment in segments):
            raise OriginRefused(f"{self.name} has no name for {key[:_SHOWN]!r}")
        return self._prefix + key

    def _summary(self, meta: Any, key: str | None = None) -> OriginSummary:
        etag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
        if not etag:
            raise OriginBroken(f"{self.name} names no version of {meta['path']!r}")
        modified_ns = round(meta["last_modified"].timestamp() * 1e6) * 1000
        return OriginSummary(meta["path"] if key is None else key, meta["size"], etag, modified_ns)

    async def _opened(self) -> Any:
        if self._store is None:
            client: ClientConfig = {
                "connect_timeout": timedelta(seconds=self._timeouts.connect_s),
                "read_timeout": timedelta(seconds=self._timeouts.read_s),
                "timeout": timedelta(days=1),  # for a whole answer; how long that takes is nobody's business here
                "allow_http": True,
            }
            if self._egress.ca is not None:
                client["root_certificate"] = self._egress.ca
            if not self._egress.allow_private and not self._is_tree:
                self._pass = await self._egress.issue_pass()
                client["proxy_url"] = self._pass.url
            with self._translated():
                self._store = self._make(client)
        return self._store

    @contextlib.contextmanager
    def _translated(self, feed: _Feed | None = None) -> Iterator[None]:
        """Whatever obstore raises, as an OriginError; what the pieces of a body raised, as it is."""
        try:
            yield
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            if feed is not None and feed.failed is not None:
                raise feed.failed from None
            if self._pass is not None and (refused := self._pass.refused) is not None:
                self._pass.refused = None
                raise refused from None
            raise self._failure(error) from None  # its own text may hold a signature

    def _failure(self, error: Exception) -> Exception:
        told = f"{self.name}: {_harmless(str(error))}"
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is not None and int(number[1]) in _NO_NAME:
            return OriginRefused(told)
        if isinstance(error, FileNotFoundError):
            return OriginMissing(told)
        if isinstance(error, PreconditionError):
            return OriginChanged(told)
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError, PermissionError, InvalidPathError)):
            return OriginRefused(told)
        if _NOT_TEXT in str(error):
            return OriginRefused(told)
        if isinstance(error, (ValueError, NotImplementedError)) and not isinstance(error, OSError):
            return OriginRefused(told)
        status = re.search(r"\bstatus code: (\d{3})\b", str(error))
        if status is not None and int(status[1]) == 404:
            return OriginMissing(told)
        if status is None or int(status[1]) in (408, 429) or int(status[1]) >= 500:
            return OriginUnavailable(told)
        return OriginChanged(told) if int(status[1]) == 416 else OriginRefused(told)


class _Feed:
    """Pieces of a body, counted."""

    def __init__(self, pieces: AsyncIterator[Buffer], size: int) -> None:
        self._pieces = pieces
        self._left = size
        self.failed: BaseException | None = None

    async def all(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                self._left -= len(piece)
                if self._left < 0:
                    raise ValueError("more bytes are given than were announced")
                yield bytes(piece)
            if self._left:
                raise ValueError(f"{self._left} bytes fewer are given than were announced")
        except Exception as error:
            self.failed = error
            raise


_NO_RETRIES: RetryConfig = {
    "max_retries": 0,
    "retry_timeout": timedelta(seconds=1),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}


def _attributes(attributes: Attributes) -> dict[str, str]:
    named = {_HEADERS[member]: value for member, value in attributes.headers.items() if member in _HEADERS}
    if attributes.content_type:
        named[_CONTENT_TYPE] = attributes.content_type
    told = {**attributes.metadata, **named}
    # Beyond ASCII they would be written, and never be read again; and control characters end in a panic.
    if odd := [name for name, value in told.items() if not (value.isascii() and value.isprintable())]:
        raise OriginRefused(f"there are no headers here for what is in {', '.join(odd)[:_SHOWN]}")
    return told


def _harmless(text: str) -> str:
    """The first line of a message, without what URLs in it have behind their paths: signatures, for one."""
    line = text.partition("\n")[0]
    return re.sub(r"\?[^\s\"')]*", "?...", line)[:_SHOWN]
