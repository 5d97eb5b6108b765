"""Buckets with a backing origin on real nodes, through the real S3 driver: the origin is a node too."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.nodes import RunningNode, start_node
from tests.server.test_cli import tigris

MIB = 1024 * 1024
BLOCK = 2 * MIB
TIMEOUT_S = 60.0
FLAGS = (f"--block-size={BLOCK}", "--disk-reserve=0", "--reclaim-grace=0", "--allow-private-origins")


def client(node: RunningNode) -> Any:
    return node.client(read_timeout=60)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)


class Pair:
    """A store, and the one that plays its origin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = start_node(folder / "origin", "--disk-reserve=0")
        self.port = self.origin.port
        client(self.origin).create_bucket(Bucket="backing")
        self.store = start_node(folder / "store", *FLAGS)

    def back(self, name: str, durability: str, **environment: str) -> Any:
        """The command, with the origin's keys in its environment."""
        keys = {
            "ORIGIN_ACCESS_KEY": self.origin.access_key_id,
            "ORIGIN_SECRET_KEY": self.origin.secret_access_key,
        }
        words = ("origin", "back", name, f"--data-dir={self.folder / 'store'}", "--allow-private-origins")
        place = (f"--url=s3://backing/{name}", f"--endpoint={self.origin.endpoint}", f"--durability={durability}")
        return tigris(*words, *place, **{**keys, **environment})

    def bucket(self, name: str, durability: str) -> Any:
        s3 = client(self.store)
        s3.create_bucket(Bucket=name)
        done = self.back(name, durability)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"durability={durability}", f"backing=s3://backing/{name}"]
        return s3

    def at_origin(self, name: str) -> dict[str, int]:
        pages = client(self.origin).get_paginator("list_objects_v2").paginate(Bucket="backing", Prefix=f"{name}/")
        return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", ())}

    def home_files(self) -> list[Path]:
        return [path for path in (self.folder / "store" / "cache" / "home").rglob("*") if path.is_file()]

    def close(self) -> None:
        self.store.kill()
        self.origin.kill()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    try:
        yield pair
    except BaseException:
        print(pair.store.log.read_text()[-5000:])
        raise
    finally:
        pair.close()


def _data(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.slow
def test_write_back_read_from_the_origin_deleted_and_given_up(pair: Pair, tmp_path: Path) -> None:
    s3 = pair.bucket("models", "write-back")
    datas = {f"k{n}": _data(n, size) for n, size in enumerate((100, 50_000, 5 * MIB, 20 * MIB))}
    for key, data in datas.items():
        s3.put_object(Bucket="models", Key=key, Body=data)
    upload = s3.create_multipart_upload(Bucket="models", Key="parts")["UploadId"]
    parts = []
    for number, data in enumerate((_data(10, 6 * MIB), _data(11, MIB)), 1):
        sent = s3.upload_part(Bucket="models", Key="parts", UploadId=upload, PartNumber=number, Body=data)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    s3.complete_multipart_upload(Bucket="models", Key="parts", UploadId=upload, MultipartUpload={"Parts": parts})
    datas["parts"] = _data(10, 6 * MIB) + _data(11, MIB)

    until(lambda: len(pair.at_origin("models")) == 5, "five blobs are at the origin")
    until(lambda: not pair.home_files(), "nothing is at home here")
    assert sorted(pair.at_origin("models").values()) == sorted([50_000, 5 * MIB, 20 * MIB, 6 * MIB, MIB])
    assert pair.store.stop() == 0

    # A cache that is a fraction of what there is, and empty.
    (pair.folder / "store" / "cache").rename(tmp_path / "lost")
    pair.store = start_node(pair.folder / "store", *FLAGS, f"--cache-size={8 * MIB}")
    s3 = client(pair.store)
    for _ in range(2):
        for key, data in datas.items():
            assert s3.get_object(Bucket="models", Key=key)["Body"].read() == data
            ranged = s3.get_object(Bucket="models", Key=key, Range="bytes=7-70")["Body"].read()
            assert ranged == data[7:71]
    # What is written finds room, for what is cached gives way.
    for n in range(20, 26):
        datas[f"k{n}"] = _data(n, 4 * MIB)
        s3.put_object(Bucket="models", Key=f"k{n}", Body=datas[f"k{n}"])
    until(lambda: len(pair.at_origin("models")) == 11 and not pair.home_files(), "they are at the origin")
    for key, data in datas.items():
        assert s3.get_object(Bucket="models", Key=key)["Body"].read() == data

    for key in ("k1", "k3"):
        s3.delete_object(Bucket="models", Key=key)
        datas.pop(key)
    until(lambda: len(pair.at_origin("models")) == 9, "what is deleted is gone from there too")

    done = tigris("origin", "unback", "models", f"--data-dir={pair.folder / 'store'}")
    assert done.stdout == "durability=local\n", done.stderr
    until(lambda: pair.at_origin("models") == {}, "the origin is needed no more")
    assert pair.origin.stop() == 0
    for key, data in datas.items():
        assert s3.get_object(Bucket="models", Key=key)["Body"].read() == data


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["write-back", "write-through"])
def test_the_origin_is_away_for_a_while(pair: Pair, durability: str) -> None:
    s3 = pair.bucket("models", durability)
    s3.put_object(Bucket="models", Key="before", Body=_data(1, 100_000))
    until(lambda: len(pair.at_origin("models")) == 1, "it is at the origin")
    assert pair.origin.stop() == 0
    s3.put_object(Bucket="models", Key="inline", Body=b"small objects lie in the database")
    if durability == "write-back":
        for n in range(5):
            s3.put_object(Bucket="models", Key=f"k{n}", Body=_data(n, 100_000))
            assert s3.get_object(Bucket="models", Key=f"k{n}")["Body"].read() == _data(n, 100_000)
    else:
        s3.put_object(Bucket="models", Key="k0", Body=b"kept")
        with pytest.raises(ClientError) as refused:
            s3.put_object(Bucket="models", Key="k0", Body=_data(0, 100_000))
        assert refused.value.response["Error"]["Code"] == "SlowDown"
        metadata = refused.value.response["ResponseMetadata"]
        assert metadata["HTTPStatusCode"] == 503
        assert int(metadata["HTTPHeaders"]["retry-after"]) >= 1
        assert s3.get_object(Bucket="models", Key="k0")["Body"].read() == b"kept"
    pair.origin = start_node(pair.folder / "origin", "--disk-reserve=0", f"--port={pair.port}")
    if durability == "write-back":
        until(lambda: len(pair.at_origin("models")) == 6 and not pair.home_files(), "what is owed is delivered")
        return

    def put() -> bool:
        try:
            s3.put_object(Bucket="models", Key="k0", Body=_data(0, 100_000))
        except ClientError:
            return False
        return True

    until(put, "it is taken again")
    assert s3.get_object(Bucket="models", Key="k0")["Body"].read() == _data(0, 100_000)
    assert len(pair.at_origin("models")) == 2


@pytest.mark.slow
def test_an_origin_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    try:
        client(pair.store).create_bucket(Bucket="models")
        for durability, environment, message in (
            ("write-back", {"ORIGIN_SECRET_KEY": "wrong"}, "tigrislike: "),
            ("local", {}, "needs no origin"),
        ):
            done = pair.back("models", durability, **environment)
            assert (done.returncode, done.stdout) == (1, "")
            assert message in done.stderr
            assert pair.origin.secret_access_key not in done.stderr
        done = pair.back("no-such-bucket", "write-back")
        assert (done.returncode, "NoSuchBucket" in done.stderr) == (1, True)
        assert client(pair.origin).list_objects_v2(Bucket="backing")["KeyCount"] == 0
        data = f"--data-dir={pair.folder / 'store'}"
        done = tigris("buckets", "set", "models", data, f"--block-size={BLOCK}", "--durability=write-back")
        assert done.returncode == 1
        assert "needs a backing origin" in done.stderr
        done = tigris("origin", "clear", "models", data, "--backing")
        assert done.returncode == 1
        done = tigris("origin", "back", "models", data, "--url=nothing://there")
        assert done.returncode == 1
        assert "no driver" in done.stderr
        assert client(pair.store).get_bucket_location(Bucket="models")
    finally:
        pair.close()
