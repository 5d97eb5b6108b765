"""Form uploads that are wrong: in their framing, their fields, their file. Each has its error, and leaves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.test_attacks import form
from tests.e2e.test_bad_input import LARGE, checksum, md5_of, nothing_stored
from tests.e2e.wire import Answer, Caller, connect, exchange, head_of, refused

BOUNDARY = "boundary-of-the-form"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def field(name: str, value: str, *, more: str = "") -> bytes:
    disposition = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return (disposition + value + "\r\n").encode()


def file(content: bytes) -> bytes:
    return field("file", "", more='; filename="f"')[:-2] + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def fields_of(caller: Caller, bucket: str, **fields: str) -> bytes:
    """The fields of a form whose policy allows everything."""
    allowed: list[Any] = [["starts-with", f"${name}", ""] for name in ("key", *fields)]
    made = form(caller, "", fields.pop("key", "k"), allowed, **fields)["fields"]
    return b"".join(field(name, value) for name, value in made.items())


def send(caller: Caller, bucket: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    framing = {"host": caller.host, "content-type": TYPE, "content-length": str(len(body))}
    return exchange(caller.store, "POST", f"/{bucket}", framing | (headers or {}), body)


@pytest.fixture(scope="session")
def caller(store: Any) -> Caller:
    return Caller(store)


FRAMES: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    # the signed fields -> the form's body
    "nothing": (lambda fields: b"", ("MalformedPOSTRequest", "IncorrectNumberOfFilesInPostRequest")),
    "no form": (lambda fields: b"x" * LARGE, ("MalformedPOSTRequest", "MaxPostPreDataLengthExceededError")),
    "no file": (lambda fields: fields + END, ("IncorrectNumberOfFilesInPostRequest",)),
    "two files": (
        lambda fields: fields + file(b"x" * LARGE) + file(b"y") + END,
        ("IncorrectNumberOfFilesInPostRequest",),
    ),
    "the file first": (lambda fields: file(b"x" * LARGE) + fields + END, ("InvalidArgument", "AccessDenied")),
    "no end": (lambda fields: fields + file(b"x" * LARGE), ("MalformedPOSTRequest", "IncompleteBody")),
    "fields without end": (lambda fields: fields, ("MalformedPOSTRequest", "IncorrectNumberOfFilesInPostRequest")),
    "a field of 100 KB": (
        lambda fields: field("x-ignore-it", "x" * 100_000) + fields + file(b"x") + END,
        ("MaxPostPreDataLengthExceededError",),
    ),
    "a thousand fields": (
        lambda fields: b"".join(field(f"x-ignore-{n}", "x") for n in range(1000)) + fields + file(b"x") + END,
        ("MaxPostPreDataLengthExceededError",),
    ),
    "a field twice": (lambda fields: field("key", "other") + fields + file(b"x") + END, ("InvalidArgument",)),
    "a field that is not UTF-8": (
        lambda fields: field("x-ignore-it", "v")[:-3] + b"\xff\r\n" + fields + file(b"x") + END,
        ("MalformedPOSTRequest", "InvalidArgument"),
    ),
    "a field without a name": (
        lambda fields: field("", "v").replace(b' name=""', b"") + fields + file(b"x") + END,
        ("MalformedPOSTRequest",),
    ),
    "header lines without end": (
        lambda fields: f"--{BOUNDARY}\r\n".encode() + b"x" * 100_000,
        ("MalformedPOSTRequest", "MaxPostPreDataLengthExceededError"),
    ),
}


@pytest.mark.parametrize(("shape", "codes"), FRAMES.values(), ids=FRAMES.keys())
def test_frames_that_are_no_form(
    store: Any, s3: Any, bucket: str, caller: Caller, shape: Callable[[bytes], bytes], codes: tuple[str, ...]
) -> None:
    answer = None
    with nothing_stored(store, s3, bucket):
        answer = send(caller, bucket, shape(fields_of(caller, bucket)))
        refused(answer, 403 if answer.status == 403 else 400, *codes)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x=y"])
def test_a_form_without_a_boundary(bucket: str, caller: Caller, kind: str) -> None:
    refused(send(caller, bucket, b"x", {"content-type": kind}), 400, "MalformedPOSTRequest")


def test_a_form_of_unknown_length(bucket: str, caller: Caller) -> None:
    body = fields_of(caller, bucket) + file(b"x") + END
    headers = {"host": caller.host, "content-type": TYPE, "transfer-encoding": "chunked"}
    answer = exchange(caller.store, "POST", f"/{bucket}", headers, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    refused(answer, 411, "MissingContentLength")


BOMB = '<!DOCTYPE b [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><Tagging><TagSet>&b;</TagSet></Tagging>'
FIELDS: dict[str, tuple[dict[str, str], str]] = {
    "no key": ({"key": ""}, "InvalidArgument"),
    "a long key": ({"key": "k" * 1025}, "KeyTooLongError"),
    "tags that are no XML": ({"tagging": "a=b"}, "MalformedXML"),
    "tags that are a bomb": ({"tagging": BOMB}, "MalformedXML"),
    "tags without tags": ({"tagging": "<Tagging/>"}, "MalformedXML"),
    "a class that is none": ({"x-amz-storage-class": "COLDEST"}, "InvalidStorageClass"),
    "an ACL that is none": ({"acl": "everybody"}, "InvalidArgument"),
    "metadata of 3 KB": ({"x-amz-meta-a": "x" * 3000}, "MetadataTooLarge"),
    "encryption": ({"x-amz-server-side-encryption": "AES256"}, "NotImplemented"),
    "a checksum of no base64": ({"x-amz-checksum-crc32": "!!!!"}, "InvalidRequest"),
    "a checksum of something else": ({"x-amz-checksum-crc32": checksum("CRC32", b"else")}, "BadDigest"),
    "an MD5 of something else": ({"x-amz-checksum-md5": md5_of(b"else")}, "BadDigest"),
}


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize(("fields", "code"), FIELDS.values(), ids=FIELDS.keys())
def test_fields_that_cannot_be(
    store: Any, s3: Any, bucket: str, caller: Caller, fields: dict[str, str], code: str, size: int
) -> None:
    with nothing_stored(store, s3, bucket):
        answer = send(caller, bucket, fields_of(caller, bucket, **fields) + file(b"x" * size) + END)
        refused(answer, 501 if code == "NotImplemented" else 400, code)


def test_a_form_whose_sender_goes_away_leaves_nothing(store: Any, s3: Any, bucket: str, caller: Caller) -> None:
    body = fields_of(caller, bucket) + file(b"x" * LARGE)[:-100]
    headers = {"host": caller.host, "content-type": TYPE, "content-length": str(len(body) + 1000)}
    with nothing_stored(store, s3, bucket), contextlib.closing(connect(store)) as connection:
        connection.sendall(head_of("POST", f"/{bucket}", headers) + body)
