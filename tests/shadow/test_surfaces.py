"""Shadow buckets of real nodes, by their clients and operators: set, listed, written through, migrated, reported."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from tests.e2e.wire import Caller
from tests.nodes import running_node
from tests.shadow.shadows import Pair, client, running_pair
from tigrislike.cli import app

SOURCE = "X-Tigris-List-Source"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_pair(tmp_path_factory.mktemp("surfaces")) as pair:
        yield pair


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tigris(pair: Pair, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command on the store's machine, with the keys of the pair's origin."""
    keys = {"ORIGIN_ACCESS_KEY": pair.origin.access_key_id, "ORIGIN_SECRET_KEY": pair.origin.secret_access_key}
    return command(pair.store.data_dir, *words, **{**keys, **environment})


def command(
    data_dir: Path, *words: str, timeout_s: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command on the machine of a node that keeps its data in `data_dir`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TIGRISLIKE_"))}
    return subprocess.run(
        [sys.executable, "-m", "tigrislike", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env={
            **inherited,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TERM": "dumb",
            "TIGRISLIKE_DATA_DIR": str(data_dir),
            "TIGRISLIKE_ALLOW_PRIVATE_ORIGINS": "1",
            **environment,
        },
    )


def document(pair: Pair, bucket: str, **changes: object) -> dict[str, object]:
    """A bucket of the origin, as Tigris' clients name a shadow."""
    return {
        "name": bucket,
        "endpoint": pair.origin.endpoint,
        "region": "auto",
        "access_key": pair.origin.access_key_id,
        "secret_key": pair.origin.secret_access_key,
        **changes,
    }


def update(pair: Pair, bucket: str, settings: dict[str, object]) -> None:
    body = json.dumps(settings).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    answer = Caller(pair.store).send("PATCH", f"/{bucket}", headers, body)
    assert (answer.status, json.loads(answer.body)["Update"]) == (200, "success")


@contextlib.contextmanager
def asking(pair: Pair, source: str) -> Iterator[Any]:
    """A client of the store that lists from one side alone."""
    made = client(pair.store)

    def add(request: Any, **_: Any) -> None:
        request.headers[SOURCE] = source

    made.meta.events.register("before-sign.s3", add)
    yield made
    made.close()


def names(at: Any, bucket: str, operation: str = "list_objects_v2", **arguments: Any) -> list[str]:
    """All keys and common prefixes that a listing shows, over its pages, in their order."""
    found: list[str] = []
    for page in at.get_paginator(operation).paginate(Bucket=bucket, **arguments):
        shown = [each["Key"] for each in page.get("Contents", [])]
        found += sorted([*shown, *(each["Prefix"] for each in page.get("CommonPrefixes", []))])
    return found


def there(pair: Pair, bucket: str) -> dict[str, bytes]:
    """What the origin has; what goes while it is looked at is left out."""
    found = {}
    for key in names(pair.at_origin, bucket):
        with contextlib.suppress(pair.at_origin.exceptions.NoSuchKey):
            found[key] = pair.at_origin.get_object(Bucket=bucket, Key=key)["Body"].read()
    return found


def test_a_shadow_set_as_tigris_clients_set_it_is_looked_through_to(pair: Pair) -> None:
    pair.at_store.create_bucket(Bucket="by-patch")
    pair.at_origin.create_bucket(Bucket="by-patch-source")
    pair.at_origin.put_object(Bucket="by-patch-source", Key="k", Body=b"theirs", Metadata={"a": "b"})
    with pytest.raises(ClientError):
        pair.at_store.get_object(Bucket="by-patch", Key="k")
    update(pair, "by-patch", {"shadow_bucket": document(pair, "by-patch-source")})
    answer = pair.at_store.get_object(Bucket="by-patch", Key="k")
    assert (answer["Body"].read(), answer["Metadata"]) == (b"theirs", {"a": "b"})
    pair.at_origin.put_object(Bucket="by-patch-source", Key="later", Body=b"x")
    update(pair, "by-patch", {"shadow_bucket": {}})
    with pytest.raises(ClientError):
        pair.at_store.get_object(Bucket="by-patch", Key="later")
    assert names(pair.at_store, "by-patch") == ["k"]


@pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
def test_a_listing_is_of_one_side_or_of_both(pair: Pair, operation: str) -> None:
    mine, other = pair.bucket()
    for key in ("a", "b/1", "b/2", "c", "d/1", "e"):
        pair.at_origin.put_object(Bucket=other, Key=key, Body=b"theirs")
    for key in ("b/3", "c", "f"):
        pair.at_store.put_object(Bucket=mine, Key=key, Body=b"ours, longer")
    pair.at_store.delete_object(Bucket=mine, Key="e")
    for size in (1, 2, 1000):
        few = {"operation": operation, "PaginationConfig": {"PageSize": size}}
        assert names(pair.at_store, mine, **few) == ["b/3", "c", "f"]
        with asking(pair, "shadow") as at:
            assert names(at, mine, **few) == ["a", "b/1", "b/2", "c", "d/1", "e"]
            assert names(at, mine, Delimiter="/", **few) == ["a", "b/", "c", "d/", "e"]
            assert names(at, mine, Prefix="b/", **few) == ["b/1", "b/2"]
    update(pair, mine, {"shadow_bucket": document(pair, other, write_through=True)})
    both = ["a", "b/1", "b/2", "b/3", "c", "d/1", "f"]
    for size in (1, 2, 1000):
        few = {"operation": operation, "PaginationConfig": {"PageSize": size}}
        assert names(pair.at_store, mine, **few) == both
        assert names(pair.at_store, mine, Delimiter="/", **few) == ["a", "b/", "c", "d/", "f"]
        assert names(pair.at_store, mine, Prefix="b/", **few) == ["b/1", "b/2", "b/3"]
        with asking(pair, "tigris") as at:
            assert names(at, mine, **few) == ["b/3", "c", "f"]
    sizes = {each["Key"]: each["Size"] for each in pair.at_store.list_objects_v2(Bucket=mine)["Contents"]}
    assert (sizes["a"], sizes["c"]) == (6, 12)
    assert pair.at_store.list_objects_v2(Bucket=mine, StartAfter="b/2", MaxKeys=2)["Contents"][0]["Key"] == "b/3"
    assert names(pair.at_store, mine, operation, Prefix="nothing") == []


def test_a_listing_that_cannot_be_is_refused(pair: Pair) -> None:
    mine, other = pair.bucket()
    caller = Caller(pair.store)
    for bucket, source in ((mine, "elsewhere"), ("plain", "shadow")):
        with contextlib.suppress(ClientError):
            pair.at_store.create_bucket(Bucket="plain")
        answer = caller.send("GET", f"/{bucket}?list-type=2", {SOURCE: source})
        assert (answer.status, answer.code) == (400, "InvalidArgument")
    # A token belongs to the listing that it is of.
    for key in "ab":
        pair.at_origin.put_object(Bucket=other, Key=key, Body=b"x")
    with asking(pair, "shadow") as at:
        token = at.list_objects_v2(Bucket=mine, MaxKeys=1)["NextContinuationToken"]
    with pytest.raises(ClientError, match="continuation token"):
        pair.at_store.list_objects_v2(Bucket=mine, ContinuationToken=token)
    update(pair, mine, {"shadow_bucket": document(pair, other, write_through=True)})
    for key in "ab":
        pair.at_origin.delete_object(Bucket=other, Key=key)
    pair.at_origin.delete_bucket(Bucket=other)
    with pytest.raises(ClientError) as raised:
        pair.at_store.list_objects_v2(Bucket=mine)
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"name": "no-such-bucket"}, 400, "InvalidArgument"),
        ({"secret_key": "wrong"}, 403, "InvalidAccessKeyId"),
        ({"access_key": "nobody"}, 403, "InvalidAccessKeyId"),
    ],
)
def test_a_shadow_that_refuses_is_not_set(pair: Pair, changes: dict[str, str], status: int, code: str) -> None:
    with contextlib.suppress(ClientError):
        pair.at_store.create_bucket(Bucket="refused")
        pair.at_origin.create_bucket(Bucket="refused-source")
    body = json.dumps({"shadow_bucket": document(pair, "refused-source", **changes)}).encode()
    answer = Caller(pair.store).send("PATCH", "/refused", {"content-length": str(len(body))}, body)
    assert (answer.status, answer.code) == (status, code)
    assert pair.origin.secret_access_key.encode() not in answer.body


def test_what_is_written_here_reaches_the_shadow(pair: Pair) -> None:
    mine, other = pair.bucket(write_through=True)
    at = pair.at_store
    part = os.urandom(5 * 1024**2)
    pair.at_origin.put_object(Bucket=other, Key="gone", Body=b"theirs")
    at.put_object(Bucket=mine, Key="put", Body=b"1", ContentType="text/plain", Metadata={"a": "b"}, Tagging="t=u")
    at.copy_object(Bucket=mine, Key="a copy/ü", CopySource={"Bucket": mine, "Key": "put"})
    upload = at.create_multipart_upload(Bucket=mine, Key="parts", CacheControl="no-cache")["UploadId"]
    etags = [
        {
            "PartNumber": number,
            "ETag": at.upload_part(Bucket=mine, Key="parts", UploadId=upload, PartNumber=number, Body=body)["ETag"],
        }
        for number, body in ((1, part), (2, b"end"))
    ]
    at.complete_multipart_upload(Bucket=mine, Key="parts", UploadId=upload, MultipartUpload={"Parts": etags})
    form = at.generate_presigned_post(mine, "form")
    post(pair, form, b"from a form")
    at.delete_object(Bucket=mine, Key="gone")
    expected = {"put": b"1", "a copy/ü": b"1", "parts": part + b"end", "form": b"from a form"}
    until(lambda: there(pair, other) == expected)
    head = pair.at_origin.head_object(Bucket=other, Key="put")
    assert (head["ContentType"], head["Metadata"], head["TagCount"]) == ("text/plain", {"a": "b"}, 1)
    assert pair.at_origin.head_object(Bucket=other, Key="parts")["CacheControl"] == "no-cache"
    at.delete_objects(Bucket=mine, Delete={"Objects": [{"Key": key} for key in ("put", "form")]})
    at.put_object(Bucket=mine, Key="parts", Body=b"short")
    until(lambda: there(pair, other) == {"a copy/ü": b"1", "parts": b"short"})


def post(pair: Pair, form: dict[str, Any], body: bytes) -> None:
    fields = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in form["fields"].items()
    )
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + body + b"\r\n--x--\r\n"
    connection = http.client.HTTPConnection(pair.store.endpoint.partition("://")[2])
    path = form["url"].partition("://")[2].partition("/")[2]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    connection.request("POST", f"/{path}", fields.encode() + file, headers)
    assert connection.getresponse().status == 204
    connection.close()


@pytest.mark.slow
def test_a_bucket_is_brought_here_with_the_command_line(pair: Pair, tmp_path: Path) -> None:
    pair.at_store.create_bucket(Bucket="adopts")
    pair.at_origin.create_bucket(Bucket="adopted")
    large = os.urandom(9 * 1024**2)
    for n in range(30):
        pair.at_origin.put_object(Bucket="adopted", Key=f"models/{n:02}", Body=b"%d" % n, Metadata={"n": str(n)})
    pair.at_origin.put_object(Bucket="adopted", Key="models/large", Body=large, ContentType="a/b", Tagging="t=u")
    pair.at_origin.put_object(Bucket="adopted", Key="other", Body=b"x")
    where = ["--bucket=adopted", "--prefix=models", f"--endpoint={pair.origin.endpoint}", "--region=auto"]

    done = tigris(pair, "origin", "set", "adopts", *where, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["url"], shown["write_through"], shown["purpose"]) == ("s3://adopted/models", False, "shadow")
    assert json.loads(tigris(pair, "origin", "show", "adopts", "--json").stdout) == shown
    assert shown in [json.loads(line) for line in tigris(pair, "origin", "ls", "--json").stdout.splitlines()]
    assert "s3://adopted/models" in tigris(pair, "origin", "ls").stdout
    assert "shadow: see `tigrislike origin show adopts`" in tigris(pair, "buckets", "show", "adopts").stdout
    checked = json.loads(tigris(pair, "origin", "check", "adopts", "--json").stdout)
    assert (checked["key"], checked["loses"]) == ("00", [])

    report = tmp_path / "report.parquet"
    done = tigris(pair, "origin", "report", "adopts", f"--output={report}")
    assert done.returncode == 1, done.stderr
    assert "31 differ" in done.stdout
    assert pq.read_table(report)["differs"].to_pylist() == [["missing"]] * 31

    done = tigris(pair, "origin", "migrate", "adopts", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert (ended["looked"], ended["adopted"], ended["failed"], ended["fetching"]) == (31, 31, 0, 0)
    done = tigris(pair, "origin", "report", "adopts", f"--output={report}", "--json")
    assert (done.returncode, json.loads(done.stdout)["differ"]) == (0, 0), pq.read_table(report).to_pylist()
    assert pq.read_table(report).num_rows == 0

    done = tigris(pair, "origin", "clear", "adopts")
    assert done.returncode == 0, done.stderr
    assert "uses no origin" in tigris(pair, "origin", "show", "adopts").stderr
    answer = pair.at_store.get_object(Bucket="adopts", Key="large")
    assert (answer["Body"].read(), answer["ContentType"], answer["TagCount"]) == (large, "a/b", 1)
    assert len(names(pair.at_store, "adopts")) == 31
    everything = "".join(path.read_text() for path in (pair.store.log,)) + done.stdout + done.stderr
    assert pair.origin.secret_access_key not in everything


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["set", "plain"], "--bucket and --url"),
        (["set", "plain", "--bucket=b", "--url=gs://b"], "--bucket and --url"),
        (["set", "plain", "--url=gs://b", "--prefix=p"], "--prefix"),
        (["set", "plain", "--bucket=b", "--option=x"], "NAME=VALUE"),
        (["set", "plain", "--bucket=b", "--endpoint=nowhere"], "URL"),
        (["set", "plain", "--url=https://user:secret@example.com/x"], "without credentials"),
        (["set", "plain", "--url=https://secret@example.com/x"], "without credentials"),
        (["set", "plain", "--url=s3://key:secret@bucket"], "without credentials"),
        (["set", "plain", "--url=https://[x"], "no URL"),
        (["back", "plain", "--url=s3://key:secret@bucket"], "without credentials"),
        (["set", "no-such-bucket", "--bucket=b"], "NoSuchBucket"),
        (["set", "plain", "--bucket=b", "--secret-key-file=/nowhere"], "/nowhere"),
        (["show", "plain"], "uses no origin"),
        (["clear", "plain"], "no shadow origin"),
        (["check", "plain", "--backing"], "no backing origin"),
        (["migrate", "plain"], "InvalidRequest"),
        (["report", "plain", "--output=x.parquet"], "no shadow origin"),
    ],
)
def test_a_command_that_makes_no_sense_says_why(pair: Pair, words: list[str], says: str) -> None:
    with contextlib.suppress(ClientError):
        pair.at_store.create_bucket(Bucket="plain")
    keys = {"ORIGIN_ACCESS_KEY": "key", "ORIGIN_SECRET_KEY": "secret"}
    done = CliRunner().invoke(app, ["origin", *words, f"--data-dir={pair.store.data_dir}"], env=keys)
    assert done.exit_code == 1
    assert says in done.stderr
    assert "secret@" not in done.output
    assert isinstance(done.exception, SystemExit)


@pytest.mark.slow
def test_a_secret_comes_from_a_file_or_the_environment_or_not_at_all(pair: Pair, tmp_path: Path) -> None:
    pair.at_store.create_bucket(Bucket="secretive")
    pair.at_origin.create_bucket(Bucket="secretive-source")
    where = ["--bucket=secretive-source", f"--endpoint={pair.origin.endpoint}", "--region=auto"]
    done = tigris(pair, "origin", "set", "secretive", *where, ORIGIN_SECRET_KEY="")
    assert (done.returncode, "secret key is missing" in done.stderr) == (1, True)
    file = tmp_path / "secret"
    file.write_text(pair.origin.secret_access_key + "\n")
    done = tigris(pair, "origin", "set", "secretive", *where, f"--secret-key-file={file}", ORIGIN_SECRET_KEY="")
    assert done.returncode == 0, done.stderr
    assert "it is empty" in tigris(pair, "origin", "check", "secretive").stdout
    assert tigris(pair, "origin", "set", "secretive", *where, ORIGIN_SECRET_KEY="wrong").returncode == 0
    done = tigris(pair, "origin", "check", "secretive")
    assert (done.returncode, "wrong" in done.stderr) == (1, False)
    done = tigris(pair, "origin", "check", "secretive", TIGRISLIKE_ALLOW_PRIVATE_ORIGINS="0")
    assert (done.returncode, "127.0.0.1" in done.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_storage_is_made_with_a_shadow(pair: Pair, remote: bool) -> None:
    name = f"storage-{remote}".lower()
    pair.at_origin.create_bucket(Bucket=f"{name}-source")
    pair.at_origin.put_object(Bucket=f"{name}-source", Key="k", Body=b"theirs")
    words = [
        "storage",
        "create",
        name,
        "--json",
        f"--shadow-name={name}-source",
        f"--shadow-endpoint={pair.origin.endpoint}",
        "--shadow-region=auto",
        f"--shadow-access-key={pair.origin.access_key_id}",
        "--shadow-write-through",
        *([f"--endpoint={pair.store.endpoint}"] if remote else []),
    ]
    keys = {"AWS_ACCESS_KEY_ID": pair.store.access_key_id, "AWS_SECRET_ACCESS_KEY": pair.store.secret_access_key}
    done = tigris(pair, *words, SHADOW_SECRET_KEY=pair.origin.secret_access_key, **keys)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    scoped = Caller(pair.store, made["AWS_ACCESS_KEY_ID"], made["AWS_SECRET_ACCESS_KEY"])
    assert scoped.send("GET", f"/{name}/k").body == b"theirs"
    assert json.loads(scoped.send("GET", f"/{name}?metadata").body)["shadow_bucket"]["write_through"] is True
    incomplete = tigris(pair, "storage", "create", f"{name}-2", "--shadow-endpoint=https://s3.example.com", **keys)
    assert "--shadow-name" in incomplete.stderr
    refused = tigris(pair, *[word.replace(name, f"{name}-3") for word in words], SHADOW_SECRET_KEY="", **keys)
    assert (refused.returncode, "InvalidArgument" in refused.stderr) == (1, True)


@pytest.mark.slow
def test_owed_writes_are_delivered_once_the_origin_returns(tmp_path: Path) -> None:
    with running_pair(tmp_path) as pair:
        mine, other = pair.bucket(write_through=True)
        pair.at_store.put_object(Bucket=mine, Key="kept", Body=b"1")
        until(lambda: there(pair, other) == {"kept": b"1"})
        port = pair.origin.port
        pair.origin.kill()
        pair.at_store.put_object(Bucket=mine, Key="owed", Body=b"2")
        pair.at_store.delete_object(Bucket=mine, Key="kept")
        assert pair.at_store.get_object(Bucket=mine, Key="owed")["Body"].read() == b"2"
        answer = Caller(pair.store).send("GET", f"/{mine}?list-type=2")
        assert (answer.status, "retry-after" in answer.headers) == (503, True)
        with running_node(tmp_path / "origin", f"--port={port}") as again:
            pair.at_origin = client(again)
            until(lambda: there(pair, other) == {"owed": b"2"}, 90)
