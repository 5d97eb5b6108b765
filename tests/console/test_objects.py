"""Buckets and objects in the console of a running node, over real sockets: whatever S3 takes for a key and for bytes is
looked at, linked to, downloaded and deleted here, and none of it becomes a page of the console."""

from __future__ import annotations

import html
import http.client
import json
import random
import re
import ssl
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nodes import RunningNode, running_node
from tigrislike.console.page import PREFIX
from tigrislike.console.preview import HEAD_BYTES, visible
from tigrislike.console.views.objects import PAGES

from .browser import POLICY, SANDBOX, Answer, Browser

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")
HOSTILE_HTML = b"<!doctype html><script>fetch('/_tigrislike/console/keys')</script>"
HOSTILE_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def said(answer: Answer) -> str:
    """The text of a page, with a space in place of each tag and all other space."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", answer.text)).split())


@dataclass
class Shelf:
    """A node, its S3 client, and a fresh bucket with an operator who looks at it."""

    node: RunningNode
    s3: Any
    bucket: str
    operator: Browser

    def put(self, key: str, body: bytes = b"bytes", **more: Any) -> dict[str, Any]:
        done: dict[str, Any] = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return done

    def get(self, page: str = "", **query: str) -> Answer:
        return self.operator.get(self.at(page, **query))

    def at(self, page: str = "", **query: str) -> str:
        return f"/buckets/{self.bucket}{page}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")

    @property
    def csrf(self) -> str:
        return self.operator.get("/buckets").html.csrf

    def upload(self, key: str, body: bytes, *, csrf: str | None = None, **headers: str | None) -> Answer:
        sent = {"X_CSRF_Token": self.csrf if csrf is None else csrf, "Content_Type": "text/plain", **headers}
        return self.operator.ask("POST", self.at("/upload", key=key, replace="1"), body, **sent)

    def delete(self, key: str, **version: str) -> Answer:
        asked = self.get("/delete", key=key, **version)
        (form,) = [each for each in asked.html.forms if "/delete" in each.action]
        return self.operator.post(form.action, form.fields)


def client(node: RunningNode) -> Any:
    return node.client(parameter_validation=False)


@pytest.fixture(scope="module")
def operator(plain_store: RunningNode) -> Browser:
    looker = Browser(plain_store.endpoint)
    assert looker.sign_in(plain_store.access_key_id, plain_store.secret_access_key).status == 303
    return looker


@pytest.fixture(scope="module")
def s3(plain_store: RunningNode) -> Iterator[Any]:
    made = client(plain_store)
    yield made
    made.close()


@pytest.fixture
def shelf(plain_store: RunningNode, s3: Any, operator: Browser) -> Shelf:
    bucket = f"shelf-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    return Shelf(plain_store, s3, bucket, operator)


# --- looking through


def test_a_bucket_is_looked_through_folder_by_folder(shelf: Shelf) -> None:
    for key in ("readme", "photos/2024/a.png", "photos/2024/b.png", "photos//odd"):
        shelf.put(key)
    assert shelf.bucket in shelf.operator.get(f"/buckets?prefix={shelf.bucket}").html.text
    page = shelf.get()
    assert {"readme", "photos/"} <= set(said(page).split())
    folder = shelf.get(prefix="photos/")
    assert {"2024/", "(no"} <= set(said(folder).split())
    assert PREFIX + shelf.at(prefix="photos//") in folder.html.links
    inner = shelf.get(prefix="photos/2024/")
    assert {"a.png", "b.png"} <= set(said(inner).split())
    assert {PREFIX + shelf.at(), PREFIX + shelf.at(prefix="photos/")} <= set(inner.html.links), "the way back"
    assert "odd" in shelf.get(prefix="photos//").html.text
    assert "Nothing here begins with this." in shelf.get(prefix="photos/2025").html.text


def test_pages_of_a_long_listing_follow_one_another(shelf: Shelf) -> None:
    keys = [f"k{number:03}" for number in range(230)]
    for key in keys:
        shelf.put(key, b"")
    found: list[str] = []
    to = PREFIX + shelf.at()
    while to:
        page = shelf.operator.get(to)
        found += [text for text in said(page).split() if re.fullmatch("k[0-9]{3}", text)]
        to = next((link for link in page.html.links if "cursor=" in link), "")
    assert found == keys


def test_what_is_not_there_is_said(shelf: Shelf) -> None:
    assert shelf.operator.get("/buckets/no-such-bucket").status == 404
    assert shelf.operator.get("/buckets/no-such-bucket/about").status == 404
    for page in ("/object", "/replicas", "/raw", "/link"):
        path = shelf.at(page, key="nothing")
        assert shelf.operator.get(path).status == (200 if page == "/link" else 404), page
    assert shelf.get("/object").status == 400
    assert shelf.get("/object", key="k", version="1").status == 404
    assert shelf.get("/object", key="k" * 1025).status == 400
    assert shelf.get(cursor="no cursor of ours").status == 400
    assert shelf.get("/versions", after_version="1").status == 400


def test_about_a_bucket(shelf: Shelf) -> None:
    shelf.put("small")
    shelf.put("large", bytes(1 << 20))
    text = said(shelf.get("/about"))
    assert "All 2 objects. 1 of them are small" in text
    assert "Objects 2" in text


# --- one object


def test_an_object_tells_what_s3_says_of_it(shelf: Shelf) -> None:
    put = shelf.put("a/b", b"text", ContentType="text/plain", Metadata={"colour": "blue"}, CacheControl="no-cache")
    text = shelf.get("/object", key="a/b").html.text
    for said in ("text/plain", "colour", "blue", "no-cache", put["ETag"], "4 B"):
        assert said in text


def test_text_is_shown_as_text(shelf: Shelf) -> None:
    shelf.put("page.html", HOSTILE_HTML, ContentType="text/html")
    answer = shelf.get("/object", key="page.html")
    assert HOSTILE_HTML.decode() in answer.html.text, "escaped: the checker saw it as text, and no script of the page's"
    assert b"<script>fetch" not in answer.body
    shelf.put("long", "é".encode() * HEAD_BYTES)
    text = shelf.get("/object", key="long").html.text
    assert "é" * (HEAD_BYTES // 2) in text
    assert "é" * (HEAD_BYTES // 2 + 1) not in text
    assert f"The first {HEAD_BYTES:,} bytes." in text


def test_bytes_are_shown_as_bytes_and_nothing_as_nothing(shelf: Shelf) -> None:
    shelf.put("bin", bytes(range(256)))
    assert "00000010  10 11 12" in shelf.get("/object", key="bin").html.text
    shelf.put("empty", b"")
    assert "The object is empty." in shelf.get("/object", key="empty").html.text


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x00\x20ftypavif", "image/avif"),
    ],
)
def test_an_image_is_shown_with_the_type_that_its_bytes_have(shelf: Shelf, head: bytes, media_type: str) -> None:
    shelf.put("picture", head + bytes(100), ContentType="text/html")
    page = shelf.get("/object", key="picture")
    assert f'src="{PREFIX}{shelf.at("/raw", key="picture", show="image").replace("&", "&amp;")}"' in page.text
    answer = shelf.get("/raw", key="picture", show="image")
    assert (answer.status, answer.headers["content-type"]) == (200, media_type)
    assert answer.headers["content-disposition"] == "inline"
    assert answer.headers["content-security-policy"] == SANDBOX
    assert answer.body == head + bytes(100)


@pytest.mark.parametrize("body", [HOSTILE_HTML, HOSTILE_SVG, b"", b"GIF"])
def test_what_is_no_such_image_is_never_shown_as_one(shelf: Shelf, body: bytes) -> None:
    shelf.put("picture.png", body, ContentType="image/svg+xml")
    assert "<img class" not in shelf.get("/object", key="picture.png").text
    refused = shelf.get("/raw", key="picture.png", show="image")
    assert refused.status in (415, 416)
    assert refused.headers["content-security-policy"] == POLICY["content-security-policy"]
    download = shelf.get("/raw", key="picture.png")
    assert (download.body, download.headers["content-type"]) == (body, "application/octet-stream")


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_the_header_of_a_safetensors_file_is_a_table(shelf: Shelf) -> None:
    tensors = {
        f"layer.{n}": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * n, 24 * n + 24]} for n in range(900)
    }
    header = {"__metadata__": {"format": "<pt>"}, "scale": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]}}
    shelf.put("model.safetensors", safetensors({**header, **tensors}, bytes(100)))
    text = said(shelf.get("/object", key="model.safetensors"))
    assert "A safetensors file of 901 tensors; the first 500 of them." in text
    assert "<pt>" in text
    assert "layer.1 F32 2 x 3 24 B 24" in text
    assert "scale F16 scalar 2 B 0" in text
    assert len(safetensors({**header, **tensors})) > HEAD_BYTES, "more than the first look sees"


@pytest.mark.parametrize(
    "body",
    [
        safetensors(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, int("9" * 400)]}}),
        safetensors({"a": {"dtype": "F32", "shape": ["<script>"], "data_offsets": [0, 4]}}),
        safetensors({"a": 1}),
        safetensors({"__metadata__": 5}),
        safetensors(b'{"a": \xff}'),
        safetensors(b'{"a": nothing}'),
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 100) + b"{}",
    ],
)
def test_what_only_looks_like_safetensors_is_shown_as_bytes(shelf: Shelf, body: bytes) -> None:
    shelf.put("model.safetensors", body)
    answer = shelf.get("/object", key="model.safetensors")
    assert answer.status == 200
    assert "safetensors file of" not in answer.html.text
    assert "00000000  " in answer.html.text


def test_a_safetensors_header_that_is_too_long_is_not_read(shelf: Shelf) -> None:
    shelf.put("model.safetensors", safetensors(b"{" + b" " * (2 << 20) + b"}"))
    assert "too long to be shown" in shelf.get("/object", key="model.safetensors").html.text


# --- downloads


def test_a_download_is_an_attachment_whatever_its_owner_said(shelf: Shelf) -> None:
    body = HOSTILE_HTML * 50_000
    shelf.put(
        'ué/pa"ge.html', body, ContentType="text/html", ContentDisposition="inline", CacheControl="public, max-age=9"
    )
    answer = shelf.get("/raw", key='ué/pa"ge.html')
    assert answer.body == body
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''pa%22ge.html"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-length"] == str(len(body))
    head = shelf.operator.ask("HEAD", shelf.at("/raw", key='ué/pa"ge.html'))
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(body)))


def test_a_part_of_a_download_is_taken_up(shelf: Shelf) -> None:
    body = bytes(range(256)) * 8192
    etag = shelf.put("large", body)["ETag"]
    path = shelf.at("/raw", key="large")
    part = shelf.operator.get(path, Range="bytes=1000000-", If_Range=etag)
    assert (part.status, part.body) == (206, body[1_000_000:])
    assert part.headers["content-range"] == f"bytes 1000000-{len(body) - 1}/{len(body)}"
    assert shelf.operator.get(path, Range="bytes=1-", If_Range='"another"').status == 200
    assert shelf.operator.get(path, If_None_Match=etag).status == 304


def test_a_refusal_in_place_of_a_download_is_a_page(shelf: Shelf) -> None:
    answer = shelf.get("/raw", key="nothing")
    assert answer.status == 404
    assert answer.html.title.startswith("404 NoSuchKey")


# --- uploads


def test_an_upload_is_an_object_like_any_other(shelf: Shelf) -> None:
    body = bytes(range(256)) * 20_000
    answer = shelf.upload("in/a folder/file.bin", body, Content_Type="image/png")
    assert (answer.status, json.loads(answer.body)["key"]) == (201, "in/a folder/file.bin")
    found = shelf.s3.get_object(Bucket=shelf.bucket, Key="in/a folder/file.bin", ChecksumMode="ENABLED")
    assert found["Body"].read() == body
    assert (found["ContentType"], found["ETag"]) == ("image/png", json.loads(answer.body)["etag"])
    assert found["ChecksumCRC64NVME"], "as S3 itself keeps one"
    assert json.loads(shelf.upload("empty", b"").body)["key"] == "empty"
    assert shelf.s3.head_object(Bucket=shelf.bucket, Key="empty")["ContentLength"] == 0


def test_an_upload_replaces_nothing_unless_it_is_to(shelf: Shelf) -> None:
    shelf.put("taken", b"old")
    path = shelf.at("/upload", key="taken")
    refused = shelf.operator.ask("POST", path, b"new", X_CSRF_Token=shelf.csrf, Content_Type="text/plain")
    assert (refused.status, json.loads(refused.body)["code"]) == (412, "PreconditionFailed")
    assert shelf.s3.get_object(Bucket=shelf.bucket, Key="taken")["Body"].read() == b"old"
    assert shelf.upload("taken", b"new").status == 201
    assert shelf.s3.get_object(Bucket=shelf.bucket, Key="taken")["Body"].read() == b"new"


def test_uploads_without_the_token_or_from_elsewhere_are_refused(shelf: Shelf) -> None:
    assert shelf.upload("k", b"bytes", csrf="").status == 403
    assert shelf.upload("k", b"bytes", csrf="0" * 64).status == 403
    assert shelf.upload("k", b"bytes", Origin="http://elsewhere.example").status == 403
    assert shelf.upload("k", b"bytes", Origin=None).status == 403
    assert shelf.upload("k", b"bytes", Sec_Fetch_Site="same-site").status == 403
    stranger = Browser(shelf.node.endpoint)
    assert stranger.ask("POST", shelf.at("/upload", key="k"), b"bytes", X_CSRF_Token=shelf.csrf).status in (303, 401)
    assert shelf.s3.list_objects_v2(Bucket=shelf.bucket)["KeyCount"] == 0


def test_an_upload_that_is_refused_says_why(shelf: Shelf) -> None:
    def refused(answer: Answer) -> tuple[int, str]:
        return answer.status, json.loads(answer.body)["code"]

    assert refused(shelf.upload("k" * 1025, b"bytes")) == (400, "KeyTooLongError")
    no_key = shelf.operator.ask("POST", shelf.at("/upload"), b"bytes", X_CSRF_Token=shelf.csrf)
    assert refused(no_key) == (400, "InvalidArgument")
    gone = "/buckets/no-such-bucket/upload?key=k"
    assert refused(shelf.operator.ask("POST", gone, b"bytes", X_CSRF_Token=shelf.csrf)) == (404, "NoSuchBucket")


def test_an_upload_of_more_than_5_gib_is_refused_before_it_is_sent(shelf: Shelf) -> None:
    connection = http.client.HTTPConnection(shelf.operator.host, timeout=30)
    try:
        connection.putrequest("POST", PREFIX + shelf.at("/upload", key="huge"))
        for name, value in {
            "Origin": shelf.node.endpoint,
            "X-CSRF-Token": shelf.csrf,
            "Cookie": "; ".join(f"{name}={value}" for name, value in shelf.operator.cookies.items()),
            "Content-Length": str(5 * 1024**3 + 1),
        }.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (400, "EntityTooLarge")
    finally:
        connection.close()


def in_parts(shelf: Shelf, action: str, **query: str) -> tuple[int, dict[str, Any]]:
    answer = shelf.operator.ask("POST", shelf.at(f"/parts{action}", key="huge", **query), X_CSRF_Token=shelf.csrf)
    told: dict[str, Any] = json.loads(answer.body)
    return answer.status, told


def test_what_is_too_large_for_one_request_goes_in_parts(shelf: Shelf) -> None:
    parts = [random.Random(number).randbytes(5 << 20) for number in range(2)] + [b"the rest"]
    size = str(sum(map(len, parts)))
    status, begun = in_parts(shelf, "", type="text/x-huge")
    assert status == 201
    upload = begun["upload"]
    for number, part in enumerate(parts, 1):
        path = shelf.at("/upload", key="huge", upload=upload, part=str(number))
        assert shelf.operator.ask("POST", path, part, X_CSRF_Token=shelf.csrf).status == 201
    status, told = in_parts(shelf, "/complete", upload=upload, size=str(int(size) + 1))
    assert (status, told["code"]) == (400, "InvalidRequest"), "it is not all of it"
    shelf.put("huge", b"there")
    assert in_parts(shelf, "/complete", upload=upload, size=size)[0] == 412
    status, told = in_parts(shelf, "/complete", upload=upload, size=size, replace="1")
    assert (status, told["etag"].endswith('-3"')) == (201, True)
    found = shelf.s3.get_object(Bucket=shelf.bucket, Key="huge")
    assert found["Body"].read() == b"".join(parts)
    assert found["ContentType"] == "text/x-huge"
    assert "3" in said(shelf.get("/replicas", key="huge"))


def test_parts_that_are_given_up_are_gone(shelf: Shelf) -> None:
    upload = in_parts(shelf, "")[1]["upload"]
    path = shelf.at("/upload", key="huge", upload=upload, part="1")
    assert shelf.operator.ask("POST", path, b"part", X_CSRF_Token=shelf.csrf).status == 201
    assert in_parts(shelf, "/abort", upload=upload) == (200, {})
    assert shelf.s3.list_multipart_uploads(Bucket=shelf.bucket).get("Uploads", []) == []
    assert in_parts(shelf, "/complete", upload=upload, size="4")[1]["code"] == "NoSuchUpload"
    assert in_parts(shelf, "/complete", upload=upload, size="many")[1]["code"] == "InvalidArgument"
    assert in_parts(shelf, "/abort")[1]["code"] == "InvalidArgument"
    for action in ("", "/complete", "/abort"):
        path = shelf.at(f"/parts{action}", key="huge", upload=upload)
        assert shelf.operator.ask("POST", path, X_CSRF_Token="0" * 64).status == 403, "the token is wanted here too"


def test_over_https_objects_come_and_go_as_well(tls_store: RunningNode) -> None:
    """There a body is not received straight into the buffers that it is written from."""
    browser = Browser(tls_store.endpoint, tls_store.ca_bundle)
    assert browser.sign_in(tls_store.access_key_id, tls_store.secret_access_key).status == 303
    bucket = f"shelf-{uuid.uuid4().hex[:12]}"
    made = client(tls_store)
    made.create_bucket(Bucket=bucket)
    made.close()
    body, csrf = random.Random(1).randbytes(3 << 20), browser.get("/buckets").html.csrf
    assert browser.ask("POST", f"/buckets/{bucket}/upload?key=k", body, X_CSRF_Token=csrf).status == 201
    assert browser.get(f"/buckets/{bucket}/raw?key=k").body == body
    (link,) = links_of(browser.post(f"/buckets/{bucket}/link?key=k", {"csrf": csrf, "expires": "900"}))
    with urlopen(link, context=ssl.create_default_context(cafile=tls_store.ca_bundle)) as answer:
        assert answer.read() == body


def test_an_upload_that_breaks_off_leaves_nothing(shelf: Shelf) -> None:
    connection = http.client.HTTPConnection(shelf.operator.host, timeout=30)
    connection.putrequest("POST", PREFIX + shelf.at("/upload", key="cut"))
    for name, value in {
        "Origin": shelf.node.endpoint,
        "X-CSRF-Token": shelf.csrf,
        "Cookie": "; ".join(f"{name}={value}" for name, value in shelf.operator.cookies.items()),
        "Content-Length": str(8 << 20),
    }.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(bytes(1 << 20))
    connection.close()
    assert shelf.s3.list_objects_v2(Bucket=shelf.bucket)["KeyCount"] == 0
    assert shelf.upload("cut", b"whole").status == 201


# --- versions


def test_versions_are_shown_downloaded_and_removed_one_by_one(shelf: Shelf) -> None:
    shelf.s3.put_bucket_versioning(Bucket=shelf.bucket, VersioningConfiguration={"Status": "Enabled"})
    first = shelf.put("k", b"first")["VersionId"]
    second = json.loads(shelf.upload("k", b"second").body)["version"]
    shelf.put("kk", b"another")
    page = shelf.get("/object", key="k").html
    assert (page.text.index(second) < page.text.index(first)) or f"version={first}" in "".join(page.links)
    assert "another" not in page.text
    assert shelf.get("/raw", key="k", version=first).body == b"first"
    assert "first" in shelf.get("/object", key="k", version=first).html.text
    done = shelf.delete("k")
    assert done.to.startswith(shelf.at())
    assert "Its versions are kept." in shelf.operator.follow(done).html.text
    gone = shelf.get("/object", key="k")
    assert (gone.status, "The object is deleted." in gone.html.text) == (404, True)
    listed = shelf.get("/versions").html
    assert listed.text.count("delete marker, latest") == 1
    marker = shelf.s3.list_object_versions(Bucket=shelf.bucket)["DeleteMarkers"][0]["VersionId"]
    assert "it has no bytes" in shelf.get("/object", key="k", version=marker).html.text
    assert shelf.delete("k", version=marker).status == 303
    assert shelf.get("/raw", key="k").body == b"second", "removing the marker brought it back"
    assert shelf.delete("k", version=second).status == 303
    assert shelf.get("/raw", key="k").body == b"first"


def test_pages_of_versions_follow_one_another(shelf: Shelf) -> None:
    shelf.s3.put_bucket_versioning(Bucket=shelf.bucket, VersioningConfiguration={"Status": "Enabled"})
    made = [shelf.put(f"k{number // 60}", b"")["VersionId"] for number in range(130)]
    found: list[str] = []
    to = PREFIX + shelf.at("/versions")
    while to:
        page = shelf.operator.get(to)
        found += [text for text in said(page).split() if text in made]
        to = next((link for link in page.html.links if "after=" in link), "")
    assert sorted(found) == sorted(made)
    assert "All versions" in shelf.get("/object", key="k0").html.text


def test_deleting_is_asked_first_and_says_what_comes_of_it(shelf: Shelf) -> None:
    shelf.put("k")
    asked = shelf.get("/delete", key="k")
    assert "It is removed for good" in asked.html.text
    assert shelf.get("/raw", key="k").status == 200, "asking is not doing"
    (form,) = [each for each in asked.html.forms if "/delete" in each.action]
    assert shelf.operator.post(form.action, {"csrf": "0" * 64}).status == 403
    assert shelf.get("/raw", key="k").status == 200
    done = shelf.operator.follow(shelf.operator.post(form.action, form.fields))
    assert "k was deleted." in done.html.text
    assert shelf.get("/raw", key="k").status == 404


# --- links


def links_of(answer: Answer) -> list[str]:
    return [text for text in answer.html.text.split() if "X-Amz-Signature=" in text]


def test_a_link_works_for_whoever_has_it(shelf: Shelf) -> None:
    key = "a b/ü+?#%&.txt"
    shelf.put(key, b"linked")
    form = shelf.get("/link", key=key)
    assert links_of(form) == []
    made = shelf.operator.post(shelf.at("/link", key=key), {"csrf": form.html.csrf, "expires": "604800"})
    (link,) = links_of(made)
    assert "X-Amz-Expires=604800" in link
    assert link.startswith(shelf.node.endpoint)
    with urlopen(link) as answer:
        assert answer.read() == b"linked"
    connection = http.client.HTTPConnection(shelf.operator.host, timeout=30)
    parts = urlsplit(link)
    connection.request("GET", f"{parts.path}?{parts.query}".replace("Expires=604800", "Expires=604801"))
    assert connection.getresponse().status == 403
    connection.close()


def test_a_link_to_a_version_is_to_that_version(shelf: Shelf) -> None:
    shelf.s3.put_bucket_versioning(Bucket=shelf.bucket, VersioningConfiguration={"Status": "Enabled"})
    first = shelf.put("k", b"first")["VersionId"]
    shelf.put("k", b"second")
    path = shelf.at("/link", key="k", version=first)
    (link,) = links_of(shelf.operator.post(path, {"csrf": shelf.csrf, "expires": "900"}))
    with urlopen(link) as answer:
        assert answer.read() == b"first"


def test_no_link_is_made_for_too_long_or_to_nothing(shelf: Shelf) -> None:
    shelf.put("k")
    for expires in ("604801", "0", "-1", "never"):
        refused = shelf.operator.post(shelf.at("/link", key="k"), {"csrf": shelf.csrf, "expires": expires})
        assert (refused.status, links_of(refused)) == (400, [])
    assert shelf.operator.post(shelf.at("/link", key="no"), {"csrf": shelf.csrf, "expires": "900"}).status == 404


# --- any key


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1024).filter(
    lambda key: len(key.encode()) <= 1024
)
HOSTILE = [
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "a\nb\r\nSet-Cookie: x=1",
    "\x00",
    " ",
    "/",
    "//",
    "a//b",
    ".",
    "..",
    "?key=other",
    "#",
    "%2e%2e%2f",
    "%",
    "+",
    "&amp;",
    "\"'`",
    "\u202egnp.exe",
    "\ud7ff\ue000\uffff\U0010ffff",
    "é" * 512,
    "😀" * 256,
    "k" * 1024,
    "{{ 7 * 7 }}{% raw %}",
]


def goes_through_the_console(shelf: Shelf, key: str, body: bytes) -> None:
    """An object that S3 took is found, looked at, downloaded, linked to and deleted."""
    folder = key[: key.rfind("/") + 1]
    listed = shelf.get(prefix=folder) if folder else shelf.get()
    assert PREFIX + shelf.at("/object", key=key) in listed.html.links
    page = shelf.get("/object", key=key)
    assert page.status == 200
    assert visible(key) in page.html.text.replace("\r\n", "\n")
    assert PREFIX + shelf.at("/raw", key=key) in page.html.links
    for link in page.html.links:
        if link.startswith(PREFIX + shelf.at(prefix="")) or "?prefix=" in link:
            assert shelf.operator.get(link).status == 200
    assert shelf.get("/raw", key=key).body == body
    assert shelf.get("/replicas", key=key).status == 200
    made = shelf.operator.post(shelf.at("/link", key=key), {"csrf": page.html.csrf, "expires": "900"})
    (link,) = links_of(made)
    parts = urlsplit(link)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("GET", f"{parts.path}?{parts.query}")
    assert connection.getresponse().read() == body
    connection.close()
    done = shelf.delete(key)
    assert done.status == 303
    assert shelf.operator.follow(done).status == 200
    assert shelf.get("/raw", key=key).status == 404


def put_exactly(shelf: Shelf, key: str, body: bytes) -> None:
    """By a presigned URL, for boto3 tidies some paths up."""
    url = shelf.s3.generate_presigned_url("put_object", {"Bucket": shelf.bucket, "Key": key})
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("PUT", f"{parts.path}?{parts.query}", body)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    answer.read()
    connection.close()


@pytest.mark.parametrize("key", HOSTILE, ids=ascii)
def test_a_hostile_key_goes_all_the_way(shelf: Shelf, key: str) -> None:
    put_exactly(shelf, key, b"body")
    goes_through_the_console(shelf, key, b"body")
    assert shelf.upload(key, b"again").status == 201
    assert shelf.s3.list_objects_v2(Bucket=shelf.bucket)["KeyCount"] == 1
    goes_through_the_console(shelf, key, b"again")


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(key=KEYS, body=st.binary(max_size=64))
def test_any_key_goes_all_the_way(shelf: Shelf, key: str, body: bytes) -> None:
    put_exactly(shelf, key, body)
    goes_through_the_console(shelf, key, body)


@given(text=st.text())
def test_a_key_is_shown_so_that_it_can_be_read(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert shown == shown.strip(" ")
    if text.isprintable() and text == text.strip(" "):
        assert shown == text


# --- where S3 and the console are at one origin


def test_objects_at_the_consoles_origin_are_sandboxed(shelf: Shelf) -> None:
    shelf.s3.put_object(
        Bucket=shelf.bucket,
        Key="evil.svg",
        Body=HOSTILE_SVG * 10_000,
        ContentType="image/svg+xml",
        Metadata={"content-security-policy": "default-src *"},
    )
    query = {"response-content-type": "text/html", "response-content-security-policy": "default-src *"}
    url = shelf.s3.generate_presigned_url("get_object", {"Bucket": shelf.bucket, "Key": "evil.svg"})
    overridden = shelf.s3.generate_presigned_url(
        "get_object", {"Bucket": shelf.bucket, "Key": "evil.svg", "ResponseContentType": "text/html"}
    )
    for address in (url, overridden):
        with urlopen(address) as answer:
            assert answer.headers.get_all("content-security-policy") == ["sandbox"]
            assert answer.headers.get_all("x-content-type-options") == ["nosniff"]
    connection = http.client.HTTPConnection(shelf.operator.host, timeout=30)
    connection.request("GET", f"/{shelf.bucket}/evil.svg?{urlencode(query)}")
    refused = connection.getresponse()
    assert refused.status in (400, 403)
    assert refused.headers.get_all("content-security-policy") == ["sandbox"], "an error repeats what was asked for"
    connection.close()


def test_a_session_opens_no_object_by_s3(shelf: Shelf) -> None:
    shelf.put("k")
    cookie = "; ".join(f"{name}={value}" for name, value in shelf.operator.cookies.items())
    connection = http.client.HTTPConnection(shelf.operator.host, timeout=30)
    connection.request("GET", f"/{shelf.bucket}/k", headers={"Cookie": cookie})
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.parametrize("page", [page for page in PAGES if page.method == "GET"], ids=lambda page: page.path)
def test_pages_about_objects_need_a_session(shelf: Shelf, page: Any) -> None:
    stranger = Browser(shelf.node.endpoint)
    answer = stranger.get(page.path.format(bucket=shelf.bucket) + "?key=k")
    assert (answer.status, answer.to.partition("?")[0]) == (303, "/sign-in")


# --- a listener of its own, and what is noted


def test_with_a_listener_of_its_own_links_are_to_s3_and_objects_are_as_their_owners_want(tmp_path: Any) -> None:
    facts_to = tmp_path / "facts.json"
    with running_node(tmp_path / "data", "--admin-listen=127.0.0.1:0", facts_to=facts_to) as node:
        console = json.loads(facts_to.read_text())["admin_endpoint"]
        looker = Browser(console)
        assert looker.sign_in(node.access_key_id, node.secret_access_key).status == 303
        made = client(node)
        made.create_bucket(Bucket="bucket")
        csrf = looker.get("/buckets").html.csrf
        path = "/buckets/bucket/upload?key=k"
        assert looker.ask("POST", path, b"bytes", X_CSRF_Token=csrf, Content_Type="text/plain").status == 201
        found = made.get_object(Bucket="bucket", Key="k")
        assert found["Body"].read() == b"bytes"
        headers = found["ResponseMetadata"]["HTTPHeaders"]
        assert "content-security-policy" not in headers
        (link,) = links_of(looker.post("/buckets/bucket/link?key=k", {"csrf": csrf, "expires": "900"}))
        assert link.startswith(node.endpoint)
        with urlopen(link) as answer:
            assert answer.read() == b"bytes"
        made.close()
    log = [json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{")]
    noted = {(line["operation"], line.get("access_key")) for line in log if "/console/buckets/" in line.get("path", "")}
    assert ("PutObject", node.access_key_id) in noted, "an upload is a PutObject in the access log"
