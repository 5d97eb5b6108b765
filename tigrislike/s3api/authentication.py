"""Who is asking: from a request's signature to the caller's identity.

The signature itself is checked by pure code (`sigv4`); here it meets the keys that the database knows and the clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tigrislike.metadata import Metadata
from tigrislike.metadata.bounded import Recalled
from tigrislike.metadata.records import AccessKey
from tigrislike.s3api.authorisation import Identity
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.post_policy import PostClaim
from tigrislike.s3api.request import Request
from tigrislike.s3api.sigv4 import Claim, Verified


async def authenticate(
    metadata: Metadata | Recalled,
    request: Request,
    claimed: Claim,
    now_ns: int,
    body_sha256: Callable[[Request], Awaitable[str]],
) -> Verified:
    """Check the signature and put the caller's identity into the request.

    Args:
        now_ns: the time, by the clock that the store goes by.
        body_sha256: reads the whole body and returns its digest in hex, for a signature that covers a digest which
            the request does not name. It is asked only where the key exists.

    Raises:
        S3Error: InvalidAccessKeyId, InvalidToken, SignatureDoesNotMatch and the other refusals of `sigv4`; what
            `body_sha256` raises.
    """
    key = await claimed_key(metadata, claimed)
    digest = await body_sha256(request) if claimed.body_sha256_missing else None
    verified = claimed.verify(key.secret, now_ns / 1e9, body_sha256=digest)
    request.identity = Identity(key.key_id, key.owner, key.bucket, key.admin)
    request.notes["access_key"] = key.key_id
    return verified


async def claimed_key(metadata: Metadata | Recalled, claimed: Claim | PostClaim) -> AccessKey:
    """The key pair that a signature claims to be made with.

    Raises:
        S3Error: InvalidAccessKeyId; InvalidToken for a session's token, since only temporary credentials have one and
            nobody issues them here: S3 does not let a token pass unchecked either.
    """
    key = await metadata.access_key(claimed.access_key_id)
    if key is None:
        raise S3Error("InvalidAccessKeyId", extra={"AWSAccessKeyId": claimed.access_key_id})
    if claimed.security_token:
        raise S3Error("InvalidToken")
    return key
