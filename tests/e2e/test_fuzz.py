"""Whatever a client with a valid key sends, the node answers it as S3 would, and lives.

Requests are drawn from the model's own vocabulary (operations, parameters, headers, elements) with values from
plausible to absurd, signed correctly so that nothing stops at authentication, and sent to a live node.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import botocore.session
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import fetch
from tests.e2e.wire import (
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Caller,
    exchange,
)
from tests.nodes import RunningNode, running_node
from tigrislike.s3api.operations import load_operations
from tigrislike.s3api.protocol import load_protocol

EXAMPLES = 1500
BUCKETS = ("fuzz", "versioned")

# --- vocabulary ------------------------------------------------------------------------------------------------------

PROTOCOL = load_protocol()
MODEL = botocore.session.get_session().get_service_model("s3")
OPERATIONS = sorted(MODEL.operation_names)
IMPLEMENTED = sorted(load_operations())


def on_the_wire(location: str) -> set[str]:
    """The names that the model's input members have in `location`."""
    return {
        shape.serialization["name"].lower() if location == "header" else shape.serialization["name"]
        for name in OPERATIONS
        if MODEL.operation_model(name).input_shape is not None
        for shape in MODEL.operation_model(name).input_shape.members.values()
        if shape.serialization.get("location") == location
    }


PARAMETERS = sorted(on_the_wire("querystring") | {"x-id", "uploads"})
HEADERS = sorted(
    on_the_wire("header") - {"content-length"}
    | {"content-md5", "x-amz-meta-a", "x-amz-decoded-content-length", "x-amz-trailer", "accept-encoding"}
)
ELEMENTS = [
    "Delete", "Object", "Key", "VersionId", "Quiet", "ETag", "Size", "LastModifiedTime", "Tagging", "TagSet", "Tag",
    "Value", "VersioningConfiguration", "Status", "MfaDelete", "CompleteMultipartUpload", "Part", "PartNumber",
    "ChecksumCRC32", "CreateBucketConfiguration", "LocationConstraint", "Tags", "Unknown",
]  # fmt: skip

numbers = st.sampled_from(["0", "1", "2", "-1", "1000", "10001", "2147483648", "9" * 20, "1.5", "0x1", "null", ""])
words = st.sampled_from(
    [
        "k", "a/b", "url", "true", "false", "*", '"*"', "CRC32", "SHA256", "XXHASH3", "COMPOSITE", "FULL_OBJECT",
        "STANDARD", "REPLACE", "COPY", "ENABLED", "Enabled", "public-read", "bytes=0-1", "bytes=-1", "bytes=5-",
        "fuzz/k", "/versioned/k?versionId=null", "fuzz/none", "Mon, 23 Nov 2026 22:22:22 GMT", "2026-01-01T00:00:00Z",
        "AAAAAA==", "1B2M2Y8AsgTpgAmY7PhCfg==", "a=b&c=d", "ETag,ObjectSize", "aws-chunked,gzip",
        "x-amz-checksum-crc32", "2", "list-type",
    ]
)  # fmt: skip
text = st.text(st.characters(codec="utf-8"), max_size=30)
values = st.one_of(words, numbers, text)


def encoded(value: str, how: int) -> str:
    """`value` in a path or query: percent-encoded as clients do, altogether, or hardly."""
    if how == 0:
        return quote(value, safe="-._~/")
    if how == 1:
        return "".join(f"%{byte:02x}" for byte in value.encode())
    return quote(value, safe="-._~/!$'()*,:@;+[]|^`{}\"<>\\%")


paths = st.one_of(
    st.sampled_from(["/", "/fuzz", "/fuzz/", "/versioned", "/fuzz/k", "/versioned/k", "/fuzz/m", "//", "/nobody"]),
    st.builds(
        lambda bucket, key, how: f"/{bucket}/{encoded(key, how)}",
        st.sampled_from(BUCKETS),
        st.text(min_size=1, max_size=20),
        st.integers(0, 2),
    ),
    st.builds(lambda path, how: "/" + encoded(path, how), text, st.integers(0, 2)),
    st.binary(max_size=10).map(lambda raw: "/fuzz/" + "".join(f"%{byte:02X}" for byte in raw)),
)
pairs = st.lists(
    st.builds(
        lambda name, value, how: name if value is None else f"{name}={encoded(value, how)}",
        st.one_of(st.sampled_from(PARAMETERS), st.text("abcdefxyz-", min_size=1, max_size=8)),
        st.none() | values,
        st.integers(0, 2),
    ),
    max_size=4,
)
headers = st.dictionaries(
    st.sampled_from(HEADERS),
    st.one_of(
        words,
        numbers,
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters=map(chr, range(0x7F, 0xA0)))),
    ),
    max_size=5,
)
leaves = st.builds(lambda value: value.replace("&", "&amp;").replace("<", "&lt;"), values)
elements = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda name, children: f"<{name}>{''.join(children)}</{name}>",
        st.sampled_from(ELEMENTS),
        st.lists(inner, max_size=4),
    ),
    max_leaves=12,
)
DOCUMENTS = [
    "<Delete><Object><Key>k</Key></Object><Object><Key>{0}</Key><VersionId>{1}</VersionId></Object></Delete>",
    "<Delete><Quiet>{0}</Quiet><Object><Key>k</Key><ETag>{1}</ETag></Object></Delete>",
    "<Tagging><TagSet><Tag><Key>{0}</Key><Value>{1}</Value></Tag></TagSet></Tagging>",
    "<VersioningConfiguration><Status>{0}</Status></VersioningConfiguration>",
    "<CompleteMultipartUpload><Part><PartNumber>{0}</PartNumber><ETag>{1}</ETag></Part></CompleteMultipartUpload>",
    "<CreateBucketConfiguration><LocationConstraint>{0}</LocationConstraint></CreateBucketConfiguration>",
]
documents = st.one_of(
    elements, st.builds(lambda form, one, two: form.format(one, two), st.sampled_from(DOCUMENTS), leaves, leaves)
).map(lambda document: document.encode("utf-8", "replace"))
bodies = st.one_of(st.just(b""), st.binary(max_size=200), documents, st.just(b"x" * 70_000))
payloads = st.sampled_from(
    ["", "", "", UNSIGNED, STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER, "wrong"]
)
targeted = st.builds(
    lambda name, level, more: (
        PROTOCOL[name].method,
        level[PROTOCOL[name].level],
        [
            *(f"{flag}={value}" if value else flag for flag, value in PROTOCOL[name].uri_query.items()),
            *(f"{flag}=1" for flag in PROTOCOL[name].required_query if flag not in PROTOCOL[name].uri_query),
            *more,
        ],
    ),
    st.one_of(*[st.sampled_from(IMPLEMENTED)] * 4, st.sampled_from(OPERATIONS)),
    st.sampled_from(
        [{"service": "/", "bucket": f"/{bucket}", "object": f"/{bucket}/{key}"} for bucket in BUCKETS for key in "km"]
    ),
    pairs,
)
anywhere = st.tuples(st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]), paths, pairs)
requests = st.one_of(targeted, anywhere)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with running_node(tmp_path_factory.mktemp("fuzz") / "data") as node:
        root = Caller(node)
        for bucket in BUCKETS:
            assert root.send("PUT", f"/{bucket}").status == 200
            for key, body in (("k", b"x" * 10), ("m", b"x" * 100_000), ("kept", b"kept")):
                assert root.send("PUT", f"/{bucket}/{key}", None, body).status == 200
        document = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        digest = base64.b64encode(hashlib.md5(document).digest()).decode()
        assert root.send("PUT", "/versioned?versioning", {"content-md5": digest}, document).status == 200
        yield node


def test_every_request_is_answered_as_s3_would(node: RunningNode) -> None:
    root = Caller(node)
    codes: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests, headers, bodies, payloads, st.booleans())
    def check(request: Any, headers: dict[str, str], body: bytes, payload: str, digest: bool) -> None:
        method, path, pairs = request
        target = path + ("?" + "&".join(pairs) if pairs else "")
        if digest:
            headers = {**headers, "content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}
        if method in ("PUT", "POST") or body:
            headers = {**headers, "content-length": str(len(body))}
        payload = payload if payload not in ("", "wrong") else hashlib.sha256(body + payload.encode()).hexdigest()
        answer = exchange(node, method, target, root.sign(method, target, headers, payload=payload), body)
        assert answer.status < 500 or answer.status == 501, answer
        if answer.status < 300 or answer.status == 304:
            codes["OK"] += 1
        elif method == "HEAD":
            assert answer.body == b""
        else:
            error = answer.error
            codes[error["Code"]] += 1
            assert error["Code"] != "InternalError"
            assert error["Message"]
            assert error["RequestId"] == answer.headers["x-amz-request-id"]

    check()
    assert fetch(node, "GET", f"{node.endpoint}/healthz")[0] == 200
    assert root.send("GET", "/fuzz").status == 200
    log = node.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") :][:5000]
    # The requests were worth sending: nearly all got past authentication, and they ended in many ways.
    assert codes["SignatureDoesNotMatch"] < EXAMPLES // 10, codes
    assert codes["OK"] > EXAMPLES // 20, codes
    assert len(codes) > 15, codes
