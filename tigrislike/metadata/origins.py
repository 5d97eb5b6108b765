"""Origins of a store: where they are, their credentials sealed at rest, and which bucket uses which.

An origin's record stays for as long as contents may refer to it, whatever its bucket uses by then; new credentials for
the same place replace those in its record, so that everything that refers to it goes on with them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from . import access
from .buckets import change_bucket, read_bucket
from .context import Context
from .errors import InvalidArgument
from .keyspace import subspace
from .kv.engine import Transaction
from .records import Bucket, OriginPlace, OriginRecord
from .records import origin as codec
from .secrets import MasterKey

SHADOW = "shadow"
BACKING = "backing"
"""What a bucket uses an origin for: the fields of its record that name one."""


def s3_place(
    bucket: str, endpoint: str, region: str = "", access_key: str = "", secret_key: str = "", prefix: str = ""
) -> OriginPlace:
    """The place that a bucket of an S3 service is, or the folder `prefix` of it. Without an endpoint the service is
    AWS's in its region; without a key pair it is asked as anybody may ask it.

    Raises:
        InvalidArgument: it names no bucket, the endpoint is no URL of a service, or one half of a key pair is missing.
    """
    if not bucket or "/" in bucket:
        raise InvalidArgument("name", bucket, "A bucket elsewhere is named without slashes")
    if endpoint:
        check_endpoint(endpoint)
    if bool(access_key) != bool(secret_key):
        raise InvalidArgument("access_key", access_key, "An access key and its secret key go together")
    return OriginPlace(f"s3://{bucket}/{prefix}".rstrip("/"), endpoint, region, access_key, secret_key)


def check_endpoint(endpoint: str) -> None:
    """Refuse what is not the URL of a service: scheme, host and port, with nothing secret in it.

    Raises:
        InvalidArgument.
    """
    try:
        parts = urlsplit(endpoint)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise InvalidArgument("endpoint", endpoint, "An endpoint is the URL of a service: https://HOST[:PORT]")
    if "@" in parts.netloc:
        raise InvalidArgument("endpoint", "", "An endpoint is named without credentials")
    if parts.query or parts.fragment:
        raise InvalidArgument("endpoint", endpoint, "An endpoint has no query")


def check_url(url: str) -> None:
    """Refuse a URL with credentials in it: they have fields of their own, which are sealed and never shown.

    Raises:
        InvalidArgument.
    """
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None)
    except ValueError:
        raise InvalidArgument("url", "", "That is no URL") from None
    if secret:
        raise InvalidArgument("url", "", "The URL of an origin is written without credentials, which are given apart")


def bucket_and_prefix(place: OriginPlace) -> tuple[str, str]:
    """The bucket that a place's URL names, and the folder in it, "" where it is all of the bucket."""
    bucket, _, prefix = place.url.partition("://")[2].partition("/")
    return bucket, prefix


def _seal(master: MasterKey, origin_id: bytes, place: OriginPlace, created_ns: int) -> OriginRecord:
    pair = msgspec.msgpack.encode((place.access_key, place.secret_key))
    return OriginRecord(
        origin_id,
        place.url,
        place.endpoint,
        place.region,
        place.options,
        created_ns,
        master.id,
        master.seal(pair, origin_id),
    )


def _unseal(master: MasterKey, record: OriginRecord) -> OriginPlace:
    access.check_sealed_with(master, record.master, f"origin {record.url}")
    pair: tuple[str, str] = msgspec.msgpack.decode(master.unseal(record.sealed, record.id), type=tuple[str, str])
    return OriginPlace(record.url, record.endpoint, record.region, *pair, record.options)


async def read_origin(tr: Transaction, ctx: Context, master: MasterKey, origin_id: bytes) -> OriginPlace | None:
    """Where an origin is, and with which credentials. None: there is no such origin."""
    raw = await tr.get(ctx.keys.origin(origin_id))
    return _unseal(master, codec.decode(raw)) if raw is not None else None


async def use_origin(
    tr: Transaction,
    ctx: Context,
    master: MasterKey,
    name: str,
    purpose: str,
    place: OriginPlace | None,
    fresh_id: bytes,
    also: dict[str, object],
) -> Bucket:
    """Have a bucket use the origin at `place` for `purpose` (`SHADOW` or `BACKING`), None: none any more; change the
    fields `also` of its record with it. Where it uses that very place already, its credentials are replaced.

    Raises:
        NoSuchBucket, InvalidArgument. MasterKeyRotating, WrongMasterKey.
    """
    if place is not None:
        check_url(place.url)
    bucket = await read_bucket(tr, ctx, name)
    if place is None:
        return await change_bucket(tr, ctx, name, {purpose: b"", **also})
    await access.master_in_force(tr, ctx, master)
    origin_id: bytes = getattr(bucket, purpose)
    raw = await tr.get(ctx.keys.origin(origin_id)) if origin_id else None
    known = codec.decode(raw) if raw is not None else None
    if known is None or (known.url, known.endpoint) != (place.url, place.endpoint):
        origin_id, known = fresh_id, None
    created_ns = known.created_ns if known is not None else ctx.now_ns()
    tr.set(ctx.keys.origin(origin_id), codec.encode(_seal(master, origin_id, place, created_ns)))
    tr.bump_metadata_version()
    return await change_bucket(tr, ctx, name, {purpose: origin_id, **also})


async def list_origins(tr: Transaction, ctx: Context) -> list[OriginRecord]:
    """Every origin, its credentials sealed."""
    rows = await tr.get_range(*subspace(ctx.keys.origins))
    return [codec.decode(value) for _, value in rows]


async def reseal_origins(tr: Transaction, ctx: Context, old: MasterKey, new: MasterKey) -> None:
    """Seal the credentials of every origin anew: they are few."""
    for key, value in await tr.get_range(*subspace(ctx.keys.origins)):
        record = codec.decode(value)
        if record.master != new.id:
            place = _unseal(old, record)
            tr.set(key, codec.encode(_seal(new, record.id, place, record.created_ns)))
            tr.bump_metadata_version()
