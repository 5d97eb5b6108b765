"""Google Cloud Storage, by its XML API, which is S3's but for how requests are signed and what headers are called.

A service account signs tokens for itself, so that nobody is asked for one. Google decompresses what is stored with the
content encoding gzip for whoever does not say that he takes it as it is; then ranges are ignored and no length is told.
So every read says that.

Every object has a CRC32C, which is told where it is written and where it is looked at. One that was written in parts
has no MD5. What anybody may read and has no Cache-Control is told to have ``public, max-age=3600``.

Source: the reference of the XML API of Cloud Storage, "Transcoding of gzip-compressed files", and AIP-4111 on
self-signed JSON Web Tokens.
"""

from __future__ import annotations

import json
import re
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import ClassVar, Final
from urllib.parse import quote
from xml.etree.ElementTree import Element

from awscrt import checksums
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec.structs import replace

from .egress import Egress
from .errors import OriginRefused
from .location import Location
from .s3 import HEADERS, Crc, S3Origin
from .transport import Timeouts

ENDPOINT: Final = "https://storage.googleapis.com"
SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
LIFETIME_S: Final = 3600
"""How long a token is good for. Google takes none that is for longer."""

_EARLY_S: Final = 300
_STORAGE_CLASSES: Final = {"NEARLINE", "COLDLINE", "ARCHIVE"}
_AS_IT_IS: Final = {"Accept-Encoding": "gzip"}


class GoogleOrigin(S3Origin):
    """``gs://bucket/prefix``. `secret_key` is a service account's key, the JSON document; "" asks as anybody."""

    _own_headers: ClassVar[Mapping[str, str]] = {
        member: name for member, name in HEADERS.items() if member not in ("Expires", "WebsiteRedirectLocation")
    }
    _own_prefix: ClassVar[str] = "x-goog-"
    _own_head: ClassVar[Mapping[str, str]] = _AS_IT_IS
    _own_get: ClassVar[Mapping[str, str]] = _AS_IT_IS
    _own_crc: ClassVar[Crc] = Crc("CRC32C", 4, checksums.crc32c)

    def __init__(self, location: Location, egress: Egress, timeouts: Timeouts) -> None:
        super().__init__(replace(location, endpoint=location.endpoint or ENDPOINT, options={}), egress, timeouts)
        self.loses = frozenset({"tags", "headers.Expires", "headers.WebsiteRedirectLocation"})
        self._account = ServiceAccount(location.secret_key) if location.secret_key else None

    def _own_signed(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> dict[str, str]:
        if self._account is None:
            return dict(headers)
        return {**headers, "Authorization": f"Bearer {self._account.token()}"}

    def _own_path(self, name: str) -> str:
        if name in (".", ".."):
            raise OriginRefused(f"{self.name} has no name for {name!r}")
        # With its slashes encoded it is one segment, of which no server on the way resolves the dots.
        return quote(name, safe="~")

    def _own_checksum(self, headers: Mapping[str, str]) -> tuple[str, str, str]:
        crc = _digests(headers).get("crc32c", "")
        return ("CRC32C", "FULL_OBJECT", crc) if crc else ("", "", "")

    def _own_etag_is_md5(self, etag: str, headers: Mapping[str, str]) -> bool:
        try:
            return b64decode(_digests(headers).get("md5", "")).hex() == etag != ""
        except ValueError:
            return False

    def _own_told_crc(self, headers: Mapping[str, str], done: Element | None = None) -> str:
        return _digests(headers).get("crc32c", "")

    def _own_stores(self, storage_class: str) -> bool:
        return storage_class in _STORAGE_CLASSES


class ServiceAccount:
    """Signs tokens with a service account's key.

    Args:
        key: as Google gives it to people, a JSON document.

    Raises:
        OriginRefused: it is none.
    """

    def __init__(self, key: str, *, now_s: Callable[[], float] = time.time) -> None:
        try:
            fields = json.loads(key)
            self._name = str(fields["client_email"])
            self._key_id = str(fields["private_key_id"])
            private = load_pem_private_key(fields["private_key"].encode(), None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, rsa.RSAPrivateKey):
            # What is wrong with it is not told: it would tell of the key.
            raise OriginRefused("the secret key of a Google origin is the JSON document of a service account's key")
        self._private = private
        self._now_s = now_s
        self._token = ""
        self._until_s = 0.0

    def token(self) -> str:
        """A token that is good for some minutes at least."""
        now_s = self._now_s()
        if now_s > self._until_s - _EARLY_S:
            begin_s = int(now_s)
            claims = {"iss": self._name, "sub": self._name, "scope": SCOPE, "iat": begin_s, "exp": begin_s + LIFETIME_S}
            header = {"alg": "RS256", "typ": "JWT", "kid": self._key_id}
            message = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
            signature = self._private.sign(message.encode(), padding.PKCS1v15(), hashes.SHA256())
            self._token, self._until_s = f"{message}.{_encoded(signature)}", begin_s + LIFETIME_S
        return self._token


def _encoded(part: bytes) -> str:
    return urlsafe_b64encode(part).rstrip(b"=").decode()


def _digests(headers: Mapping[str, str]) -> dict[str, str]:
    """The digests of an object by name, each in base64."""
    return dict(re.findall(r"(\w+)=([A-Za-z0-9+/]+=*)", headers.get("x-goog-hash", "")))
