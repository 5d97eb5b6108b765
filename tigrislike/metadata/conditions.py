"""Preconditions of reads and writes, as pure functions.

Reads follow RFC 9110 section 13.2.2 as S3 documents it for GetObject and HeadObject; writes follow the S3 User
Guide's "conditional writes" and "conditional deletes". What S3 leaves open follows the RFC.
"""

from __future__ import annotations

from .errors import NoSuchKey, NotModified, PreconditionFailed
from .records import ObjectVersion, ReadCondition, WriteCondition


def etag_matches(condition: str, etag: str) -> bool:
    """Whether `condition` (``*``, an ETag or a comma-separated list of them, quoted or not, weak or not) names
    `etag`."""
    for candidate in condition.split(","):
        plain = candidate.strip()
        if plain in ("*", '"*"'):
            return True
        if plain.removeprefix("W/").strip('"') == etag:
            return True
    return False


def check_read(condition: ReadCondition | None, version: ObjectVersion, *, copying: bool = False) -> None:
    """Raise unless `version` may be read under `condition`.

    Times are compared in whole seconds, because that is what Last-Modified shows.

    Raises:
        PreconditionFailed: If-Match or If-Unmodified-Since failed; when `copying`, any of them.
        NotModified: If-None-Match or If-Modified-Since failed.
    """
    if condition is None:
        return
    modified_s = version.stamp // 1_000_000_000
    if condition.if_match is not None:
        if not etag_matches(condition.if_match, version.etag):
            raise PreconditionFailed("If-Match")
    elif condition.if_unmodified_since_s is not None and modified_s > condition.if_unmodified_since_s:
        raise PreconditionFailed("If-Unmodified-Since")
    if condition.if_none_match is not None:
        if etag_matches(condition.if_none_match, version.etag):
            if copying:
                raise PreconditionFailed("If-None-Match")
            raise NotModified(version.etag, version.stamp, version.version_id)
    elif condition.if_modified_since_s is not None and modified_s <= condition.if_modified_since_s:
        if copying:
            raise PreconditionFailed("If-Modified-Since")
        raise NotModified(version.etag, version.stamp, version.version_id)


def check_write(condition: WriteCondition | None, key: str, live: ObjectVersion | None) -> None:
    """Raise unless `key`, whose live version is `live`, may be written under `condition`.

    Raises:
        NoSuchKey: If-Match where there is no live version (a delete marker is none).
        PreconditionFailed: If-Match with another ETag, or If-None-Match with this one or ``*``.
    """
    if condition is None:
        return
    if condition.if_match is not None:
        if live is None:
            raise NoSuchKey(key)
        if not etag_matches(condition.if_match, live.etag):
            raise PreconditionFailed("If-Match")
    if condition.if_none_match is not None and live is not None and etag_matches(condition.if_none_match, live.etag):
        raise PreconditionFailed("If-None-Match")


def check_delete(condition: WriteCondition | None, key: str, target: ObjectVersion | None, hidden: bool) -> None:
    """Raise unless `target` (None: there is none) may be deleted under `condition`.

    `hidden` says that a delete marker is what makes `target` None: then an If-Match fails with 412, where nothing at
    all is stored it is 404. The conditions on time and size hold vacuously where there is no object.

    Raises:
        NoSuchKey, PreconditionFailed: as described.
    """
    if condition is None:
        return
    if condition.if_match is not None:
        if target is None or target.delete_marker:
            if hidden or target is not None:
                raise PreconditionFailed("If-Match")
            raise NoSuchKey(key)
        if not etag_matches(condition.if_match, target.etag):
            raise PreconditionFailed("If-Match")
    if target is None or target.delete_marker:
        return
    modified_s = condition.if_match_last_modified_s
    if modified_s is not None and target.stamp // 1_000_000_000 != modified_s:
        raise PreconditionFailed("x-amz-if-match-last-modified-time")
    if condition.if_match_size is not None and target.size != condition.if_match_size:
        raise PreconditionFailed("x-amz-if-match-size")
