"""No secret is ever written where it can be read: a scan of what nodes print, serve and log, over the whole test run.

Every secret that tests make, are given or sign with is told to the `Scan` of the run, and whatever comes out of a node
is looked through for them: its output and access log when it has ended and once more at the end of the run (by then
more secrets are known), its page of metrics before it is stopped, the error documents that the raw clients receive. A
find does not fail the test that it was made in, for that is rarely the one to blame: it fails the run, and says where.

What is told by itself: the secret key of each node and of everybody who signs by botocore or `tests.e2e.wire`, master
keys and what is configured beside them, and all signatures. `SCAN.look` is for whoever has a page to be looked at.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

_SHORTEST = 12  # what is shorter is a word of a test, such as "secret", and no key
_SIGNATURE = re.compile(rb"[0-9a-f]{64,}")
_MADE = re.compile(r"Signature=([0-9a-f]{64})")
_TOLD_ON_PURPOSE = re.compile(rb"^export AWS_SECRET_ACCESS_KEY=.*$", re.MULTILINE)
"""A node that made its own root key says it once, when it starts, to whoever started it."""
_METRICS_TIMEOUT_S = 1.0


class Scan:
    """The secrets that are known, and where they were found.

    Attributes:
        found: a line for each find, without the secret.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._secrets: dict[bytes, str] = {}
        self._signatures: set[bytes] = set()
        self._files: dict[Path, None] = {}

    def keep(self, secret: str, kind: str) -> None:
        """Remember a secret, in each way in which it may be written."""
        if len(secret) < _SHORTEST:
            return
        for written in {secret, quote(secret, safe=""), quote_plus(secret), secret.replace("/", "\\/")}:
            self._secrets.setdefault(written.encode(), kind)

    def keep_master_key(self, text: str) -> None:
        """Remember a master key, as its file has it and as its bytes may be shown."""
        self.keep(text.strip(), "master key")
        with contextlib.suppress(binascii.Error, ValueError):
            raw = base64.b64decode(text, validate=False)
            self.keep(raw.hex(), "master key")
            self.keep(repr(raw)[2:-1], "master key")

    def keep_signature(self, signature: str) -> None:
        """Remember a signature: 64 hexadecimal digits."""
        self._signatures.add(signature.encode())

    def look(self, text: bytes | str, where: str, *, signatures: bool = True) -> None:
        """Look through what came out of a node. An error may name the signature that it is about to whoever sent it."""
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        kinds = {kind for secret, kind in self._secrets.items() if secret in data}
        if signatures and any(self._is_signature(run) for run in _SIGNATURE.findall(data)):
            kinds.add("signature")
        self.found.extend(line for kind in sorted(kinds) if (line := f"{kind} in {where}") not in self.found)

    def _is_signature(self, run: bytes) -> bool:
        return any(run[start : start + 64] in self._signatures for start in range(len(run) - 63))

    def look_at_file(self, path: Path) -> None:
        """Look through a file, now and when the run ends. One that is not there (any more) says nothing."""
        self._files[path] = None
        with contextlib.suppress(FileNotFoundError):
            self.look(_TOLD_ON_PURPOSE.sub(b"", path.read_bytes()), str(path))

    def look_again(self) -> None:
        """Look through all files for what became known since."""
        for path in list(self._files):
            self.look_at_file(path)

    def look_at_metrics(self, endpoint: str) -> None:
        """Look through the page of metrics of a node, if it answers."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        url = f"{endpoint}/_tigrislike/metrics"
        handler = urllib.request.HTTPSHandler(context=context)
        page = b""
        with contextlib.suppress(OSError, ValueError):  # it has ended, hangs, or speaks to nobody just now
            page = urllib.request.build_opener(handler).open(url, timeout=_METRICS_TIMEOUT_S).read()
        self.look(page, url)


SCAN = Scan()
"""That of this run."""


@contextlib.contextmanager
def _told_by_botocore() -> Iterator[None]:
    """Whatever botocore signs with, and each signature that it makes, in Python or in C, is told to `SCAN`."""
    from botocore.auth import AUTH_TYPE_MAPS

    signers = {base for signer in AUTH_TYPE_MAPS.values() for base in signer.__mro__ if "add_auth" in vars(base)}
    plain = {signer: signer.add_auth for signer in signers}
    for signer, add_auth in plain.items():
        signer.add_auth = _telling(add_auth)
    try:
        yield
    finally:
        for signer, add_auth in plain.items():
            signer.add_auth = add_auth


def _telling(add_auth: Any) -> Any:
    def told(self: Any, request: Any) -> Any:
        result = add_auth(self, request)
        credentials = getattr(self, "credentials", None)
        if credentials is not None:
            SCAN.keep(credentials.secret_key, "secret key")
            SCAN.keep(credentials.token or "", "session token")
        for signature in _MADE.findall(f"{request.url} {request.headers.get('Authorization', '')}"):
            SCAN.keep_signature(signature)
        return result

    return told


# -- As a plugin of pytest ---------------------------------------------------------------------------------------------

_told = contextlib.ExitStack()


def pytest_sessionstart(session: pytest.Session) -> None:
    _told.enter_context(_told_by_botocore())


def pytest_sessionfinish(session: pytest.Session) -> None:
    _told.close()
    SCAN.look_again()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["leaks"] = SCAN.found  # of a process that runs some of the tests: the one that started it fails
    elif SCAN.found and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    SCAN.found.extend(getattr(node, "workeroutput", {}).get("leaks", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in SCAN.found:
        terminalreporter.write_line(f"SECRET LEAKED: {line}", red=True)
