"""Text on the wire: XML character data, timestamps, URL-encoded keys, RFC 2047 words.

Pure functions shared by the serialiser, the parser and the error documents. They accept every str: what a document or a
header cannot hold is written as the reference or the encoded word that S3 writes.

What this module does not do: it knows no operation and no shape.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBERS: Final = {name: number for number, name in enumerate(_MONTHS, 1)}

# XML 1.0 has no way to write most control characters; S3 writes the references anyway, and a client that lists such
# keys asks for `encoding-type=url`. A raw carriage return would be read back as a line feed.
_REFERENCES: Final[dict[int, str]] = {
    **{code: f"&#x{code:x};" for code in range(0x20) if code not in (0x09, 0x0A)},
    0x26: "&amp;",
    0x3C: "&lt;",
    0x3E: "&gt;",
    0x22: "&quot;",
    0xFFFE: "&#xfffe;",
    0xFFFF: "&#xffff;",
}


def escape(value: str) -> str:
    """`value` as XML character data, also fit for a double-quoted attribute."""
    if not value.isprintable():
        return value.translate(_REFERENCES)
    if "&" in value:
        value = value.replace("&", "&amp;")
    if "<" in value:
        value = value.replace("<", "&lt;")
    if ">" in value:
        value = value.replace(">", "&gt;")
    if '"' in value:
        value = value.replace('"', "&quot;")
    return value


# --- keys ------------------------------------------------------------------------------------------------------------

_UNRESERVED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~/"


def url_encode_key(key: str) -> str:
    """`key` as `encoding-type=url` shows it: percent-encoded UTF-8 but for RFC 3986's unreserved characters and `/`.

    A space is `%20`, which every client decodes alike, whether or not it takes `+` for a space.
    """
    encoded = key.encode("utf-8", "surrogatepass")
    if not encoded.translate(None, _UNRESERVED):
        return key
    return quote(encoded, safe="/")


# --- timestamps ------------------------------------------------------------------------------------------------------

# Objects listed together were often written together: within a second, or at least within a minute.
_SECONDS: dict[int, str] = {}  # seconds since 1970 -> "2026-01-02T03:04:05."
_MINUTES: dict[int, str] = {}  # minutes since 1970 -> "2026-01-02T03:04:"
_CACHED: Final = 4096
_MILLISECONDS: Final = tuple(f"{millisecond:03d}Z" for millisecond in range(1000))
_HTTP_DATES: dict[int, str] = {}


def _nanoseconds(moment: datetime) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1) * 1000


def iso8601(moment: int | datetime | str) -> str:
    """`2026-01-02T03:04:05.678Z`, from nanoseconds since 1970 or a datetime (naive means UTC); a str stays as it is."""
    if not isinstance(moment, int):
        if isinstance(moment, str):
            return moment
        moment = _nanoseconds(moment)
    second, rest = divmod(moment, 1_000_000_000)
    prefix = _SECONDS.get(second)
    return (_second(second) if prefix is None else prefix) + _MILLISECONDS[rest // 1_000_000]


def _second(second: int) -> str:
    minute, rest = divmod(second, 60)
    prefix = _MINUTES.get(minute)
    if prefix is None:
        if len(_MINUTES) >= _CACHED:
            _MINUTES.clear()
        at = _EPOCH + timedelta(minutes=minute)
        prefix = f"{at.year:04d}-{at.month:02d}-{at.day:02d}T{at.hour:02d}:{at.minute:02d}:"
        _MINUTES[minute] = prefix
    if len(_SECONDS) >= _CACHED:
        _SECONDS.clear()
    written = _SECONDS[second] = f"{prefix}{rest:02d}."
    return written


def http_date(moment: int | datetime | str) -> str:
    """`Fri, 02 Jan 2026 03:04:05 GMT`, from nanoseconds since 1970 or a datetime; a str stays as it is."""
    if not isinstance(moment, int):
        if isinstance(moment, str):
            return moment
        moment = _nanoseconds(moment)
    second = moment // 1_000_000_000
    date = _HTTP_DATES.get(second)
    if date is None:
        if len(_HTTP_DATES) >= _CACHED:
            _HTTP_DATES.clear()
        at = _EPOCH + timedelta(seconds=second)
        date = (
            f"{_DAYS[at.weekday()]}, {at.day:02d} {_MONTHS[at.month - 1]} {at.year:04d} "
            f"{at.hour:02d}:{at.minute:02d}:{at.second:02d} GMT"
        )
        _HTTP_DATES[second] = date
    return date


_CLOCK = r"(\d\d):(\d\d):(\d\d)"
# The three forms of RFC 9110, section 5.6.7; the zone may be numeric, as RFC 5322 writes it.
_IMF = re.compile(
    rf"(?:[A-Za-z]{{3,9}},\s*)?(\d\d?)[ -]([A-Za-z]{{3}})[ -](\d{{4}}|\d\d) {_CLOCK} (GMT|UTC|UT|[+-]\d{{4}})", re.A
)
_ASCTIME = re.compile(rf"[A-Za-z]{{3}} ([A-Za-z]{{3}}) +(\d\d?) {_CLOCK} (\d{{4}})", re.A)
_UNIX = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.A)
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ][\d:.,]+(?:[Zz]|[+-]\d\d:?\d\d)?)?", re.A)


def parse_timestamp(value: str) -> datetime:
    """The moment that `value` writes, aware, in UTC: an HTTP date, ISO 8601, or seconds since 1970.

    Raises:
        ValueError: it is none of these, or no date that exists.
    """
    try:
        if (match := _IMF.fullmatch(value)) is not None:
            day, month, year, hour, minute, second, zone = match.groups()
            return _moment(year, month, day, hour, minute, second) - _offset(zone)
        if _ISO.fullmatch(value) is not None:
            moment = datetime.fromisoformat(value.upper())
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        if _UNIX.fullmatch(value) is not None:
            return _EPOCH + timedelta(seconds=float(value))
        if (match := _ASCTIME.fullmatch(value)) is not None:
            month, day, hour, minute, second, year = match.groups()
            return _moment(year, month, day, hour, minute, second)
    except (KeyError, OverflowError):
        pass
    raise ValueError(f"not a timestamp: {value!r}")


def _moment(year: str, month: str, day: str, hour: str, minute: str, second: str) -> datetime:
    number = int(year)
    if len(year) == 2:  # RFC 850; the century nearest to now
        number += 2000 if number < 70 else 1900
    seconds = min(int(second), 59)  # a leap second is the second before it
    return datetime(number, _MONTH_NUMBERS[month.title()], int(day), int(hour), int(minute), seconds, tzinfo=UTC)


def _offset(zone: str) -> timedelta:
    if zone[0] not in "+-":
        return timedelta(0)
    offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    return offset if zone[0] == "+" else -offset


# --- header values ---------------------------------------------------------------------------------------------------

_ENCODED_WORD = re.compile(r"=\?([A-Za-z0-9_-]{1,40})\?([bBqQ])\?([!->@-~]*)\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)[ \t\r\n]+(?==\?[A-Za-z0-9_-]{1,40}\?[bBqQ]\?[!->@-~]*\?=)")
_CHARSETS: Final = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "ascii", "ascii": "ascii", "iso-8859-1": "latin-1"}


def decode_header(value: str) -> str:
    """A user metadata value as text, from a header value whose bytes were decoded as latin-1.

    The bytes are UTF-8 where they can be, else latin-1. Encoded words (RFC 2047) of UTF-8, latin-1
    or ASCII are decoded.
    """
    if not value.isascii():
        value = utf8_header(value)
    if "=?" not in value:
        return value
    return _ENCODED_WORD.sub(_decode_word, _BETWEEN_WORDS.sub(r"\1", value))


def _decode_word(match: re.Match[str]) -> str:
    charset = _CHARSETS.get(match[1].lower())
    if charset is None:
        return match[0]
    try:
        if match[2] in "bB":
            data = base64.b64decode(match[3], validate=True)
        else:
            data = _decode_q(match[3])
        return data.decode(charset)
    except ValueError:
        return match[0]


def _decode_q(word: str) -> bytes:
    def byte(match: re.Match[str]) -> str:
        return chr(int(match[1], 16))

    return re.sub(r"=([0-9A-Fa-f]{2})", byte, word.replace("_", " ")).encode("latin-1")


def encode_header(value: str) -> bytes:
    """A user metadata value as header bytes: printable ASCII as it is, all else as one RFC 2047 word of UTF-8.

    Text that only looks like an encoded word is encoded too, so that `decode_header` is the inverse.
    """
    if value.isascii() and value.isprintable() and _ENCODED_WORD.search(value) is None and value.strip() == value:
        return value.encode("ascii")
    return b"=?UTF-8?B?" + base64.b64encode(value.encode("utf-8", "surrogatepass")) + b"?="


def utf8_header(value: str) -> str:
    """A header value decoded as latin-1, decoded as UTF-8 instead where its bytes allow."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except ValueError:
        return value


def plain_header(value: str) -> bytes:
    """Any other header value as bytes: latin-1 where possible (what came in goes out), else UTF-8.

    Control characters become spaces: a value may come from a query parameter or a form field, and must not end the
    header that it is in.
    """
    if not value.isprintable():
        value = value.translate(_CONTROLS)
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")


_CONTROLS: Final[dict[int, str]] = {code: " " for code in (*range(0x20), 0x7F) if code != 0x09}
