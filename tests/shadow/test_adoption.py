"""A bucket of ten thousand objects, and one of two GiB, adopted from somebody else's store while it is read."""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.clients.environments import client
from tests.nodes import RunningNode, running_node
from tests.origin import servers
from tests.origin.servers import S3Server
from tests.shadow import shadows
from tests.shadow.test_surfaces import command

pytestmark = pytest.mark.slow

OBJECTS = 10_000
MIB = 1024**2
PIECE = random.Random(1).randbytes(64 * MIB)
PIECES = 32
READERS = 4
BUCKET = "mine"


def key_of(number: int) -> str:
    return f"set/{number % 100:02}/object {number:05}.bin"


def body_of(number: int) -> bytes:
    """Up to 64 KiB, of which about a quarter are kept inline."""
    return random.Random(number).randbytes(number * 7919 % 65536)


def about(number: int) -> dict[str, Any]:
    return {
        "ContentType": f"application/x-{number % 7}",
        "CacheControl": f"max-age={number}",
        "Metadata": {"number": str(number)},
    }


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "seaweedfs").mkdir()
    with servers.seaweedfs(tmp_path / "seaweedfs") as server:
        yield server


def fill(origin: S3Server, folder: Path) -> str:
    """Put everything there; the MD5 of the large object, in hex."""
    at_origin = origin.boto3()
    with ThreadPoolExecutor(16) as pool:
        puts = [
            pool.submit(
                at_origin.put_object, Bucket=servers.BUCKET, Key=key_of(number), Body=body_of(number), **about(number)
            )
            for number in range(OBJECTS)
        ]
        for put in puts:
            put.result()
    digest = hashlib.md5()
    large = folder / "large"
    with large.open("wb") as file:
        for turn in range(PIECES):
            piece = turn.to_bytes(8, "big") + PIECE[8:]
            digest.update(piece)
            file.write(piece)
    config = TransferConfig(multipart_chunksize=64 * MIB, max_concurrency=2)
    at_origin.upload_file(str(large), servers.BUCKET, "large", ExtraArgs={"Metadata": {"large": "y"}}, Config=config)
    large.unlink()
    return digest.hexdigest()


def check(at_store: Any, number: int) -> None:
    answer = at_store.get_object(Bucket=BUCKET, Key=key_of(number))
    assert answer["Body"].read() == body_of(number), number
    expected = about(number)
    assert {name: answer[name] for name in expected} == expected, number


def check_large(at_store: Any, md5: str) -> None:
    digest = hashlib.md5()
    for piece in at_store.get_object(Bucket=BUCKET, Key="large")["Body"].iter_chunks(MIB):
        digest.update(piece)
    assert digest.hexdigest() == md5


def check_all(at_store: Any, md5: str) -> None:
    with ThreadPoolExecutor(READERS) as pool:
        for done in [pool.submit(check, at_store, number) for number in range(OBJECTS)]:
            done.result()
    check_large(at_store, md5)


def read_meanwhile(at_store: Any, seed: int, stop: threading.Event) -> int:
    """Read objects at random, each checked, until told to stop; how many."""
    choose = random.Random(seed)
    count = 0
    while not stop.is_set():
        check(at_store, choose.randrange(OBJECTS))
        count += 1
    return count


@pytest.mark.timeout(1500)
def test_a_bucket_is_adopted_while_it_is_read(origin: S3Server, tmp_path: Path) -> None:
    md5 = fill(origin, tmp_path)
    with running_node(tmp_path / "store", "--allow-private-origins") as store:
        at_store = shadows.client(store)
        at_store.create_bucket(Bucket=BUCKET)
        operate(store, origin, "set", BUCKET, f"--bucket={servers.BUCKET}", f"--endpoint={origin.endpoint}")
        stop = threading.Event()
        with ThreadPoolExecutor(READERS + 1) as pool:
            readers = [pool.submit(read_meanwhile, at_store, seed, stop) for seed in range(READERS)]
            try:
                large = pool.submit(check_large, at_store, md5)
                operate(store, origin, "migrate", BUCKET, "--wait")
                large.result()
            finally:
                stop.set()
            assert all(reader.result() > 10 for reader in readers)
        operate(store, origin, "report", BUCKET, f"--output={tmp_path / 'report.parquet'}")
        origin.process.terminate()
        origin.process.wait(60)
        check_all(at_store, md5)
        aws = client("awscli", store, tmp_path, AWS_MAX_ATTEMPTS="1")
        aws.run("aws", "s3", "cp", "--recursive", "--only-show-errors", f"s3://{BUCKET}/", "down", timeout_s=900)
        for number in range(OBJECTS):
            assert (tmp_path / "down" / key_of(number)).read_bytes() == body_of(number), number
        with (tmp_path / "down" / "large").open("rb") as file:
            assert hashlib.file_digest(file, "md5").hexdigest() == md5


def operate(store: RunningNode, origin: S3Server, *words: str) -> str:
    """One of the store's `tigrislike origin` commands, which must succeed; what it printed."""
    done: subprocess.CompletedProcess[str] = command(
        store.data_dir,
        "origin",
        *words,
        timeout_s=900,
        ORIGIN_ACCESS_KEY=origin.access_key,
        ORIGIN_SECRET_KEY=origin.secret_key,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
