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

# A signer that leaves out x-amz-content-sha256 (plain SigV4, as curl does) has signed the digest of the whole body, so
# the body has to be in memory before the signature can be checked.
MAX_BUFFERED_BODY = 16 * 1024 * 1024


async def authenticate(metadata: Metadata, request: Request, claimed: Claim) -> Verified:
    """Check the signature and put the caller's identity into the request.

    Raises:
        S3Error: InvalidAccessKeyId, SignatureDoesNotMatch and the other refusals of `sigv4`.
    """
    key = await metadata.access_key(claimed.access_key_id)
    if key is None:
        raise S3Error("InvalidAccessKeyId", extra={"AWSAccessKeyId": claimed.access_key_id})
    body_sha256 = await request.buffer_body(MAX_BUFFERED_BODY) if claimed.body_sha256_missing else None
    verified = claimed.verify(key.secret, time.time(), body_sha256=body_sha256)
    request.identity = Identity(key.key_id, key.owner, key.bucket)
    request.notes["access_key"] = key.key_id
    return verified
