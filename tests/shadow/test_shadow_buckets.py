"""What a bucket does not have, its shadow may: reads through real nodes, of which one is the other's origin."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError

from tests.shadow.shadows import Pair, look_through, place_of, running_pair

MIB = 1024**2
SMALL = b"hello"
LARGE = random.Random(6).randbytes(20 * MIB)
OTHER = random.Random(7).randbytes(20 * MIB)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A store that never gets round to making adopted objects its own: one byte a second."""
    with running_pair(tmp_path_factory.mktemp("shadows"), "--replication-rate=1") as pair:
        yield pair


def read(client: object, bucket: str, key: str, **arguments: str) -> bytes:
    return client.get_object(Bucket=bucket, Key=key, **arguments)["Body"].read()  # type: ignore[attr-defined]


def headers(answer: dict) -> dict:
    return answer["ResponseMetadata"]["HTTPHeaders"]


def keys(pair: Pair, bucket: str) -> list[str]:
    return [each["Key"] for each in pair.at_store.list_objects_v2(Bucket=bucket).get("Contents", [])]


def code_of(raised: pytest.ExceptionInfo[ClientError]) -> str:
    return raised.value.response["Error"]["Code"]


@pytest.mark.parametrize("body", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_what_is_adopted_is_what_the_origin_has(pair: Pair, body: bytes) -> None:
    mine, other = pair.bucket()
    about = {
        "ContentType": "text/plain",
        "CacheControl": "max-age=3",
        "ContentDisposition": "attachment",
        "ContentLanguage": "de",
        "ContentEncoding": "identity",
        "Expires": datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        "Metadata": {"a": "b", "umlaut": "x"},
    }
    key = "a//b/../ü %2F+"
    pair.at_origin.put_object(Bucket=other, Key=key, Body=body, Tagging="t=u&v=w", ChecksumAlgorithm="SHA256", **about)
    there = pair.at_origin.get_object(Bucket=other, Key=key, ChecksumMode="ENABLED")
    seen = pair.at_store.head_object(Bucket=mine, Key=key)
    here = pair.at_store.get_object(Bucket=mine, Key=key, ChecksumMode="ENABLED")
    assert here["Body"].read() == there["Body"].read() == body
    for name in (*about, "ETag", "LastModified", "ContentLength", "ChecksumSHA256", "ChecksumType", "TagCount"):
        assert here[name] == there[name], name
    for name in (*about, "ETag", "LastModified", "ContentLength"):
        assert seen[name] == there[name], name
    tags = pair.at_store.get_object_tagging(Bucket=mine, Key=key)["TagSet"]
    assert tags == pair.at_origin.get_object_tagging(Bucket=other, Key=key)["TagSet"]
    listed = pair.at_store.list_objects_v2(Bucket=mine)["Contents"]
    there = pair.at_origin.list_objects_v2(Bucket=other)["Contents"]
    # Whole seconds: that is what an object says of itself, and what S3 lists.
    assert [(each["Key"], each["ETag"], each["LastModified"]) for each in listed] == [
        (each["Key"], each["ETag"], each["LastModified"].replace(microsecond=0)) for each in there
    ]


def test_a_cold_range_fetches_its_blocks_only(pair: Pair) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=LARGE)
    answer = pair.at_store.get_object(Bucket=mine, Key="k", Range="bytes=9000000-9000999")
    assert answer["Body"].read() == LARGE[9000000:9001000]
    assert headers(answer)["x-tigris-read-source"] == "block_shadow"
    assert headers(answer)["x-tigris-served-from"] == "origin"
    again = pair.at_store.get_object(Bucket=mine, Key="k", Range="bytes=9000000-9000999")
    assert again["Body"].read() == LARGE[9000000:9001000]
    gets = [each for each in pair.requests(other) if each["method"] == "GET" and "tagging" not in each["query"]]
    assert sum(each["sent_bytes"] for each in gets) <= 8 * MIB + 1000


def test_many_readers_cost_the_origin_one_copy(pair: Pair) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=LARGE)
    with ThreadPoolExecutor(16) as pool:
        bodies = list(pool.map(lambda _: read(pair.at_store, mine, "k"), range(16)))
    assert all(body == LARGE for body in bodies)
    gets = [each for each in pair.requests(other) if each["method"] == "GET" and "tagging" not in each["query"]]
    assert sum(each["sent_bytes"] for each in gets) <= 1.01 * len(LARGE)


def test_looking_keeps_nothing_and_scheduling_does(pair: Pair) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=LARGE)
    assert headers(pair.at_store.head_object(Bucket=mine, Key="k"))["x-tigris-read-source"] == "block_shadow"
    assert keys(pair, mine) == []
    events = pair.at_store.meta.events

    def schedule(request: object, **_: object) -> None:
        request.headers["X-Tigris-Schedule-Migration"] = "true"  # type: ignore[attr-defined]

    events.register("before-sign.s3.HeadObject", schedule)
    try:
        pair.at_store.head_object(Bucket=mine, Key="k")
    finally:
        events.unregister("before-sign.s3.HeadObject", schedule)
    assert keys(pair, mine) == ["k"]


@pytest.mark.parametrize("versioned", [False, True])
def test_what_was_deleted_does_not_come_back(pair: Pair, versioned: bool) -> None:
    mine, other = pair.bucket()
    if versioned:
        pair.at_store.put_bucket_versioning(Bucket=mine, VersioningConfiguration={"Status": "Enabled"})
    for key in ("read", "unread", "batch"):
        pair.at_origin.put_object(Bucket=other, Key=key, Body=SMALL)
    assert read(pair.at_store, mine, "read") == SMALL
    pair.at_store.delete_object(Bucket=mine, Key="read")
    pair.at_store.delete_object(Bucket=mine, Key="unread")
    pair.at_store.delete_objects(Bucket=mine, Delete={"Objects": [{"Key": "batch"}]})
    for key in ("read", "unread", "batch"):
        with pytest.raises(ClientError) as raised:
            read(pair.at_store, mine, key)
        assert code_of(raised) == "NoSuchKey"
        with pytest.raises(ClientError) as raised:
            pair.at_store.head_object(Bucket=mine, Key=key)
        assert code_of(raised) == "404"
        assert read(pair.at_origin, other, key) == SMALL


def test_what_neither_has_is_missing_and_found_once_it_is_there(pair: Pair) -> None:
    mine, other = pair.bucket()
    for _ in range(2):
        with pytest.raises(ClientError) as raised:
            read(pair.at_store, mine, "k")
        assert code_of(raised) == "NoSuchKey"
    # What is put here needs nobody's permission to be seen.
    pair.at_store.put_object(Bucket=mine, Key="k", Body=SMALL)
    assert read(pair.at_store, mine, "k") == SMALL
    with pytest.raises(ClientError):
        pair.at_origin.head_object(Bucket=other, Key="k")


@pytest.mark.parametrize("range_", [None, "bytes=0-99"])
def test_an_object_replaced_before_its_bytes_came_is_read_anew(pair: Pair, range_: str | None) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=LARGE)
    assert read(pair.at_store, mine, "k", Range="bytes=9000000-9000009") == LARGE[9000000:9000010]
    pair.at_origin.put_object(Bucket=other, Key="k", Body=OTHER, ContentType="x/y")
    answer = pair.at_store.get_object(Bucket=mine, Key="k", **({"Range": range_} if range_ else {}))
    assert answer["Body"].read() == (OTHER[:100] if range_ else OTHER)
    assert answer["ContentType"] == "x/y"
    assert pair.at_store.head_object(Bucket=mine, Key="k")["ETag"] == answer["ETag"]


def test_an_object_deleted_before_its_bytes_came_is_missing(pair: Pair) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=LARGE)
    assert read(pair.at_store, mine, "k", Range="bytes=9000000-9000009") == LARGE[9000000:9000010]
    pair.at_origin.delete_object(Bucket=other, Key="k")
    with pytest.raises(ClientError) as raised:
        read(pair.at_store, mine, "k", Range="bytes=0-9")
    assert code_of(raised) == "NoSuchKey"
    assert keys(pair, mine) == []


def test_conditions_know_what_the_shadow_has(pair: Pair) -> None:
    mine, other = pair.bucket()
    etag = pair.at_origin.put_object(Bucket=other, Key="k", Body=SMALL)["ETag"]
    pair.at_origin.put_object(Bucket=other, Key="l", Body=SMALL)
    with pytest.raises(ClientError) as raised:
        pair.at_store.put_object(Bucket=mine, Key="k", Body=b"new", IfNoneMatch="*")
    assert code_of(raised) == "PreconditionFailed"
    pair.at_store.put_object(Bucket=mine, Key="k", Body=b"new", IfMatch=etag)
    assert read(pair.at_store, mine, "k") == b"new"
    with pytest.raises(ClientError) as raised:
        pair.at_store.delete_object(Bucket=mine, Key="l", IfMatch='"other"')
    assert code_of(raised) == "PreconditionFailed"
    deletion = {"Objects": [{"Key": "l", "ETag": etag}]}
    assert [each["Key"] for each in pair.at_store.delete_objects(Bucket=mine, Delete=deletion)["Deleted"]] == ["l"]


def test_other_reads_look_through_too(pair: Pair) -> None:
    mine, other = pair.bucket()
    for key in ("attributes", "tags", "copied", "part"):
        pair.at_origin.put_object(Bucket=other, Key=key, Body=LARGE, Tagging="t=u")
    attributes = pair.at_store.get_object_attributes(Bucket=mine, Key="attributes", ObjectAttributes=["ObjectSize"])
    assert attributes["ObjectSize"] == len(LARGE)
    tagging = {"TagSet": [{"Key": "n", "Value": "m"}]}
    pair.at_store.put_object_tagging(Bucket=mine, Key="tags", Tagging=tagging)
    assert pair.at_store.get_object_tagging(Bucket=mine, Key="tags")["TagSet"] == tagging["TagSet"]
    pair.at_store.copy_object(Bucket=mine, Key="copy", CopySource={"Bucket": mine, "Key": "copied"})
    assert read(pair.at_store, mine, "copy") == LARGE
    upload = pair.at_store.create_multipart_upload(Bucket=mine, Key="parts")["UploadId"]
    part = pair.at_store.upload_part_copy(
        Bucket=mine, Key="parts", UploadId=upload, PartNumber=1, CopySource={"Bucket": mine, "Key": "part"}
    )["CopyPartResult"]
    pair.at_store.complete_multipart_upload(
        Bucket=mine,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert read(pair.at_store, mine, "parts") == LARGE


def test_credentials_are_replaced_without_a_restart(pair: Pair) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=SMALL)
    look_through(pair.store, mine, place_of(pair.origin, other, secret_key="wrong-wrong"))
    with pytest.raises(ClientError) as raised:
        read(pair.at_store, mine, "k")
    assert code_of(raised) == "ServiceUnavailable"
    assert "127.0.0.1" not in str(raised.value)
    look_through(pair.store, mine, place_of(pair.origin, other))
    body = None
    while body is None:  # the record is looked at again every few seconds; the test's time-out bounds it
        with contextlib.suppress(ClientError):
            body = read(pair.at_store, mine, "k")
    assert body == SMALL


def test_without_a_shadow_nothing_more_is_found(pair: Pair) -> None:
    mine, other = pair.bucket()
    pair.at_origin.put_object(Bucket=other, Key="k", Body=SMALL)
    look_through(pair.store, mine, None)
    with pytest.raises(ClientError) as raised:
        read(pair.at_store, mine, "k")
    assert code_of(raised) == "NoSuchKey"


def test_an_origin_that_is_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is here is served, what is not answers 503 and when to come again; after its return all is as before."""
    with running_pair(tmp_path_factory.mktemp("away")) as pair:
        mine, other = pair.bucket()
        for key in ("here", "there"):
            pair.at_origin.put_object(Bucket=other, Key=key, Body=LARGE)
        assert read(pair.at_store, mine, "here") == LARGE
        while "x-tigris-read-source" in headers(pair.at_store.head_object(Bucket=mine, Key="here")):
            pass  # until the queue has made it ours: bounded by the test's own time-out
        pair.origin.stop()
        assert read(pair.at_store, mine, "here") == LARGE
        with pytest.raises(ClientError) as raised:
            read(pair.at_store, mine, "there")
        assert code_of(raised) == "SlowDown"
        assert int(headers(raised.value.response)["retry-after"]) >= 1


def test_addresses_of_this_side_are_refused_unless_allowed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_pair(tmp_path_factory.mktemp("refused"), "--no-allow-private-origins") as pair:
        mine, other = pair.bucket()
        pair.at_origin.put_object(Bucket=other, Key="k", Body=SMALL)
        with pytest.raises(ClientError) as raised:
            read(pair.at_store, mine, "k")
        assert code_of(raised) == "ServiceUnavailable"
        assert pair.requests(other) == [each for each in pair.requests(other) if each["method"] == "PUT"]
