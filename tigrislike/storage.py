"""`tigrislike storage create`: a bucket and a key pair that may use it and nothing else.

It is made by a running server, over a call signed with the root keys, or directly in a local store. Either way bucket
and key come to be in one transaction: both, or neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import ssl
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tigrislike.config import Settings

_TIMEOUT_S = 30.0
GLOBAL, LOCAL, STRONG = "global", "local", "strong"
"""The policies of a bucket that says nothing else."""


class StorageError(Exception):
    """The bucket was not made; the message is for the person who asked."""


@dataclass(frozen=True)
class Storage:
    """What an application needs to use its bucket."""

    bucket: str
    endpoint: str
    access_key_id: str
    secret_access_key: str

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that AWS's SDKs and tools read, and the bucket's name."""
        return {
            "BUCKET_NAME": self.bucket,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "auto",
        }

    @property
    def lines(self) -> str:
        return "".join(f"{name}={value}\n" for name, value in self.variables.items())


@dataclass(frozen=True)
class Shadow:
    """The bucket of another service that a bucket looks through to."""

    name: str
    endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    write_through: bool = False


def create_local(
    settings: Settings,
    name: str,
    *,
    public: bool,
    shadow: Shadow | None = None,
    regions: str = GLOBAL,
    durability: str = LOCAL,
    read_mode: str = STRONG,
) -> Storage:
    """Make it in the store of the settings, whether or not a server runs on it.

    Raises:
        StorageError: with the S3 error code and message, or what is wrong with the store.
    """
    from tigrislike.admin.noting import by_command
    from tigrislike.metadata.errors import MetadataError
    from tigrislike.metadata.kv import EngineError
    from tigrislike.metadata.origins import s3_place
    from tigrislike.node import Node
    from tigrislike.server import endpoint_url

    async def create() -> Storage:
        place = None
        if shadow is not None:
            place = s3_place(shadow.name, shadow.endpoint, shadow.region, shadow.access_key, shadow.secret_key)
        async with Node.opened(settings) as node:
            root = await node.ensure_root()
            told: dict[str, object] = {"name": name, "public": public, "regions": regions, "durability": durability}
            if shadow is not None:
                told |= {"shadow_bucket": shadow.name, "shadow_endpoint": shadow.endpoint}
            async with by_command(node.metadata, settings, "create_storage", told):
                bucket, key = await node.metadata.create_storage(
                    name,
                    root.owner,
                    public=public,
                    region_policy=regions,
                    durability=durability,
                    read_mode=read_mode,
                    shadow=place,
                    write_through=shadow is not None and shadow.write_through,
                )
            return Storage(bucket.name, endpoint_url(settings, settings.port), key.key_id, key.secret)

    try:
        return asyncio.run(create())
    except MetadataError as error:
        raise StorageError(f"{error.code}: {error}") from error
    except (EngineError, OSError, ValueError) as error:
        raise StorageError(str(error)) from error


def create_remote(
    endpoint: str,
    access_key_id: str,
    secret_access_key: str,
    name: str,
    *,
    public: bool,
    shadow: Shadow | None = None,
    regions: str = GLOBAL,
    durability: str = LOCAL,
    read_mode: str = STRONG,
    ca_bundle: str | None = None,
) -> Storage:
    """Ask a running server, as root.

    Args:
        endpoint: `http://host:port` or `https://...`.
        ca_bundle: PEM file of authorities to trust in place of the system's.

    Raises:
        StorageError: no such server, or its refusal with S3 code and message.
    """
    import defusedxml.ElementTree
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    wanted: dict[str, object] = {"name": name, "public": public}
    # What a server of an older release does not know is only sent where it is wanted.
    if regions != GLOBAL:
        wanted["regions"] = regions
    if durability != LOCAL:
        wanted["durability"] = durability
    if read_mode != STRONG:
        wanted["read_mode"] = read_mode
    if shadow is not None:
        wanted["shadow_bucket"] = asdict(shadow)
    body = json.dumps(wanted).encode()
    url = f"{endpoint.rstrip('/')}/_tigrislike/storage"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StorageError(f"{endpoint!r} is no endpoint: expected http://HOST:PORT or https://HOST:PORT")
    request = AWSRequest("POST", url, data=body, headers={"Content-Type": "application/json", "Host": parts.netloc})
    SigV4Auth(Credentials(access_key_id, secret_access_key), "s3", "auto").add_auth(request)
    connection = (
        http.client.HTTPSConnection(
            parts.hostname,
            parts.port,
            timeout=_TIMEOUT_S,
            context=ssl.create_default_context(cafile=ca_bundle),
        )
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    )
    try:
        with contextlib.closing(connection):
            connection.request("POST", parts.path, body, dict(request.headers.items()))
            response = connection.getresponse()
            answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise StorageError(f"no answer from {endpoint}: {error}") from error
    if response.status != 200:
        try:
            document = defusedxml.ElementTree.fromstring(answer)
            code, message = document.findtext("Code"), document.findtext("Message")
        except defusedxml.ElementTree.ParseError:
            code, message = f"HTTP status {response.status}", f"is {endpoint} a tigrislike server?"
        raise StorageError(f"{code}: {message}")
    made = json.loads(answer)
    return Storage(made["bucket"], endpoint.rstrip("/"), made["access_key_id"], made["secret_access_key"])


@contextlib.contextmanager
def new_private_file(path: Path) -> Iterator[list[str]]:
    """A file of mode 0600 that appears whole when the block ends well, with the texts put into the list, or not at all.

    That it can be written is found out before the block runs, so that no key is made that nobody gets to see.

    Raises:
        StorageError: it exists already, or its directory cannot be written.
    """
    if path.exists():
        raise StorageError(f"{path} exists already; it is not overwritten, and no bucket was made")
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; no bucket was made") from error
    texts: list[str] = []
    try:
        with os.fdopen(descriptor, "w") as file:
            yield texts
            file.writelines(texts)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
