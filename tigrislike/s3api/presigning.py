"""Links that read one object for a while: the URL that a client would presign, made here for whoever is signed in.

Source: "Authenticating Requests: Using Query Parameters" in the Amazon S3 API reference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Final
from urllib.parse import quote, urlsplit

from tigrislike.metadata.records import AccessKey
from tigrislike.s3api.sigv4 import ALGORITHM, signing_key

MAX_EXPIRES_S: Final = 7 * 86400
"""The longest that S3 lets a link of a long-lived key last."""


def presigned_url(
    endpoint: str,
    bucket: str,
    key: str,
    signer: AccessKey,
    *,
    region: str,
    now_s: float,
    expires_s: int,
    query: Mapping[str, str] | None = None,
) -> str:
    """The URL of a GET of an object, path-style, good for `expires_s` seconds from `now_s` on.

    Args:
        endpoint: scheme and host, as whoever uses the link reaches S3.
        query: further parameters, such as `versionId`, which are signed too.

    Raises:
        ValueError: `expires_s` is out of bounds.
    """
    if not 1 <= expires_s <= MAX_EXPIRES_S:
        raise ValueError(f"a link lasts from 1 to {MAX_EXPIRES_S} seconds, not {expires_s}")
    timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    scope = f"{timestamp[:8]}/{region}/s3/aws4_request"
    given = {
        **(query or {}),
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{signer.key_id}/{scope}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    path = f"/{quote(bucket, safe='~')}/{quote(key, safe='/~')}"
    pairs = sorted((quote(name, safe="~"), quote(value, safe="~")) for name, value in given.items())
    canonical_query = "&".join(f"{name}={value}" for name, value in pairs)
    host = urlsplit(endpoint).netloc
    canonical = f"GET\n{path}\n{canonical_query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"{ALGORITHM}\n{timestamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    signature = signing_key(signer.secret, timestamp[:8], region, "s3").sign(to_sign.encode())
    return f"{endpoint.rstrip('/')}{path}?{canonical_query}&X-Amz-Signature={signature}"
