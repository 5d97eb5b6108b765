"""`tigrislike origin back` and `unback`: which origin durably holds a bucket's bytes.

An origin is tried before a bucket relies on it: something is written there, read back and deleted. Works beside running
nodes and without them: they notice as they notice any change of a bucket.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

from tigrislike.admin import nodes
from tigrislike.admin.buckets import BucketError
from tigrislike.admin.noting import by_command
from tigrislike.config import Settings
from tigrislike.metadata import Metadata, MetadataError
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.origins import BACKING, check_url
from tigrislike.metadata.placing import needs_backing
from tigrislike.metadata.records import OriginPlace
from tigrislike.node import origin_opener
from tigrislike.origin import Attributes, Origin, OriginError
from tigrislike.replication.origins import OpenOrigin

Command = Callable[[Metadata, OpenOrigin], Awaitable[str]]


def run(settings: Settings, command: Command, action: str, **arguments: object) -> str:
    """Carry out a command on the store of the settings; what to say of it. It is an `action` of the audit log, with
    `arguments`.

    Raises:
        BucketError: it was refused or failed.
    """

    async def carry_out() -> str:
        async with nodes.opened(settings) as metadata, by_command(metadata, settings, action, arguments):
            return await command(metadata, origin_opener(settings))

    try:
        return asyncio.run(carry_out())
    except MetadataError as error:
        raise BucketError(f"{error.code}: {error}") from error
    except (OriginError, EngineError, OSError, ValueError) as error:
        raise BucketError(str(error)) from error


def back(name: str, place: OriginPlace, durability: str) -> Command:
    """Have the origin at `place` hold the bucket's bytes."""

    async def command(metadata: Metadata, open_origin: OpenOrigin) -> str:
        if not needs_backing(durability):
            raise BucketError(f"the durability {durability} needs no origin: write-back and write-through do")
        await metadata.bucket(name)
        check_url(place.url)
        origin = open_origin(place)
        try:
            await try_out(origin)
        finally:
            await origin.close()
        bucket = await metadata.use_origin(name, BACKING, place, durability=durability)
        return f"durability={bucket.durability}\nbacking={place.url}"

    return command


def unback(name: str, durability: str) -> Command:
    """Have nodes alone hold the bucket's bytes."""

    async def command(metadata: Metadata, open_origin: OpenOrigin) -> str:
        bucket = await metadata.use_origin(name, BACKING, None, durability=durability)
        return f"durability={bucket.durability}"

    return command


async def try_out(origin: Origin) -> None:
    """See that an origin takes, gives and deletes. Raises OriginError; BucketError: it gives something else."""
    key, data = f"tigrislike-trial-{secrets.token_hex(8)}", secrets.token_bytes(1000)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    written = await origin.put(key, pieces(), len(data), Attributes())
    found = b"".join(
        [bytes(piece) async for piece in origin.read(key, 0, len(data), size=len(data), etag=written.etag)]
    )
    await origin.delete(key)
    if found != data:
        raise BucketError(f"{origin.name} gives other bytes than it was sent: it cannot be relied on")
