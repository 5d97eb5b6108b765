"""What every driver promises, on every store that can run here: S3 on SeaweedFS, moto and this store itself, the APIs
of Google Cloud Storage and Azure, a directory, and a filesystem of Arrow.

A store that has no name for a key, or keeps less than it is given, says so: by `OriginRefused` and by `loses`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import RunningNode
from tests.origin import servers
from tests.origin.servers import GoogleServer, S3Server
from tests.server.wire import run
from tigrislike.origin import (
    Attributes,
    Egress,
    Location,
    Origin,
    OriginChanged,
    OriginMissing,
    OriginRefused,
    open_origin,
)
from tigrislike.origin.trees import rolled_up

BODY = bytes(range(256)) * 40
ATTRIBUTES = Attributes(
    content_type="text/x-model",
    headers={
        "CacheControl": "max-age=3",
        "ContentDisposition": 'attachment; filename="a.bin"',
        "ContentEncoding": "x-own",
        "ContentLanguage": "de",
        "Expires": "Thu, 01 Dec 2030 16:00:00 GMT",
    },
    metadata={"colour": "blue  green", "empty": "e"},
    tags={"team": "ml", "a b": "c/d"},
)
ODD_KEYS = [
    "a//b",
    "/lead",
    "a/../b",
    "./x",
    "..",
    "a%2Fb",
    "a%b",
    "a+b c",
    "é☃",
    "a?b#c&d=e",
    "trail/",
    "a\tb",
    "a\\b",
    "a*b~c'd",
    "{x}|^`",
    " lead and trail ",
    "\U0001f600",
    "x" * 1024,
]

# SeaweedFS takes these for `a/b`, `lead` and `a/b`, and forgets the bytes of the last, and says so nowhere.
NOT_AT_SEAWEEDFS = ["a//b", "/lead", "a\\b", "trail/"]


@pytest.fixture
def location(request: pytest.FixtureRequest) -> Location:
    """An empty place of the test's own at the store that the test is run for."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def at_seaweedfs(seaweedfs: S3Server) -> Location:
    return seaweedfs.location(uuid.uuid4().hex)


@pytest.fixture
def at_moto(moto: S3Server) -> Location:
    return moto.location(uuid.uuid4().hex)


@pytest.fixture
def at_tigrislike(store: RunningNode) -> Location:
    bucket = f"elsewhere-{uuid.uuid4().hex[:12]}"
    client = store.client()
    client.create_bucket(Bucket=bucket)
    client.close()
    return Location(f"s3://{bucket}", store.endpoint, "auto", store.access_key_id, store.secret_access_key)


@pytest.fixture
def at_google(google: GoogleServer) -> Location:
    return google.location(uuid.uuid4().hex)


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.azure(tmp_path_factory.mktemp("azure")) as endpoint:
        yield endpoint


@pytest.fixture
def at_azure(azure: str) -> Location:
    return Location(f"az://{servers.BUCKET}/{uuid.uuid4().hex}", azure, access_key="account")


@pytest.fixture
def at_directory(tmp_path: Path) -> Location:
    return Location(f"file://{tmp_path}")


@pytest.fixture
def at_arrow(tmp_path: Path) -> Location:
    return Location(f"arrow+file://{tmp_path}")


S3 = ["at_seaweedfs", "at_moto", "at_tigrislike"]
WRITABLE = [*S3, "at_google", "at_azure", "at_directory", "at_arrow"]
everywhere = pytest.mark.parametrize("location", WRITABLE, indirect=True)


@asynccontextmanager
async def opened(location: Location) -> AsyncIterator[Origin]:
    egress = Egress(allow_private=True)
    origin = open_origin(location, egress=egress)
    try:
        yield origin
    finally:
        await origin.close()
        await egress.aclose()


def on_origin(test: Callable[..., Any]) -> Callable[..., None]:
    """A test that is given the opened origin."""

    @functools.wraps(test)
    def bounded(location: Location) -> None:
        async def main() -> None:
            async with opened(location) as origin:
                await test(origin)

        run(main())

    del bounded.__wrapped__  # pytest would take the parameters of what is wrapped
    return bounded


async def pieces(body: bytes, length: int = 1000) -> AsyncIterator[memoryview]:
    """The body through one buffer that is written over for each piece, as a reader of files may do."""
    buffer = bytearray(length)
    for start in range(0, len(body), length):
        piece = body[start : start + length]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]
    buffer[:] = bytes(length)


async def read(origin: Origin, key: str, start: int, stop: int, size: int, etag: str) -> bytes:
    return b"".join([bytes(piece) async for piece in origin.read(key, start, stop, size=size, etag=etag)])


async def put(origin: Origin, key: str, body: bytes = b"x") -> str:
    return (await origin.put(key, pieces(body), len(body), Attributes())).etag


async def keys(origin: Origin, prefix: str = "", delimiter: str = "", limit: int = 1000) -> list[str]:
    """Entries and prefixes of a whole listing, page after page."""
    found: list[str] = []
    after = ""
    while True:
        page = await origin.list(prefix, after=after, delimiter=delimiter, limit=limit)
        # A page of SeaweedFS that is to have one may have two.
        assert len(page.entries) + len(page.prefixes) <= limit + _is_seaweedfs()
        found += sorted([*(entry.key for entry in page.entries), *page.prefixes])
        after = page.after
        if not after:
            return found


@everywhere
@on_origin
async def test_what_is_put_is_there_with_all_that_the_store_does_not_lose(origin: Origin) -> None:
    written = await origin.put("folder/a", pieces(BODY), len(BODY), ATTRIBUTES)
    found = await origin.head("folder/a")
    assert (found.key, found.size, found.etag) == ("folder/a", len(BODY), written.etag)
    assert found.modified_ns > 1_700_000_000 * 10**9
    told, lost = found.attributes, origin.loses
    assert told.content_type == ATTRIBUTES.content_type or "content_type" in lost
    assert told.metadata == ATTRIBUTES.metadata or "metadata" in lost
    assert told.tags == ATTRIBUTES.tags or "tags" in lost
    for member, value in ATTRIBUTES.headers.items():
        assert told.headers.get(member) == value or f"headers.{member}" in lost or "headers" in lost, member
    assert await read(origin, "folder/a", 0, len(BODY), len(BODY), found.etag) == BODY


@everywhere
@on_origin
async def test_any_range_is_read_exactly(origin: Origin) -> None:
    etag = await put(origin, "a", BODY)
    size = len(BODY)
    for start, stop in [(0, size), (0, 1), (size - 1, size), (1, size - 1), (255, 4097), (7, 7)]:
        assert await read(origin, "a", start, stop, size, etag) == BODY[start:stop]


@everywhere
@on_origin
async def test_an_object_without_bytes(origin: Origin) -> None:
    etag = await put(origin, "empty", b"")
    found = await origin.head("empty")
    assert (found.size, found.etag) == (0, etag)


@everywhere
@on_origin
async def test_another_version_is_not_read_for_the_one_asked_for(origin: Origin) -> None:
    etag = await put(origin, "a", BODY)
    now = await put(origin, "a", BODY[::-1])
    assert now != etag
    with pytest.raises(OriginChanged):
        await read(origin, "a", 0, 10, len(BODY), etag)
    assert await read(origin, "a", 0, 10, len(BODY), now) == BODY[::-1][:10]


@everywhere
@on_origin
async def test_what_is_not_there_is_missing(origin: Origin) -> None:
    for key in ("nothing", "no/thing"):
        with pytest.raises(OriginMissing):
            await origin.head(key)
        with pytest.raises(OriginMissing):
            await read(origin, key, 0, 1, 1, "0" * 32)
    await put(origin, "folder/a")
    with pytest.raises(OriginMissing):
        await origin.head("folder")


@everywhere
@on_origin
async def test_deleted_is_deleted_however_often(origin: Origin) -> None:
    await put(origin, "a")
    await put(origin, "b")
    await origin.delete("a")
    await origin.delete("a")
    with pytest.raises(OriginMissing):
        await origin.head("a")
    assert await keys(origin) == ["b"]


@everywhere
@on_origin
async def test_a_key_is_itself_or_refused(origin: Origin) -> None:
    named = {}
    for key in ODD_KEYS:
        if key in NOT_AT_SEAWEEDFS and _is_seaweedfs():
            continue
        try:
            named[key] = await put(origin, key, key.encode())
        except OriginRefused:
            with pytest.raises((OriginRefused, OriginMissing)):
                await origin.head(key)
    assert "é☃" in named
    assert "a+b c" in named
    for key, etag in named.items():
        size = len(key.encode())
        assert await read(origin, key, 0, size, size, etag) == key.encode(), key
    assert sorted(await keys(origin)) == sorted(named)
    with pytest.raises(OriginRefused):
        await origin.head("")


def _is_seaweedfs() -> bool:
    return "at_seaweedfs" in os.environ["PYTEST_CURRENT_TEST"]


TREE = ["a", "a!", "a-b/x", "a/b", "a/b!", "a/c/d", "a/c/e", "b", "c/d/e/f", "ca", "d-", "d/1", "d/2", "d0"]


@everywhere
@on_origin
async def test_listings_are_those_of_s3(origin: Origin) -> None:
    """Every page size, prefix and delimiter against the rule itself; the store's own order is another promise."""
    tree = [key for key in TREE if key != "a"] if _is_tree(origin) else TREE
    for key in reversed(tree):
        await put(origin, key)
    for prefix in ("", "a", "a/", "a/c", "d/", "d", "nothing", "c/d/"):
        for delimiter in ("", "/"):
            names = {rolled_up(key, prefix, delimiter) or key for key in tree if key.startswith(prefix)}
            for limit in (1, 2, 5, 1000):
                found = await keys(origin, prefix, delimiter, limit)
                assert sorted(found) == sorted(names), (prefix, delimiter, limit)
    page = await origin.list("d/")
    assert [(entry.key, entry.size, entry.etag) for entry in page.entries] == [
        (key, 1, (await origin.head(key)).etag) for key in ("d/1", "d/2")
    ]


@pytest.mark.parametrize("location", [one for one in WRITABLE if one != "at_seaweedfs"], indirect=True)
@on_origin
async def test_a_listing_begins_behind_any_key(origin: Origin) -> None:
    tree = [key for key in TREE if key != "a"] if _is_tree(origin) else TREE
    for key in tree:
        await put(origin, key)
    for delimiter in ("", "/"):
        for prefix in ("", "a/", "d"):
            for after in [key for key in (*tree, "a0", "a-b/", "a/", "a/c/", "zz") if key.startswith(prefix)]:
                page = await origin.list(prefix, after=after, delimiter=delimiter)
                found = [*(entry.key for entry in page.entries), *page.prefixes]
                assert sorted(found) == _behind(tree, prefix, after, delimiter), (prefix, after, delimiter)
                assert [entry.key for entry in page.entries] == sorted(entry.key for entry in page.entries)


def _behind(tree: list[str], prefix: str, after: str, delimiter: str) -> list[str]:
    """Of a listing, what comes after a key, or after the common prefix that it is rolled up into."""
    names = {rolled_up(key, prefix, delimiter) or key for key in tree if key.startswith(prefix)}
    return sorted(name for name in names if name > (rolled_up(after, prefix, delimiter) or after))


def _is_tree(origin: Origin) -> bool:
    """Whether a name is either a file or a folder."""
    return origin.name.startswith("file:") or "SubTree" in type(origin).__name__


@everywhere
@on_origin
async def test_a_body_of_another_length_is_not_written(origin: Origin) -> None:
    for given in (len(BODY) - 1, len(BODY) + 1):
        with pytest.raises(ValueError, match="announced"):
            await origin.put("a", pieces(BODY[:given] + b"x" * (given - len(BODY))), len(BODY), Attributes())
        with pytest.raises(OriginMissing):
            await origin.head("a")
    assert await keys(origin) == []


@everywhere
@on_origin
async def test_what_the_pieces_raise_goes_up_and_nothing_is_written(origin: Origin) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield BODY[:5000]
        raise LookupError("the block is gone")

    with pytest.raises(LookupError, match="the block is gone"):
        await origin.put("a", failing(), len(BODY), Attributes())
    with pytest.raises(OriginMissing):
        await origin.head("a")
    assert await keys(origin) == []


@everywhere
@on_origin
async def test_large_objects_are_written_in_parts(origin: Origin) -> None:
    body = os.urandom(1 << 20) * 70 + b"tail"
    written = await origin.put("large", pieces(body, 3 << 20), len(body), ATTRIBUTES)
    found = await origin.head("large")
    assert (found.size, found.etag) == (len(body), written.etag)
    assert await read(origin, "large", 0, len(body), len(body), written.etag) == body
    if origin.name.startswith("s3:"):
        assert written.verified
        assert written.etag.endswith("-5")


@everywhere
@on_origin
async def test_many_read_at_once(origin: Origin) -> None:
    body = os.urandom(3 << 20)
    etag = await put(origin, "a", body)
    ranges = [(start, start + (256 << 10)) for start in range(0, len(body), 256 << 10)]
    found = await asyncio.gather(*(read(origin, "a", start, stop, len(body), etag) for start, stop in ranges))
    assert b"".join(found) == body


@everywhere
@on_origin
async def test_a_read_that_is_left_early_leaves_nothing_behind(origin: Origin) -> None:
    body = os.urandom(20 << 20)
    etag = await put(origin, "a", body)
    reading = origin.read("a", 0, len(body), size=len(body), etag=etag)
    assert bytes(await anext(reading))[:10] == body[:10]
    await reading.aclose()  # type: ignore[attr-defined]
    assert await read(origin, "a", 5, 10, len(body), etag) == body[5:10]
