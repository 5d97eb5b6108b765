"""Who is asking: from a request's signature to the caller's identity.

The signature itself is checked by pure code (`sigv4`); here it meets the keys that the database knows and the clock.
"""

from __future__ import annotations

import time

from tigrislike.metadata import Metadata
from tigrislike.s3api.authorisation import Identity
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.request import Request
from tigrislike.s3api.sigv4 import Claim, Verified


async def authenticate(
    metadata: Metadata, request: Request, claimed: Claim, body_sha256: str | None = None
) -> Verified:
    """Check the signature and put the caller's identity into the request.

    `body_sha256` is what `claimed.body_sha256_missing` asks for, in hex.

    Raises:
        S3Error: InvalidAccessKeyId, SignatureDoesNotMatch and the other refusals of `sigv4`.
    """
    key = await metadata.access_key(claimed.access_key_id)
    if key is None:
        raise S3Error("InvalidAccessKeyId", extra={"AWSAccessKeyId": claimed.access_key_id})
    verified = claimed.verify(key.secret, time.time(), body_sha256=body_sha256)
    request.identity = Identity(key.key_id, key.owner, key.bucket)
    request.notes["access_key"] = key.key_id
    return verified
