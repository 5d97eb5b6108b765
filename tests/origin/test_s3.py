"""The S3 driver against a server that answers as stores should not, and what the contract does not reach."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from email.utils import formatdate
from hashlib import md5
from typing import Any

import pytest

from bench.processes import free_ports
from tests.bench.scripted_server import CLOSE, HANG, answer, serve
from tests.origin.routed import routed
from tests.origin.servers import BUCKET, S3Server, seaweedfs
from tests.server.wire import run
from tigrislike.origin import (
    Attributes,
    Egress,
    Location,
    OriginBroken,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
    Timeouts,
    open_origin,
    s3,
)
from tigrislike.origin.s3 import S3Origin

SECRET = "a-secret-that-nobody-sees"
ETAG = "5d41402abc4b2a76b9719d911017c592"  # of b"hello"


@asynccontextmanager
async def opened(location: Location, timeouts: Timeouts | None = None) -> AsyncIterator[S3Origin]:
    origin = open_origin(location, egress=Egress(allow_private=True), timeouts=timeouts)
    assert isinstance(origin, S3Origin)
    try:
        yield origin
    finally:
        await origin.close()


def scripted(port: int, **options: str) -> Location:
    return Location("s3://bucket", f"http://127.0.0.1:{port}", "auto", "AKID", SECRET, options)


def part(body: bytes, content_range: str, etag: str = ETAG, **headers: str) -> bytes:
    fields = [f"Content-Range: {content_range}", f'ETag: "{etag}"', *(f"{n}: {v}" for n, v in headers.items())]
    return answer(body, "206 Partial Content", *(field.encode() for field in fields))


def error(status: str, code: str, message: str = "", *fields: bytes) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message><StringToSign>{SECRET}</StringToSign></Error>"
    return answer(body.encode(), status, *fields)


async def read(origin: S3Origin, start: int = 0, stop: int = 5) -> bytes:
    return b"".join([bytes(piece) async for piece in origin.read("key", start, stop, size=5, etag=ETAG)])


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


# -- reads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answered", "raised"),
    [
        (part(b"hello", "bytes 0-4/6"), OriginBroken),
        (part(b"hello", "bytes 1-5/5"), OriginBroken),
        (part(b"hello", "bytes 0-4/*"), OriginBroken),
        (part(b"hello", "bytes 0-4/5", etag="0" * 32), OriginBroken),
        (part(b"hell", "bytes 0-4/5"), OriginBroken),
        (part(b"hellos", "bytes 0-4/5"), OriginBroken),
        (answer(b"hello", "206 Partial Content", f'ETag: "{ETAG}"'.encode()), OriginBroken),
        (answer(b"hello", "206 Partial Content", b"Content-Range: bytes 0-4/5"), OriginBroken),
        (answer(b"hellohello", "200 OK", f'ETag: "{ETAG}"'.encode()), OriginBroken),
        (answer(b"", "204 No Content"), OriginRefused),
        (b"HTTP/1.1 two hundred\r\n\r\n", OriginBroken),
        (b"220 ftp.example.org\r\n\r\n", OriginBroken),
        (error("412 Precondition Failed", "PreconditionFailed"), OriginChanged),
        (error("416 Range Not Satisfiable", "InvalidRange"), OriginChanged),
        (error("404 Not Found", "NoSuchKey"), OriginMissing),
        (error("403 Forbidden", "AccessDenied"), OriginRefused),
        (error("403 Forbidden", "InvalidObjectState"), OriginRefused),
        (error("301 Moved Permanently", "PermanentRedirect", "", b"Location: http://127.0.0.1:9/"), OriginRefused),
        (error("501 Not Implemented", "NotImplemented"), OriginRefused),
        (error("400 Bad Request", "RequestTimeout"), OriginUnavailable),
        (error("500 Internal Server Error", "InternalError"), OriginUnavailable),
        (error("503 Slow Down", "SlowDown"), OriginUnavailable),
        (answer(b"not XML <", "502 Bad Gateway"), OriginUnavailable),
        (CLOSE, OriginUnavailable),
    ],
)
def test_an_answer_that_is_not_the_range_asked_for_is_never_given_out(
    answered: bytes | None, raised: type[OriginError]
) -> None:
    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(raised) as caught:
                await read(origin)
            assert type(caught.value) is raised
            assert SECRET not in str(caught.value)

    with serve([answered]) as server:
        run(main(server.port))
    assert len(server.requests) == 1  # nothing is tried again here
    head = server.requests[0][0].lower()
    assert b"range: bytes=0-4" in head
    assert f'if-match: "{ETAG}"'.encode() in head


def test_a_whole_object_may_come_without_a_range() -> None:
    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            assert await read(origin) == b"hello"
            with pytest.raises(OriginBroken):
                await read(origin, 1, 5)

    with serve([answer(b"hello", "200 OK", f'ETag: "{ETAG}"'.encode())]) as server:
        run(main(server.port))


def test_a_body_of_unknown_length_is_counted() -> None:
    """In chunks, too much shows only when it has come, and what came before it may have been given out."""
    chunks = b"3\r\nhel\r\n2\r\nlo\r\n1\r\n!\r\n0\r\n\r\n"
    fields = f'Content-Range: bytes 0-4/5\r\nETag: "{ETAG}"\r\nTransfer-Encoding: chunked\r\n\r\n'
    head = f"HTTP/1.1 206 Partial Content\r\n{fields}".encode()

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginBroken, match="goes on behind"):
                await read(origin)
            with pytest.raises(OriginBroken, match="ends 2 bytes early"):
                await read(origin)

    with serve([head + chunks, head + b"3\r\nhel\r\n0\r\n\r\n"]) as server:
        run(main(server.port))


def test_a_connection_that_ends_within_a_body_is_noticed() -> None:
    head = f'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nETag: "{ETAG}"\r\nContent-Length: 5\r\n\r\n'

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginBroken, match="early"):
                await read(origin)

    with routed(lambda line: head.encode() + b"he", closes=True) as port:
        run(main(port))


def test_silence_ends_in_time_before_an_answer_and_within_one() -> None:
    head = f'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\nETag: "{ETAG}"\r\nContent-Length: 5\r\n\r\n'

    async def main(port: int) -> None:
        async with opened(scripted(port), Timeouts(read_s=0.2)) as origin:
            for _ in range(2):
                with pytest.raises(OriginUnavailable, match="in time"):
                    await read(origin)

    with serve([HANG, head.encode() + b"he"]) as server:
        run(main(server.port))


def test_an_origin_that_is_gone_is_unavailable(free_port: int) -> None:
    async def main() -> None:
        async with opened(scripted(free_port)) as origin:
            with pytest.raises(OriginUnavailable):
                await read(origin)
            with pytest.raises(OriginUnavailable):
                await origin.put("key", pieces(b"hello"), 5, Attributes())

    run(main())


@pytest.fixture
def free_port() -> int:
    return free_ports(1)[0]


@pytest.mark.parametrize(("told", "least", "most"), [("7", 7, 7), ("soon", 0, 0), ("", 0, 0), ("date", 25, 30)])
def test_patience_that_is_asked_for_is_told(told: str, least: float, most: float) -> None:
    told = formatdate(time.time() + 30, usegmt=True) if told == "date" else told

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginUnavailable) as caught:
                await read(origin)
            assert least <= caught.value.retry_after_s <= most

    with serve([error("503 Slow Down", "SlowDown", "", f"Retry-After: {told}".encode())]) as server:
        run(main(server.port))


# -- heads -------------------------------------------------------------------------------------------------------------

NO_TAGS = answer(b"<Tagging><TagSet/></Tagging>")


async def head_of(port: int, **options: str) -> Any:
    async with opened(scripted(port, **options)) as origin:
        return await origin.head("key"), origin.loses


def headed(*fields: str) -> bytes:
    """The answer to a HEAD of five bytes."""
    lines = ["HTTP/1.1 200 OK", "Content-Length: 5", "Last-Modified: Sun, 29 Nov 2026 10:41:43 GMT", *fields, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("fields", "md5"),
    [
        ((f'ETag: "{ETAG}"',), True),
        ((f'ETag: "{ETAG}"', "x-amz-server-side-encryption: AES256"), True),
        ((f'ETag: "{ETAG}"', "x-amz-server-side-encryption: aws:kms"), False),
        ((f'ETag: "{ETAG}"', "x-amz-server-side-encryption: aws:kms:dsse"), False),
        ((f'ETag: "{ETAG}"', "x-amz-server-side-encryption-customer-algorithm: AES256"), False),
        ((f'ETag: "{ETAG}-2"',), False),
        (('ETag: "not-a-digest-but-32-characters-x"',), False),
    ],
)
def test_an_etag_is_an_md5_only_where_it_can_be(fields: tuple[str, ...], md5: bool) -> None:
    with serve([headed(*fields)]) as server:
        found, _ = run(head_of(server.port, tags="no"))
    assert found.md5 is md5


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), ("", "", "")),
        (("x-amz-checksum-crc64nvme: AAAAAAAAAAA=", "x-amz-checksum-type: FULL_OBJECT"), ("CRC64NVME", "FULL_OBJECT")),
        (("x-amz-checksum-crc32: AAAAAA==-3", "x-amz-checksum-type: COMPOSITE"), ("CRC32", "COMPOSITE")),
        (("x-amz-checksum-sha256: AAAA-2",), ("SHA256", "COMPOSITE")),
        (("x-amz-checksum-sha256: AAAA",), ("SHA256", "FULL_OBJECT")),
    ],
)
def test_a_stored_checksum_is_told_with_its_kind(fields: tuple[str, ...], expected: tuple[str, ...]) -> None:
    with serve([headed(f'ETag: "{ETAG}"', *fields)]) as server:
        found, _ = run(head_of(server.port, tags="no"))
    assert (found.checksum_algorithm, found.checksum_type) == expected[:2]
    assert found.checksum == (fields[0].partition(": ")[2] if fields else "")
    assert b"x-amz-checksum-mode: enabled" in server.requests[0][0].lower()


def test_metadata_in_utf8_and_in_latin1_are_text() -> None:
    plain = headed(f'ETag: "{ETAG}"', "x-amz-meta-One: ä☃")
    latin = headed(f'ETag: "{ETAG}"', "x-amz-meta-two: ?").replace(b"two: ?", b"two: \xe4")
    with serve([plain, latin]) as server:
        one, _ = run(head_of(server.port, tags="no"))
        two, _ = run(head_of(server.port, tags="no"))
    assert one.attributes.metadata == {"one": "ä☃"}
    assert two.attributes.metadata == {"two": "ä"}


def test_a_head_without_size_or_version_is_broken() -> None:
    with serve([headed(), headed(f'ETag: "{ETAG}"').replace(b"Content-Length: 5\r\n", b"")]) as server:
        for _ in range(2):
            with pytest.raises(OriginBroken):
                run(head_of(server.port, tags="no"))


def test_a_store_without_tags_loses_them_and_a_refusal_is_one() -> None:
    head = headed(f'ETag: "{ETAG}"')
    for refusal in (
        error("501 Not Implemented", "NotImplemented"),
        error("405 Method Not Allowed", "MethodNotAllowed"),
    ):
        with routed(lambda line, refusal=refusal: head if line.startswith("HEAD") else refusal) as port:
            found, loses = run(head_of(port))
        assert found.attributes.tags == {}
        assert loses == {"tags"}
    denied = error("403 Forbidden", "AccessDenied")
    with (
        routed(lambda line: head if line.startswith("HEAD") else denied) as port,
        pytest.raises(OriginRefused, match="tags=no"),
    ):
        run(head_of(port))


def test_without_tags_nobody_asks_for_them() -> None:
    with serve([headed(f'ETag: "{ETAG}"')]) as server:
        _, loses = run(head_of(server.port, tags="no"))
    assert loses == {"tags"}
    assert len(server.requests) == 1


# -- listings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        b"no XML",
        b"<Other/>",
        b'<!DOCTYPE x [<!ENTITY e "e">]><ListBucketResult>&e;</ListBucketResult>',
        b"<ListBucketResult><Contents><Key>a</Key><Size>many</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>a</Key><Size>1</Size><LastModified>now</LastModified></Contents>"
        b"</ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult>" + b" " * (17 << 20) + b"</ListBucketResult>",
    ],
    ids=["text", "another", "entities", "size", "time", "no end", "too large"],
)
def test_a_listing_that_makes_no_sense_is_broken(document: bytes) -> None:
    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginBroken):
                await origin.list("")

    with serve([answer(document)]) as server:
        run(main(server.port))


def test_a_listing_that_goes_round_is_broken() -> None:
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            after = (await origin.list("")).after
            with pytest.raises(OriginBroken, match="again and again"):
                await origin.list("", after=after)

    with serve([answer(page + b"</ListBucketResult>")]) as server:
        run(main(server.port))
    assert b"continuation-token=t" in server.requests[1][0]


# -- writes ------------------------------------------------------------------------------------------------------------


def test_a_write_is_verified_by_its_etag_or_by_a_checksum_and_only_then() -> None:
    crc, wrong = b"x-amz-checksum-crc64nvme: M3eFcAZSQlc=", b"x-amz-checksum-crc64nvme: AAAAAAAAAAA="
    other = b'ETag: "0123456789abcdef0123456789abcdef"'
    script = [
        answer(b"", "200 OK", f'ETag: "{ETAG}"'.encode()),
        answer(b"", "200 OK", other, crc),
        answer(b"", "200 OK", other),
        answer(b"", "200 OK", other, wrong),
        answer(b"", "200 OK"),
    ]

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            for verified in (True, True, False):
                written = await origin.put("key", pieces(b"he", b"llo"), 5, Attributes())
                assert written.verified is verified
            for reason in ("CRC64NVME", "without an ETag"):
                with pytest.raises(OriginBroken, match=reason):
                    await origin.put("key", pieces(b"hello"), 5, Attributes())

    with serve(script) as server:
        run(main(server.port))
    assert [body for _, body in server.requests] == [b"hello"] * 5


BEGUN = answer(b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
DONE = answer(b'<CompleteMultipartUploadResult><ETag>"e-2"</ETag></CompleteMultipartUploadResult>')
SENT = answer(b"", "200 OK", b'ETag: "p"')
FAILED = error("503 Slow Down", "SlowDown")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four bytes, one at a time, and no waiting."""
    monkeypatch.setattr(s3, "WHOLE_BYTES", 4)
    monkeypatch.setattr(s3, "PART_BYTES", 4)
    monkeypatch.setattr(s3, "PARTS_BYTES", 4)
    monkeypatch.setattr(s3, "_BACK_OFF_S", (0.0, 0.0))


def asked(requests: list[tuple[bytes, bytes]]) -> list[str]:
    lines = [head.split(b"\r\n")[0].decode().split(" ") for head, _ in requests]
    return [f"{method} {target.partition('?')[2]}" for method, target, _ in lines]


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_fails_is_sent_again_and_completing_too() -> None:
    settling = answer(b"<Error><Code>InternalError</Code><Message>Try again</Message></Error>")

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            written = await origin.put("key", pieces(b"hel", b"lo"), 5, Attributes())
            assert (written.etag, written.verified) == ("e-2", False)

    with serve([BEGUN, SENT, FAILED, CLOSE, SENT, settling, DONE]) as server:
        run(main(server.port))
    assert asked(server.requests) == [
        "POST uploads=",
        "PUT partNumber=1&uploadId=u1",
        *["PUT partNumber=2&uploadId=u1"] * 3,
        *["POST uploadId=u1"] * 2,
    ]
    assert [body for _, body in server.requests][1:5] == [b"hell", b"o", b"o", b"o"]
    digest = b64encode(md5(b"hell").digest())
    assert b"content-md5: " + digest in server.requests[1][0]


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_cannot_be_finished_is_aborted() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"hell"
        raise LookupError("gone")

    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginRefused):
                await origin.put("key", pieces(b"hello"), 5, Attributes())
            with pytest.raises(LookupError):
                await origin.put("key", failing(), 5, Attributes())

    aborted = answer(b"", "204 No Content")
    denied = error("403 Forbidden", "AccessDenied")
    with serve([BEGUN, denied, aborted, BEGUN, SENT, aborted]) as server:
        run(main(server.port))
    assert asked(server.requests)[:3] == ["POST uploads=", "PUT partNumber=1&uploadId=u1", "DELETE uploadId=u1"]
    assert asked(server.requests)[-1] == "DELETE uploadId=u1"


@pytest.mark.usefixtures("small_parts")
def test_a_store_that_fails_for_good_is_given_up() -> None:
    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginUnavailable):
                await origin.put("key", pieces(b"hello"), 5, Attributes())

    with serve([BEGUN, *[FAILED] * 30]) as server:
        run(main(server.port))
    tries = [line for line in asked(server.requests) if "partNumber=1" in line]
    assert len(tries) == s3.PART_TRIES


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_deleting_in_a_bucket_that_is_not_there_is_no_success() -> None:
    async def main(port: int) -> None:
        async with opened(scripted(port)) as origin:
            with pytest.raises(OriginMissing):
                await origin.delete("key")
            await origin.delete("key")

    with serve([error("404 Not Found", "NoSuchBucket"), error("404 Not Found", "NoSuchKey")]) as server:
        run(main(server.port))


@pytest.mark.parametrize(
    ("location", "host", "path"),
    [
        (Location("s3://b", region="eu-west-1"), "b.s3.eu-west-1.amazonaws.com", "/key"),
        (Location("s3://b.c"), "s3.us-east-1.amazonaws.com", "/b.c/key"),
        (Location("s3://b/p/q", "http://host:9/base/"), "host:9", "/base/b/p/q/key"),
        (Location("s3://b/p", "https://host", options={"addressing": "virtual"}), "b.host", "/p/key"),
    ],
)
def test_a_bucket_is_addressed_by_host_or_by_path(location: Location, host: str, path: str) -> None:
    origin = open_origin(location, egress=Egress())
    assert isinstance(origin, S3Origin)
    assert (origin._host, origin._base + origin._prefix + "key") == (host, path)


@pytest.mark.parametrize(
    "location",
    [
        Location("s3://"),
        Location("s3:///key"),
        Location("s3://user@bucket"),
        Location("s3://b", "ftp://host"),
        Location("s3://b", "http://user:pass@host"),
        Location("s3://b", "http://host:port"),
        Location("s3://b", "host"),
        Location("s3://b", "http://host/?a=b"),
        Location("s3://b", options={"addressing": "dns"}),
    ],
)
def test_a_location_that_is_none_is_refused(location: Location) -> None:
    with pytest.raises(OriginRefused):
        open_origin(location, egress=Egress())


def test_wrong_credentials_are_refused(moto: S3Server, seaweedfs: S3Server) -> None:
    async def main() -> None:
        wrong = Location(f"s3://{BUCKET}", seaweedfs.endpoint, "us-east-1", seaweedfs.access_key, SECRET)
        async with opened(wrong) as origin:
            for asking in (origin.head("a"), origin.list(""), origin.put("a", pieces(b"hello"), 5, Attributes())):
                with pytest.raises(OriginRefused) as caught:
                    await asking
                assert SECRET not in str(caught.value)

    run(main())


def test_what_another_client_wrote_is_told_whole(moto: S3Server) -> None:
    with closing(moto.boto3()) as client:
        client.put_object(
            Bucket=BUCKET,
            Key="whole",
            Body=b"hello",
            Metadata={"Mixed": "Case"},
            StorageClass="STANDARD_IA",
            ChecksumAlgorithm="SHA256",
            Tagging="a=b",
            WebsiteRedirectLocation="/there",
        )

    async def main() -> None:
        async with opened(moto.location()) as origin:
            found = await origin.head("whole")
        assert found.attributes.metadata == {"mixed": "Case"}
        assert found.attributes.tags == {"a": "b"}
        assert found.attributes.storage_class == "STANDARD_IA"
        assert found.attributes.headers == {"WebsiteRedirectLocation": "/there"}
        assert (found.checksum_algorithm, found.checksum_type) == ("SHA256", "FULL_OBJECT")
        assert found.checksum == "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
        assert found.md5

    run(main())


@pytest.mark.slow
def test_a_store_that_stops_answering_and_goes_on(tmp_path: Any) -> None:
    async def main(server: S3Server) -> None:
        async with opened(server.location(), Timeouts(connect_s=0.5, read_s=0.5)) as origin:
            written = await origin.put("a", pieces(b"hello"), 5, Attributes())
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                with pytest.raises(OriginUnavailable):
                    await origin.head("a")
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            found = None
            while found is None:  # a busy machine takes a little longer to wake it; the test's time-out bounds that
                with contextlib.suppress(OriginUnavailable):
                    found = await origin.head("a")
            assert found.etag == written.etag

    with seaweedfs(tmp_path) as server:
        run(main(server))
