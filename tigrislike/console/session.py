"""Who is signed in to the console: sealed cookies, CSRF tokens that belong to them, and a bound on failed attempts.

A session lives in its cookie alone, encrypted and authenticated with a key that the master key derives, so that every
worker of every node accepts it and nobody can read or make one. It names the access key it was opened with, and has a
digest that only this key's secret gives: a key that is revoked, is no admin any more, or has another secret ends its
sessions at once. Signing out forgets the cookie; a copy of it would be good until it expires, or its key is revoked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from tigrislike.metadata import Metadata
from tigrislike.metadata.records import AccessKey

T = TypeVar("T")

_NONCE: Final = 12
_MAX_COOKIE: Final = 4096
_MOST_OF_KEY_ID: Final = 128


class Session(Struct, frozen=True, array_like=True):
    """Somebody is signed in with the key `key_id` until `until_ns`; `check` belongs to the key's secret, `id` to this
    session alone."""

    key_id: str
    check: bytes
    until_ns: int
    id: bytes


class Notice(Struct, frozen=True, array_like=True):
    """What one page has to say on the next one."""

    text: str


class Sessions:
    """Opens and checks the sessions of a store.

    Args:
        lasts_s: how long one is good for.
    """

    def __init__(self, metadata: Metadata, lasts_s: float) -> None:
        self._metadata = metadata
        self._lasts_ns = round(lasts_s * 1e9)
        self._aead = AESGCM(metadata.derive_key("console sessions"))
        self._mac = metadata.derive_key("console tokens")

    async def sign_in(self, key_id: str, secret: str) -> Session | None:
        """A session for whoever has an admin key. None: there is no such key, the secret is another one, or the key is
        no admin's; which of them is not told, nor by the time that it takes to compare."""
        await self._metadata.refresh()
        key = await self._metadata.access_key(key_id)
        expected = key.secret if key is not None else ""
        same = hmac.compare_digest(_digest(expected), _digest(secret))
        if key is None or not same or not key.admin:
            return None
        until_ns = self._metadata.now_ns() + self._lasts_ns
        return Session(key_id, self._check(key), until_ns, secrets.token_bytes(16))

    async def current(self, cookie: str) -> Session | None:
        """The session of a cookie, if it is one, is not over, and its key may still be signed in with."""
        session = self._unseal(cookie, b"session", Session)
        if session is None or session.until_ns <= self._metadata.now_ns():
            return None
        await self._metadata.refresh()
        key = await self._metadata.access_key(session.key_id)
        if key is None or not key.admin or not hmac.compare_digest(self._check(key), session.check):
            return None
        return session

    def cookie(self, session: Session) -> str:
        return self._seal(session, b"session")

    def left_s(self, session: Session) -> int:
        return max(0, (session.until_ns - self._metadata.now_ns()) // 1_000_000_000)

    def token(self, session: Session) -> str:
        """What a form of this session has in it that nobody else can know."""
        return hmac.new(self._mac, b"csrf" + session.id, hashlib.sha256).hexdigest()

    def is_token(self, session: Session, given: str) -> bool:
        return hmac.compare_digest(self.token(session).encode(), given.encode())

    def notice(self, session: Session, text: str) -> str:
        return self._seal(Notice(text[:1000]), b"notice" + session.id)

    def noticed(self, session: Session, cookie: str) -> str:
        """The text of a notice of this session; empty where it is none."""
        notice = self._unseal(cookie, b"notice" + session.id, Notice)
        return notice.text if notice is not None else ""

    def _check(self, key: AccessKey) -> bytes:
        return hmac.new(self._mac, b"secret" + key.key_id.encode() + b"\x00" + key.secret.encode(), "sha256").digest()

    def _seal(self, record: Struct, belongs_to: bytes) -> str:
        nonce = secrets.token_bytes(_NONCE)
        sealed = nonce + self._aead.encrypt(nonce, msgspec.msgpack.encode(record), belongs_to)
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def _unseal(self, text: str, belongs_to: bytes, type_: type[T]) -> T | None:
        if not text or len(text) > _MAX_COOKIE:
            return None
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            opened = self._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], belongs_to)
            return msgspec.msgpack.decode(opened, type=type_)
        except (ValueError, binascii.Error, InvalidTag, msgspec.MsgspecError):
            return None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Attempts:
    """How often a client may fail to sign in with a key: `most` times, and once more every `every_s`. Whoever shares
    an address with others, behind a proxy, is not kept out by those who try other keys.

    Kept by each process for itself, of the `clients` latest ones.
    """

    def __init__(
        self,
        *,
        most: int = 10,
        every_s: float = 30.0,
        clients: int = 4096,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._every_s = every_s
        self._clients = clients
        self._clock_s = clock_s
        self._free_at_s: OrderedDict[tuple[str, str], float] = OrderedDict()

    def take(self, address: str, key_id: str) -> float:
        """Begin an attempt, which counts as failed until it is given back: 0.0, or the seconds to wait before one."""
        client, now_s = (_network(address), key_id[:_MOST_OF_KEY_ID]), self._clock_s()
        free_at_s = max(self._free_at_s.get(client, 0.0), now_s) + self._every_s
        wait_s = free_at_s - now_s - self._most * self._every_s
        if wait_s > 0:
            return wait_s
        self._free_at_s[client] = free_at_s
        self._free_at_s.move_to_end(client)
        while len(self._free_at_s) > self._clients:
            self._free_at_s.popitem(last=False)
        return 0.0

    def give_back(self, address: str, key_id: str) -> None:
        """The attempt succeeded."""
        client = _network(address), key_id[:_MOST_OF_KEY_ID]
        if client in self._free_at_s:
            self._free_at_s[client] -= self._every_s


def _network(address: str) -> str:
    """Who an address is: whoever has one IPv6 address has the whole /64 of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        return str(parsed if parsed.version == 4 else parsed.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
