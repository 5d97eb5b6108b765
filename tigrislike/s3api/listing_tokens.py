"""Continuation tokens: opaque to clients, refused when altered or used for another listing.

A token is the last key of the page before it, sealed with a short HMAC under the cluster's internal key, so that every
node and process reads what any other gave out.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from tigrislike.s3api.errors import S3Error

_SEAL_BYTES = 12


def seal_token(secret: bytes, listing: str, after: str) -> str:
    """A token that continues `listing` (a name of the listing and what it ranges over) after the key `after`."""
    value = after.encode()
    return base64.urlsafe_b64encode(_seal(secret, listing, value) + value).decode()


def open_token(secret: bytes, listing: str, token: str, argument: str) -> str:
    """The key that `seal_token` was given.

    Raises:
        S3Error: InvalidArgument, naming `argument`, where the token was not sealed for this listing.
    """
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        seal, value = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
        if hmac.compare_digest(seal, _seal(secret, listing, value)):
            return value.decode()
    except (binascii.Error, UnicodeError, ValueError):
        pass  # answered below, as any other token that is not ours
    raise S3Error(
        "InvalidArgument",
        "The continuation token provided is incorrect",
        extra={"ArgumentName": argument, "ArgumentValue": token[:1024]},
    )


def _seal(secret: bytes, listing: str, value: bytes) -> bytes:
    return hmac.digest(secret, b"listing\0" + listing.encode() + b"\0" + value, "sha256")[:_SEAL_BYTES]
