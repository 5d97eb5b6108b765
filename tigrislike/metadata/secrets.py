"""The master key: secrets at rest, and the keys derived from it.

One 32-byte key encrypts every secret in the database (AES-256-GCM, a random nonce each, bound to what the secret
belongs to) and derives the cluster's internal keys (HKDF-SHA256). It is never stored in the database; a check value
there tells at open whether a node was given the right one. A key has an id, derived from it, which records carry.

This module does no database access: rotation is `access.rotate`.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import WrongMasterKey

KEY_BYTES = 32
_NONCE_BYTES = 12
_CHECK_TEXT = b"tigrislike master key check"


class MasterKey:
    """The cluster's master key. Its repr shows only the id."""

    __slots__ = ("_aead", "_secret", "id")

    def __init__(self, secret: bytes) -> None:
        """`secret`: exactly 32 bytes."""
        if len(secret) != KEY_BYTES:
            raise WrongMasterKey(f"a master key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self._aead = AESGCM(self.derive("secrets at rest"))
        self.id = self.derive("key id")[:8]

    def derive(self, purpose: str) -> bytes:
        """32 bytes for one purpose (HKDF-SHA256); they tell nothing about the key or about other purposes."""
        info = b"tigrislike " + purpose.encode()
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self._secret)

    def __repr__(self) -> str:
        return f"MasterKey(id={self.id.hex()})"

    def seal(self, text: bytes, belongs_to: bytes) -> bytes:
        """`text` encrypted; opens only for the same `belongs_to`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, text, belongs_to)

    def unseal(self, sealed: bytes, belongs_to: bytes) -> bytes:
        """What was sealed. Raises WrongMasterKey if it was sealed with another key, or damaged."""
        try:
            return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], belongs_to)
        except (InvalidTag, ValueError):
            raise WrongMasterKey(
                f"a secret does not open with master key {self.id.hex()}: the key is wrong or the record damaged"
            ) from None

    def check_value(self) -> bytes:
        return self.seal(_CHECK_TEXT, self.id)

    def matches(self, check_value: bytes) -> bool:
        """Whether `check_value` was made with this key."""
        try:
            return self.unseal(check_value, self.id) == _CHECK_TEXT
        except WrongMasterKey:
            return False

    # -- where the key comes from

    @classmethod
    def generate(cls) -> MasterKey:
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> MasterKey:
        """A key from text: 64 hex digits, or base64 of 32 bytes.

        Raises:
            WrongMasterKey: it is neither. The message does not repeat the text.
        """
        text = text.strip()
        if len(text) == 2 * KEY_BYTES:
            try:
                return cls(bytes.fromhex(text))
            except ValueError:
                pass
        try:
            secret = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != KEY_BYTES:
            raise WrongMasterKey("a master key is written as 64 hex digits or as base64 of 32 bytes")
        return cls(secret)

    @classmethod
    def read_file(cls, path: Path) -> MasterKey:
        """The key in a file. Raises OSError, or WrongMasterKey if it holds none."""
        return cls.parse(path.read_text(encoding="ascii", errors="replace"))

    @classmethod
    def create_file(cls, path: Path) -> MasterKey:
        """Make a key in a new file, as `write_file`; the key in the file if there is one already."""
        return cls.generate().write_file(path)

    def write_file(self, path: Path) -> MasterKey:
        """Write this key to a new file of mode 0600, durably; if another process has just made it, read that one.

        The file appears whole or not at all: it is written aside, synced, and linked into place.
        """
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._secret.hex().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(aside, path)
            except FileExistsError:
                return type(self).read_file(path)
        finally:
            aside.unlink()
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return self

    @classmethod
    def load(cls, text: str | None, path: Path | None, *, create: bool) -> MasterKey:
        """The configured key: `text` if given, else the file at `path`, made first if `create` and absent.

        Raises:
            WrongMasterKey: neither is given, or the file is absent and not to be made, or what they hold is no key.
        """
        if text:
            return cls.parse(text)
        if path is None:
            raise WrongMasterKey("no master key is configured: give its value or a file")
        try:
            return cls.read_file(path)
        except FileNotFoundError:
            if not create:
                raise WrongMasterKey(
                    f"the master key file {path} does not exist: put it back, or say where it is"
                ) from None
        return cls.create_file(path)
