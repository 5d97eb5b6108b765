"""What operators do: to items of the queue, to what is paused, to access keys. Each refuses what makes no sense.

Nothing is noted here of who did it: `api.perform` does that for every action alike.
"""

from __future__ import annotations

import time
from typing import Final

from msgspec import Struct

from tigrislike.metadata import MetadataError
from tigrislike.metadata.access import ROOT_OWNER
from tigrislike.metadata.errors import NoSuchAccessKey
from tigrislike.metadata.overseeing import Pausable
from tigrislike.metadata.records import AccessKey

from .desk import AdminError, Desk
from .queues import (
    At,
    Found,
    ItemFilter,
    destinations_of,
    last_error,
    pack_cursor,
    parse_item,
    resolve_zone,
    scan,
    tasks,
    unpack_cursor,
)
from .stores import KeyRow, key_row

BULK_S: Final = 1.0
"""How long one call of a bulk action goes on."""


class Done(Struct, frozen=True):
    """An action on an item, and what it did: ``retried``, ``delayed`` or ``dropped``."""

    item: str
    done: str


class Retried(Struct, frozen=True):
    """How many dead letters were retried of those that were `examined`; `cursor` is where to go on, null at the end."""

    retried: int
    examined: int
    cursor: str | None


class PauseChanged(Struct, frozen=True):
    """What is paused now, or no longer: a `kind` of thing and its name."""

    kind: str
    name: str
    paused: bool


class KeyMade(Struct, frozen=True):
    """A new access key. Its secret is shown only this once."""

    key_id: str
    secret: str
    owner: str
    bucket: str
    admin: bool


# --- items


async def retry(desk: Desk, item: str) -> Done:
    """Have an item done at once: a dead letter with all its attempts anew, any other without waiting further.

    Raises:
        AdminError: NoSuchItem; ItemInFlight: it is being done.
    """
    zone, id_ = parse_item(item)
    queue = desk.metadata.queue
    if await queue.retry(zone, id_) or await queue.delay(zone, id_, 0):
        return Done(item, "retried")
    raise await _why_not(desk, item)


async def delay(desk: Desk, item: str, seconds: float) -> Done:
    """Have a waiting item not begun for so long; one that is due later still stays as it is.

    Raises:
        AdminError: NoSuchItem, ItemInFlight, ItemDead.
    """
    zone, id_ = parse_item(item)
    if await desk.metadata.queue.delay(zone, id_, desk.now_ns() + round(seconds * 1e9)):
        return Done(item, "delayed")
    raise await _why_not(desk, item)


async def drop(desk: Desk, item: str) -> Done:
    """Give up an item, and its dead letter: what it owes is never done. Raises AdminError: NoSuchItem."""
    zone, id_ = parse_item(item)
    if await desk.metadata.queue.drop(zone, id_):
        return Done(item, "dropped")
    raise await _why_not(desk, item)


async def _why_not(desk: Desk, item: str) -> AdminError:
    found, letter = await desk.metadata.queue.show(*parse_item(item))
    if found is not None:
        return AdminError("ItemInFlight", f"item {item} is being worked on", 409)
    if letter is not None:
        return AdminError("ItemDead", f"item {item} is a dead letter: retry it, or drop it", 409)
    return AdminError("NoSuchItem", f"there is no item {item}: it may be done", 404)


async def retry_dead(desk: Desk, wanted: ItemFilter, *, cursor: str | None = None, limit: int = 1000) -> Retried:
    """Retry dead letters, those that are `wanted`, up to `limit`, or as many as `BULK_S` is enough for."""
    letters = ItemFilter(
        task=wanted.task, bucket=wanted.bucket, region=wanted.region, zone=wanted.zone, state="dead", error=wanted.error
    )
    start = At(*unpack_cursor(cursor, tuple[bytes, bytes])) if cursor is not None else None
    retried = examined = 0
    at, until_s = start, time.monotonic() + BULK_S
    try:
        async for each in scan(desk, letters, start):
            if retried >= limit or (time.monotonic() > until_s and examined):
                return Retried(retried, examined, pack_cursor(at))
            assert isinstance(each, Found)
            at = each.at
            examined += 1
            item = each.place.item
            if wanted.task not in (None, item.task):
                continue
            if wanted.error is None or wanted.error.lower() in last_error(item).lower():
                retried += await desk.metadata.queue.retry(each.place.zone, each.place.id)
    except (ValueError, IndexError):
        if start is None:
            raise
        raise AdminError("InvalidCursor", "this cursor does not belong to these dead letters") from None
    return Retried(retried, examined, None)


# --- pausing


async def set_paused(
    desk: Desk, paused: bool, *, zone: str | None = None, region: str | None = None, task: str | None = None
) -> PauseChanged:
    """Start nothing more of a zone, of all that a region and its nodes have to do, or of a task; or go on with it.

    Raises:
        AdminError: NoSuchZone, NoSuchRegion, NoSuchTask; InvalidArgument: not exactly one of the three.
    """
    given = [(kind, name) for kind, name in (("zone", zone), ("region", region), ("task", task)) if name]
    if len(given) != 1:
        raise AdminError("InvalidArgument", "name one zone, region or task")
    ((kind, name),) = given
    what = [(Pausable.TASK, name.encode())]
    if kind == "zone":
        what = [(Pausable.ZONE, await resolve_zone(desk, name))]
    elif kind == "region":
        what = [(Pausable.DESTINATION, destination) for destination in await destinations_of(desk, name)]
    elif name not in await tasks(desk) and (paused or not await _is_paused(desk, name)):
        raise AdminError("NoSuchTask", f"there is no task {name!r}: nothing of it was ever owed", 404)
    for each in what:
        await (desk.metadata.queue.pause if paused else desk.metadata.queue.resume)(*each)
    return PauseChanged(kind, name, paused)


async def _is_paused(desk: Desk, task: str) -> bool:
    return task.encode() in (await desk.metadata.queue.paused())[Pausable.TASK]


# --- keys


async def create_key(desk: Desk, *, bucket: str = "", admin: bool = False) -> KeyMade:
    """A key pair for all of the root user's buckets, or for one of them; an `admin` key looks after the store too.

    Raises:
        AdminError: NoSuchBucket, InvalidArgument; MasterKeyRotating.
    """
    if bucket and admin:
        raise AdminError("InvalidArgument", "an admin key is not for one bucket")
    try:
        owner = (await desk.metadata.bucket(bucket)).owner if bucket else ROOT_OWNER
        return _made(await desk.metadata.create_access_key(owner, bucket, admin=admin))
    except MetadataError as error:
        raise _refused(error) from error


async def rotate_key(desk: Desk, key_id: str, *, keep: bool = False) -> KeyMade:
    """A new pair that may do what this key may, which is revoked, or kept for those who do not know the new one yet.

    Raises:
        AdminError: NoSuchAccessKey, InvalidArgument (root's), MasterKeyRotating.
    """
    try:
        return _made(await desk.metadata.rotate_access_key(key_id, keep=keep))
    except MetadataError as error:
        raise _refused(error) from error


async def revoke_key(desk: Desk, key_id: str) -> KeyRow:
    """Delete a key; what it was. Raises AdminError: NoSuchAccessKey, InvalidArgument (root's)."""
    try:
        return key_row(await desk.metadata.revoke_access_key(key_id))
    except MetadataError as error:
        raise _refused(error) from error


def _made(key: AccessKey) -> KeyMade:
    return KeyMade(key.key_id, key.secret, key.owner, key.bucket, key.admin)


def _refused(error: MetadataError) -> AdminError:
    if isinstance(error, NoSuchAccessKey):
        return AdminError("NoSuchAccessKey", "there is no such access key", 404)
    statuses = {"NoSuchBucket": 404, "InvalidArgument": 400}
    return AdminError(error.code, str(error), statuses.get(error.code, 409))
