"""Other people's stores as processes of their own on loopback, from the environment `.venvs/origins`.

Each is a context manager, for tests to start one with a scope of their own; `tests/origin/conftest.py` has those that
the origin tests share. A test is skipped where the environment cannot be made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from botocore.config import Config
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from bench import processes, stores
from tests.clients.environments import REPOSITORY, prepared
from tigrislike.origin import Location

BIN = REPOSITORY / ".venvs" / "origins" / "bin"
BUCKET = "elsewhere"
SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"


@dataclass(frozen=True)
class S3Server:
    """A store that speaks S3, with an empty bucket `BUCKET`.

    Attributes:
        endpoint: its URL.
        process: of it, for tests that stop it: SIGSTOP, SIGKILL.
    """

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]

    def location(self, prefix: str = "", bucket: str = BUCKET, **options: str) -> Location:
        url = f"s3://{bucket}/{prefix}"
        return Location(url, self.endpoint, "us-east-1", self.access_key, self.secret_key, options)

    def boto3(self):  # type: ignore[no-untyped-def]
        """A client of it, for what tests look at, or put there, behind the driver's back."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


def program(name: str) -> str:
    """Where a program of the environment is, which is made if need be; skips the test where it cannot be."""
    if reason := prepared(".venvs/origins"):
        pytest.skip(reason)
    return str(BIN / name)


@contextmanager
def seaweedfs(directory: Path) -> Iterator[S3Server]:
    """SeaweedFS with its data in `directory`, an empty folder."""
    with stores.seaweedfs(directory, program("weed")) as (store, *_):
        store.create_bucket(BUCKET)
        yield S3Server(f"http://127.0.0.1:{store.port}", store.access_key, store.secret_key, store.process)


@contextmanager
def moto(directory: Path) -> Iterator[S3Server]:
    """Moto, which keeps everything in memory and models S3's rarer answers. Its log goes into `directory`."""
    command = [program("moto_server"), "-H", "127.0.0.1", "-p"]
    with _listening(command, directory) as (port, process):
        server = S3Server(f"http://127.0.0.1:{port}", "testing", "testing", process)
        client = server.boto3()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield server


@contextmanager
def azure(directory: Path) -> Iterator[str]:
    """The part of Azure's blob service that `azure_server.py` knows, with the container `BUCKET`; its URL."""
    with _listening([sys.executable, str(Path(__file__).with_name("azure_server.py"))], directory) as (port, _):
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class GoogleServer:
    """What `google_server.py` knows of Google Cloud Storage, with the bucket `BUCKET`.

    Attributes:
        key: of the service account that may write there, as Google gives it to people: a JSON document.
    """

    endpoint: str
    key: str

    def location(self, prefix: str = "", *, key: str | None = None) -> Location:
        """For whoever has the account's key, or another; "": for anybody."""
        return Location(f"gs://{BUCKET}/{prefix}", self.endpoint, secret_key=self.key if key is None else key)

    def ask(self, path: str = "", method: str = "GET", body: bytes | None = None, **headers: str) -> bytes:
        """What it answers the account, behind the driver's back. `headers` with underscores for hyphens."""
        key = json.loads(self.key)
        claims = {"iss": key["client_email"], "sub": key["client_email"], "scope": SCOPE}
        now_s = int(time.time())
        claims |= {"iat": now_s, "exp": now_s + 60}
        parts = [{"alg": "RS256", "typ": "JWT"}, claims]
        message = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        private = serialization.load_pem_private_key(key["private_key"].encode(), None)
        assert isinstance(private, rsa.RSAPrivateKey)
        signature = private.sign(message.encode(), padding.PKCS1v15(), hashes.SHA256())
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Authorization"] = f"Bearer {message}.{_encoded(signature)}"
        request = urllib.request.Request(f"{self.endpoint}/{path}", body, named, method=method)
        with urllib.request.urlopen(request) as answer:
            found: bytes = answer.read()
            return found

    def put(self, key: str, body: bytes = b"", **headers: str) -> None:
        self.ask(f"{BUCKET}/{quote(key, safe='')}", "PUT", body, **headers)

    def authorizations(self) -> list[str]:
        """The `Authorization` of every request to it so far."""
        found: list[str] = json.loads(self.ask())
        return found


def _encoded(part: bytes) -> str:
    return urlsafe_b64encode(part).rstrip(b"=").decode()


@contextmanager
def google(directory: Path) -> Iterator[GoogleServer]:
    account = "mover@project.iam.gserviceaccount.com"
    key = rsa.generate_private_key(65537, 2048)
    public = directory / "account.pem"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    command = [sys.executable, str(Path(__file__).with_name("google_server.py")), str(public), account]
    with _listening(command, directory) as (port, _):
        yield GoogleServer(f"http://127.0.0.1:{port}", service_account_key(account, key))


def service_account_key(account: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """A service account's key, as Google gives it to people."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": "4711",
            "private_key": private.decode(),
            "client_email": account,
            "token_uri": "https://oauth2.googleapis.com/token",
        }
    )


@contextmanager
def _listening(command: list[str], directory: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server that takes its port as the last argument, until it is stopped by its process id."""
    (port,) = processes.free_ports(1)
    log = directory / "log"
    process = processes.start([*command, str(port)], log, env={"PYTHONUNBUFFERED": "1", **_PLAIN}, cwd=directory)
    try:
        processes.wait_for_ports(process, [port], log)
        yield port, process
    finally:
        processes.stop(process)


# Settings of this machine that would send these servers elsewhere.
_PLAIN = {name: "" for name in os.environ if name.startswith(("AWS_", "STORAGE_"))}
