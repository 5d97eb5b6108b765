"""Server access logging as a user meets it: requests to real nodes, and what lies in the target bucket afterwards."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from botocore.exceptions import ClientError

from tests.console.browser import Browser
from tests.e2e.conftest import anonymous, client, fetch
from tests.e2e.wire import Caller
from tests.nodes import RunningNode, running_node
from tests.server.access_lines import Line, parse

QUICK = "--server-log-interval=500ms"
WAIT_S = 30.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("store") / "data", QUICK) as node:
        yield node


@pytest.fixture(scope="module")
def s3(node: RunningNode) -> Any:
    return client(node)


def enable(s3: Any, source: str, target: str, prefix: str = "log/", **more: Any) -> None:
    logging = {"TargetBucket": target, "TargetPrefix": prefix, **more}
    s3.put_bucket_logging(Bucket=source, BucketLoggingStatus={"LoggingEnabled": logging})


def lines_of(s3: Any, target: str, prefix: str) -> list[Line]:
    found = []
    for entry in s3.list_objects_v2(Bucket=target, Prefix=prefix).get("Contents", ()):
        body = s3.get_object(Bucket=target, Key=entry["Key"])["Body"].read().decode()
        assert body.endswith("\n")
        found += [parse(line) for line in body.splitlines()]
    return found


def awaited(look: Callable[[], Any]) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, "not delivered"
        time.sleep(0.2)
    return found


def logged(node: RunningNode, s3: Any, source: str, target: str, prefix: str = "log/") -> None:
    """Until both workers log the requests to `source`: the ids that a process gives begin alike, and others' do not."""

    def both() -> bool:
        for _ in range(4):
            Caller(node).send("HEAD", f"/{source}")
        lines = lines_of(s3, target, prefix)
        return len({line.request_id[:8] for line in lines if line.operation == "REST.HEAD.BUCKET"}) == 2

    awaited(both)


def test_every_request_becomes_a_line(node: RunningNode, s3: Any) -> None:
    for bucket in ("lines-source", "lines-target"):
        s3.create_bucket(Bucket=bucket)
    enable(s3, "lines-source", "lines-target")
    logged(node, s3, "lines-source", "lines-target")
    began = datetime.now(UTC).replace(microsecond=0)
    key = 'a key/with "quotes", ünïcode\nand 100%'
    put = s3.put_object(Bucket="lines-source", Key=key, Body=b"x" * 100)
    s3.get_object(Bucket="lines-source", Key=key, Range="bytes=0-9")["Body"].read()
    s3.copy_object(Bucket="lines-source", Key="copy", CopySource={"Bucket": "lines-source", "Key": key})
    s3.list_objects_v2(Bucket="lines-source")
    with pytest.raises(ClientError):
        s3.get_object(Bucket="lines-source", Key="absent")
    with pytest.raises(ClientError):
        anonymous(node).get_object(Bucket="lines-source", Key=key)
    url = s3.generate_presigned_url("get_object", {"Bucket": "lines-source", "Key": "copy"})
    fetch(node, "GET", url, {"Referer": "http://example/a b", "User-Agent": 'Mozilla "5.0"\tü'})
    Caller(node, secret_access_key="not the secret of the key").send("GET", "/lines-source?versioning")
    s3.delete_objects(Bucket="lines-source", Delete={"Objects": [{"Key": "copy"}, {"Key": key}]})

    def all_of_them() -> list[Line]:
        found = [line for line in lines_of(s3, "lines-target", "log/") if line.operation != "REST.HEAD.BUCKET"]
        return found if any(line.operation == "BATCH.DELETE.OBJECT" for line in found) else []

    lines = awaited(all_of_them)
    by_operation: dict[str, list[Line]] = {}
    for line in lines:
        by_operation.setdefault(line.operation, []).append(line)
        assert line.bucket == "lines-source"
        assert len(line.owner) == 64
        assert line.remote_ip == "127.0.0.1"
        assert datetime.strptime(line.time, "%d/%b/%Y:%H:%M:%S %z") >= began or line.operation.endswith(
            "LOGGING_STATUS"
        )
        assert len(line.request_id) == 16
        assert (line.host_id, line.cipher_suite, line.tls, line.access_point, line.source_region) == ("-",) * 5
    (written,) = by_operation["REST.PUT.OBJECT"]
    assert written.request_id == put["ResponseMetadata"]["RequestId"]
    assert (written.status, written.error, written.object_size) == ("200", "-", "100")
    assert unquote(written.key) == key
    assert (written.requester, written.signature_version, written.authentication) == (
        written.owner,
        "SigV4",
        "AuthHeader",
    )
    assert written.user_agent.startswith('"Boto3/')
    assert written.host == node.endpoint.partition("//")[2]
    read, absent, refused, presigned = [
        next(line for line in by_operation["REST.GET.OBJECT"] if line.status == status)
        for status in ("206", "404", "403", "200")
    ]
    assert (read.status, read.bytes_sent, read.object_size) == ("206", "10", "100")
    assert int(read.turn_around_ms) <= int(read.total_ms)
    assert (absent.status, absent.error, absent.object_size) == ("404", "NoSuchKey", "-")
    assert (refused.status, refused.requester, refused.authentication) == ("403", "-", "-")
    assert (presigned.status, presigned.authentication) == ("200", "QueryString")
    assert presigned.referrer == '"http://example/a%20b"'
    assert unquote(presigned.user_agent, "latin-1") == '"Mozilla "5.0"\tü"'
    assert "X-Amz-Signature=..." in presigned.uri
    assert [line.error for line in by_operation["REST.GET.VERSIONING"]] == ["SignatureDoesNotMatch"]
    assert [line.status for line in by_operation["REST.COPY.OBJECT"]] == ["200"]
    assert [unquote(line.key) for line in by_operation["REST.COPY.OBJECT_GET"]] == [key]
    assert [unquote(line.key) for line in by_operation["BATCH.DELETE.OBJECT"]] == ["copy", key]
    assert {line.status for line in by_operation["BATCH.DELETE.OBJECT"]} == {"204"}
    assert len(by_operation["REST.POST.MULTI_OBJECT_DELETE"]) == 1
    assert len(by_operation["REST.GET.BUCKET"]) == 1


def test_each_request_to_any_worker_has_one_line(node: RunningNode, s3: Any) -> None:
    for bucket in ("counted", "counted-logs"):
        s3.create_bucket(Bucket=bucket)
    enable(s3, "counted", "counted-logs")
    logged(node, s3, "counted", "counted-logs")

    def ask(number: int) -> str:
        answer = Caller(node).send("PUT", f"/counted/{number}", body=b"x")
        assert answer.status == 200
        return answer.headers["x-amz-request-id"]

    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(ask, range(300)))
    assert len({request_id[:8] for request_id in asked}) == 2, "both workers were asked"

    def all_of_them() -> list[Line]:
        lines = [line for line in lines_of(s3, "counted-logs", "log/") if line.operation == "REST.PUT.OBJECT"]
        return lines if len(lines) >= len(asked) else []

    lines = awaited(all_of_them)
    assert sorted(line.request_id for line in lines) == sorted(asked)
    assert {line.key for line in lines} == {str(number) for number in range(300)}


@pytest.mark.slow
def test_tls_and_an_anonymous_read_are_told(tmp_path: Path, certificate: tuple[Path, Path, Path]) -> None:
    cert, key, authority = certificate
    flags = (QUICK, f"--tls-cert={cert}", f"--tls-key={key}")
    with running_node(tmp_path / "data", *flags, ca_bundle=str(authority)) as node:
        s3 = client(node)
        s3.create_bucket(Bucket="open", ACL="public-read")
        s3.create_bucket(Bucket="target")
        s3.put_object(Bucket="open", Key="key", Body=b"abc")
        enable(s3, "open", "target")
        logged(node, s3, "open", "target")
        assert fetch(node, "GET", f"{node.endpoint}/open/key") == (200, b"abc")
        (line,) = awaited(
            lambda: [line for line in lines_of(s3, "target", "log/") if line.operation == "REST.GET.OBJECT"]
        )
    assert line.tls == "TLSv1.3"
    assert line.cipher_suite.startswith("TLS_")
    assert (line.requester, line.signature_version, line.acl_required) == ("-", "-", "Yes")


@pytest.mark.parametrize("source", ["EventTime", "DeliveryTime", None])
def test_log_objects_lie_in_folders_of_source_and_day(node: RunningNode, s3: Any, source: str | None) -> None:
    name = f"folders-{str(source).lower()}"
    for bucket in (name, f"{name}-logs"):
        s3.create_bucket(Bucket=bucket)
    partitioned = {"PartitionedPrefix": {"PartitionDateSource": source} if source else {}}
    enable(s3, name, f"{name}-logs", "at/", TargetObjectKeyFormat=partitioned)
    kept = s3.get_bucket_logging(Bucket=name)["LoggingEnabled"]
    assert kept["TargetObjectKeyFormat"]["PartitionedPrefix"] == {"PartitionDateSource": source or "EventTime"}

    def keys() -> list[str]:
        Caller(node).send("HEAD", f"/{name}")
        return [entry["Key"] for entry in s3.list_objects_v2(Bucket=f"{name}-logs").get("Contents", ())]

    key = awaited(keys)[0]
    prefix, account, region, bucket, year, month, day, object_name = key.split("/")
    assert (prefix, region, bucket) == ("at", node.region, name)
    assert account
    assert object_name.startswith(f"{year}-{month}-{day}-")
    assert ("-00-00-00-" in object_name) == (source != "DeliveryTime")


def test_simple_names_begin_with_the_prefix_and_the_time(node: RunningNode, s3: Any) -> None:
    for bucket in ("simple", "simple-logs"):
        s3.create_bucket(Bucket=bucket)
    enable(s3, "simple", "simple-logs", "mine-", TargetObjectKeyFormat={"SimplePrefix": {}})
    assert s3.get_bucket_logging(Bucket="simple")["LoggingEnabled"] == {
        "TargetBucket": "simple-logs",
        "TargetPrefix": "mine-",
    }

    def keys() -> list[str]:
        Caller(node).send("HEAD", "/simple")
        return [entry["Key"] for entry in s3.list_objects_v2(Bucket="simple-logs").get("Contents", ())]

    for key in awaited(keys):
        assert re.fullmatch(r"mine-\d{4}(-\d\d){5}-[0-9A-F]{16}", key)


def test_a_bucket_may_be_its_own_target_and_deliveries_are_not_logged(node: RunningNode, s3: Any) -> None:
    s3.create_bucket(Bucket="selfish")
    enable(s3, "selfish", "selfish")
    logged(node, s3, "selfish", "selfish")
    lines = lines_of(s3, "selfish", "log/")
    assert {line.operation for line in lines} <= {
        "REST.HEAD.BUCKET",
        "REST.GET.BUCKET",
        "REST.GET.OBJECT",
        "REST.PUT.LOGGING_STATUS",
    }


@pytest.mark.slow
def test_what_was_logged_before_logging_was_switched_off_is_delivered(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--server-log-interval=1h", "--workers=1") as node:
        s3 = client(node)
        for bucket in ("source", "target"):
            s3.create_bucket(Bucket=bucket)
        enable(s3, "source", "target")
        spool = node.data_dir / "server-logs"

        def gathered() -> bool:
            Caller(node).send("HEAD", "/source")
            return any(spool.glob("*/*"))

        awaited(gathered)
        assert "Contents" not in s3.list_objects_v2(Bucket="target")
        s3.put_bucket_logging(Bucket="source", BucketLoggingStatus={})
        assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket="source")
        lines = awaited(lambda: lines_of(s3, "target", "log/"))
        assert {line.operation for line in lines} >= {"REST.HEAD.BUCKET"}


@pytest.mark.slow
def test_a_killed_node_delivers_later_what_it_had_logged(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--server-log-interval=1h", "--workers=1") as node:
        s3 = client(node)
        for bucket in ("source", "target"):
            s3.create_bucket(Bucket=bucket)
        enable(s3, "source", "target")
        spool = node.data_dir / "server-logs"

        def gathered() -> bytes:
            Caller(node).send("HEAD", "/source")
            return b"".join(file.read_bytes() for file in spool.glob("*/*"))

        awaited(gathered)
        answer = Caller(node).send("GET", "/source?versioning")
        awaited(lambda: b"REST.GET.VERSIONING" in gathered())
        node.kill()
    with running_node(tmp_path / "data", QUICK, "--workers=1") as node:
        s3 = client(node)
        lines = awaited(lambda: lines_of(s3, "target", "log/"))
        (line,) = [line for line in lines if line.operation == "REST.GET.VERSIONING"]
        assert line.request_id == answer.headers["x-amz-request-id"]
        awaited(lambda: not any(spool.glob("*/*")))


def test_what_cannot_be_logged_to_is_refused(node: RunningNode, s3: Any) -> None:
    s3.create_bucket(Bucket="refusing")

    def refused(code: str, **logging: Any) -> None:
        with pytest.raises(ClientError) as raised:
            s3.put_bucket_logging(Bucket="refusing", BucketLoggingStatus={"LoggingEnabled": logging})
        assert raised.value.response["Error"]["Code"] == code

    grant = {"Grantee": {"Type": "Group", "URI": "http://acs.amazonaws.com/groups/global/AllUsers"}}
    both = {"SimplePrefix": {}, "PartitionedPrefix": {"PartitionDateSource": "EventTime"}}
    refused("InvalidTargetBucketForLogging", TargetBucket="no-such-bucket", TargetPrefix="")
    refused("InvalidArgument", TargetBucket="refusing", TargetPrefix="x" * 1000)
    refused(
        "AccessControlListNotSupported",
        TargetBucket="refusing",
        TargetPrefix="",
        TargetGrants=[{**grant, "Permission": "READ"}],
    )
    refused("MalformedXML", TargetBucket="refusing", TargetPrefix="", TargetObjectKeyFormat=both)
    with pytest.raises(ClientError) as raised:
        s3.get_bucket_logging(Bucket="no-such-bucket")
    assert raised.value.response["Error"]["Code"] == "NoSuchBucket"
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket="refusing")


def test_a_key_of_one_bucket_may_not_have_others_written_to(node: RunningNode, s3: Any) -> None:
    s3.create_bucket(Bucket="not-theirs")
    made = json.loads(Caller(node).send("POST", "/_tigrislike/storage", body=b'{"name": "theirs"}').body)
    scoped = client(_Holder(node.endpoint, made["access_key_id"], made["secret_access_key"]))
    with pytest.raises(ClientError) as raised:
        enable(scoped, "theirs", "not-theirs")
    assert raised.value.response["Error"]["Code"] == "AccessDenied"
    with pytest.raises(ClientError) as raised:
        scoped.delete_bucket_inventory_configuration(Bucket="theirs", Id="the-owners")
    assert raised.value.response["Error"]["Code"] == "AccessDenied"


def test_a_size_that_is_no_size_is_answered_and_logged_like_any_other(node: RunningNode, s3: Any) -> None:
    s3.create_bucket(Bucket="sized")
    s3.create_bucket(Bucket="sized-log")
    enable(s3, "sized", "sized-log")
    logged(node, s3, "sized", "sized-log")
    host = node.endpoint.partition("//")[2]
    head = f"PUT /sized/hostile HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\n"
    head += f"x-amz-decoded-content-length: {'9' * 4301}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as connection:
        for _ in range(2):  # the connection goes on
            connection.sendall(head.encode() + b"x")
            answer = b""
            while b"</Error>" not in answer:
                piece = connection.recv(65536)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 403")
    awaited(lambda: [line for line in lines_of(s3, "sized-log", "log/") if line.key == "hostile"])


@dataclass(frozen=True)
class _Holder:
    endpoint: str
    access_key_id: str
    secret_access_key: str


def test_what_is_done_in_the_console_becomes_lines_too(node: RunningNode, s3: Any) -> None:
    for bucket in ("console-source", "console-target"):
        s3.create_bucket(Bucket=bucket)
    enable(s3, "console-source", "console-target")
    logged(node, s3, "console-source", "console-target")
    browser = Browser(node.endpoint)
    browser.sign_in(node.access_key_id, node.secret_access_key)
    csrf = browser.get("/buckets").html.csrf
    at = "/buckets/console-source"
    put = browser.ask("POST", f"{at}/upload?key=a%2Fb", b"bytes", X_CSRF_Token=csrf, User_Agent="Browser/1")
    assert browser.get(f"{at}/raw?key=a%2Fb").body == b"bytes"
    assert browser.get(f"{at}?prefix=a%2F").status == 200
    assert browser.post(f"{at}/delete?key=a%2Fb", {"csrf": csrf}).status == 303

    def all_of_them() -> list[Line]:
        found = [line for line in lines_of(s3, "console-target", "log/") if line.operation != "REST.HEAD.BUCKET"]
        return found if any(line.operation == "REST.DELETE.OBJECT" for line in found) else []

    lines = {line.operation: line for line in awaited(all_of_them)}
    for operation in ("REST.PUT.OBJECT", "REST.GET.OBJECT", "REST.DELETE.OBJECT"):
        assert (lines[operation].bucket, unquote(lines[operation].key)) == ("console-source", "a/b")
        assert lines[operation].requester == lines[operation].owner
    written = lines["REST.PUT.OBJECT"]
    assert (written.request_id, written.user_agent) == (put.headers["x-amz-request-id"], '"Browser/1"')
    assert (written.object_size, lines["REST.GET.OBJECT"].bytes_sent) == ("5", "5")
    assert "REST.GET.BUCKET" in lines
