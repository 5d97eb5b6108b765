"""Where messages end: what is understood, and what is refused because another might understand it differently."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.framing import ChunkedBody, FramingError, parse_request, parse_response


def request(*fields: str, line: str = "PUT /b/k HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: Edge.example:1", *fields, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    ("head", "body", "persists"),
    [
        (request(), 0, True),
        (request("Content-Length: 5"), 5, True),
        (request("content-length:5 "), 5, True),
        (request("Transfer-Encoding: Chunked"), "chunked", True),
        (request("Connection: keep-alive, Close"), 0, False),
        (request(line="GET / HTTP/1.0"), 0, False),
        (request("Connection: keep-alive", line="GET / HTTP/1.0"), 0, False),
        (request("X-Amz-Meta-Name: caf\xe9\ttab"), 0, True),
    ],
)
def test_a_request_ends_where_its_head_says(head: bytes, body: object, persists: bool) -> None:
    parsed = parse_request(head)
    assert (parsed.body, parsed.persists, parsed.host) == (body, persists, b"edge.example:1")


@pytest.mark.parametrize(
    "head",
    [
        request("Content-Length: 5", "Content-Length: 5"),
        request("Content-Length: 5", "Content-Length: 6"),
        request("Content-Length: 5, 5"),
        request("Content-Length: +5"),
        request("Content-Length: 0x5"),
        request("Content-Length: "),
        request("Content-Length: 9999999999999999999"),
        request("Content-Length: 5", "Transfer-Encoding: chunked"),
        request("Transfer-Encoding: gzip, chunked"),
        request("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        request("Transfer-Encoding: identity"),
        request("Transfer-Encoding: \x0bchunked"),
        request("Transfer-Encoding: chunked", line="PUT / HTTP/1.0"),
        request("Content-Length : 5"),
        request(" Content-Length: 5"),
        request("X: a", " folded"),
        request("X: a\nContent-Length: 5"),
        request("X: a\rContent-Length: 5"),
        request("X: \x00"),
        request("Host: another"),
        request("no field"),
        request(": nameless"),
        request(line="GET / HTTP/2.0"),
        request(line="GET /a b HTTP/1.1"),
        request(line="GET  / HTTP/1.1"),
        request(line="G\tT / HTTP/1.1"),
        request(line=" GET / HTTP/1.1"),
        request(line="\r\nGET / HTTP/1.1"),
        request(line="GET /"),
        b"GET / HTTP/1.1\n\n",
        b"",
    ],
)
def test_what_could_be_understood_as_two_requests_is_refused(head: bytes) -> None:
    with pytest.raises(FramingError):
        parse_request(head)


@pytest.mark.parametrize(
    ("line", "fields", "method", "body", "persists"),
    [
        ("HTTP/1.1 200 OK", ["Content-Length: 7"], b"GET", 7, True),
        ("HTTP/1.1 200 OK", ["Content-Length: 7"], b"HEAD", 0, True),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], b"HEAD", 0, True),
        ("HTTP/1.1 204 No Content", [], b"DELETE", 0, True),
        ("HTTP/1.1 304 Not Modified", ["Content-Length: 7"], b"GET", 0, True),
        ("HTTP/1.1 100 Continue", [], b"PUT", 0, True),
        ("HTTP/1.1 200", ["Transfer-Encoding: chunked", "Connection: close"], b"GET", "chunked", False),
        ("HTTP/1.1 200 OK", [], b"GET", "close", False),
        ("HTTP/1.0 200 OK", ["Content-Length: 7"], b"GET", 7, False),
    ],
)
def test_a_response_ends_where_its_request_and_head_say(
    line: str, fields: list[str], method: bytes, body: object, persists: bool
) -> None:
    parsed = parse_response("\r\n".join([line, *fields, "", ""]).encode(), method)
    assert (parsed.status, parsed.body, parsed.persists) == (int(line.split()[1]), body, persists)


@pytest.mark.parametrize("head", [b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"ICY 200 OK\r\n\r\n"])
def test_what_is_no_response_is_refused(head: bytes) -> None:
    with pytest.raises(FramingError):
        parse_response(head, b"GET")


CHUNKS = st.lists(st.binary(min_size=1, max_size=60), max_size=6)
EXTENSIONS = st.sampled_from([b"", b";a=b", b" ; x", b';chunk-signature="abc"'])
TRAILERS = st.lists(st.sampled_from([b"x-amz-checksum-crc32: AAAA\r\n", b"a:\r\n"]), max_size=2)


@given(chunks=CHUNKS, extension=EXTENSIONS, trailers=TRAILERS, after=st.binary(max_size=40), data=st.data())
def test_a_chunked_body_ends_at_its_end_however_it_comes(
    chunks: list[bytes], extension: bytes, trailers: list[bytes], after: bytes, data: st.DataObject
) -> None:
    encoded = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    encoded += b"0%s\r\n%s\r\n" % (extension, b"".join(trailers))
    stream = encoded + after
    body, taken, at = ChunkedBody(), 0, 0
    while at < len(stream):
        size = data.draw(st.integers(1, 30))
        step = body.feed(stream[at : at + size])
        assert step == len(stream[at : at + size]) or body.done
        taken += step
        at += size
        if body.done:
            break
    assert body.done
    assert taken == len(encoded)


@pytest.mark.parametrize(
    "encoded",
    [
        b"5\nhello\r\n",
        b"5\r\nhello\n",
        b"5\r\nhello6\r\n",
        b"5 5\r\nhello\r\n",
        b"-5\r\n",
        b"0x5\r\nhello\r\n",
        b"\r\n",
        b"1000000000000000\r\n",
        b"5;\x00\r\nhello\r\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\n folded: x\r\n\r\n",
        b"1" * 20_000,
        b"0\r\n" + b"a: %s\r\n" % (b"b" * 15_000) * 5,
    ],
)
def test_what_is_no_chunk_is_refused(encoded: bytes) -> None:
    with pytest.raises(FramingError):
        ChunkedBody().feed(encoded)


@given(st.binary(max_size=200))
def test_a_head_is_refused_or_each_of_its_lines_is_a_field(noise: bytes) -> None:
    head = b"GET / HTTP/1.1\r\n" + noise + b"\r\n\r\n"
    try:
        parse_request(head)
    except FramingError:
        return
    for line in noise.split(b"\r\n"):
        assert re.fullmatch(rb"[^\s:\x00-\x1f]+:[^\r\n\x00]*", line)
