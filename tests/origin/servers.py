"""Other people's stores as processes of their own on loopback, from the environment `.venvs/origins`.

Each is a context manager, for tests to start one with a scope of their own; `tests/origin/conftest.py` has those that
the origin tests share. A test is skipped where the environment cannot be made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from bench import processes, stores
from tests.clients.environments import REPOSITORY, prepared
from tigrislike.origin import Location

BIN = REPOSITORY / ".venvs" / "origins" / "bin"
BUCKET = "elsewhere"


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
