"""Escapes, timestamps, keys and header values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from urllib.parse import unquote, unquote_plus
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.text import escape, http_date, iso8601, parse_timestamp, plain_header, url_encode_key, utf8_header

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
MOMENTS_NS = st.integers(-60_000_000_000, 250_000_000_000).map(lambda second: second * 10**9)


PRINTABLE = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")


@given(st.text(PRINTABLE | st.sampled_from("\r\n\t")))
def test_escaped_text_reads_back(text: str) -> None:
    assert (ElementTree.fromstring(f"<a>{escape(text)}</a>").text or "") == text
    assert '"' not in escape(text)


@given(TEXT)
def test_an_encoded_key_is_safe_and_reads_back_either_way(key: str) -> None:
    encoded = url_encode_key(key)
    assert encoded.isascii()
    assert encoded.isprintable()
    assert unquote(encoded) == unquote_plus(encoded) == key


def test_a_key_is_encoded_but_for_what_needs_no_encoding() -> None:
    assert url_encode_key("a/B-_.~9 +%\x01\u00fc*") == "a/B-_.~9%20%2B%25%01%C3%BC%2A"


@given(MOMENTS_NS, st.integers(0, 10**9 - 1))
def test_timestamps_are_written_as_datetime_would(second_ns: int, rest: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second_ns // 10**9)
    assert http_date(second_ns + rest) == http_date(moment) == format_datetime(moment, usegmt=True)
    assert iso8601(second_ns + rest) == f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 10**6:03d}Z".rjust(24, "0")
    assert parse_timestamp(http_date(second_ns)) == parse_timestamp(iso8601(second_ns)) == moment


def test_the_caches_of_timestamps_are_bounded_and_stay_right() -> None:
    for second in range(0, 10_000 * 61, 61):
        assert iso8601(second * 10**9).endswith(f":{second % 60:02d}.000Z")
        assert http_date(second * 10**9).endswith(f":{second % 60:02d} GMT")
    assert iso8601(0) == "1970-01-01T00:00:00.000Z"


def test_a_naive_datetime_means_utc_and_a_zone_is_heeded() -> None:
    assert iso8601(datetime(2026, 1, 2, 3, 4, 5, 678_000)) == "2026-01-02T03:04:05.678Z"
    east = timezone(timedelta(hours=2))
    assert http_date(datetime(2026, 1, 2, 3, 4, 5, tzinfo=east)) == "Fri, 02 Jan 2026 01:04:05 GMT"


@pytest.mark.parametrize(
    "text",
    [
        "Fri, 02 Jan 2026 03:04:05 GMT",
        "02 Jan 2026 03:04:05 GMT",
        "Fri, 2 Jan 2026 04:04:05 +0100",
        "Thu, 01 Jan 2026 22:04:05 -0500",
        "Friday, 02-Jan-26 03:04:05 GMT",
        "Fri Jan  2 03:04:05 2026",
        "2026-01-02T03:04:05Z",
        "2026-01-02T03:04:05.000Z",
        "2026-01-02T03:04:05",
        "2026-01-02 03:04:05",
        "2026-01-02T05:04:05+02:00",
        "1767323045",
        "1767323045.0",
    ],
)
def test_timestamps_are_read_in_every_form(text: str) -> None:
    parsed = parse_timestamp(text)
    assert parsed == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parsed.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "Fri, 32 Jan 2026 03:04:05 GMT",
        "Fri, 02 Foo 2026 03:04:05 GMT",
        "Fri, 02 Jan 2026 25:04:05 GMT",
        "Mon, 01 Jan 0001 00:00:00 +0100",
        "2026-13-01",
        "0001-01-01T00:00:00+01:00",
        "999999999999",
        "-1",
        "\u0661",
    ],
)
def test_what_is_no_timestamp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_timestamp(text)


@given(st.binary())
def test_header_bytes_survive(raw: bytes) -> None:
    text = raw.translate(None, bytes([*range(32), 127])).decode("latin-1")
    assert plain_header(text) == text.encode("latin-1")


@given(TEXT)
def test_utf_8_in_a_header_is_recognised(text: str) -> None:
    assert utf8_header(text.encode().decode("latin-1")) == text


def test_latin_1_in_a_header_stays() -> None:
    assert utf8_header("\u00fc") == "\u00fc"
    assert utf8_header("\u20ac") == "\u20ac"
