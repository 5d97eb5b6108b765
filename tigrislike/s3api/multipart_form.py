"""Streaming parser for the multipart/form-data body of S3's POST Object: fields first, then one file.

::

    parser = FormParser(content_type)
    for data in body:
        for event in parser.feed(data): ...          # Field*, FileStart, bytes of the file*, FileEnd
    parser.finish()

What precedes the file is bounded (20 KB, as S3 has it) and held in memory; the file's bytes are passed on as they come,
views where possible. As S3 has it, the file ends the form: fields after it are read past, a second file is refused.

What this module does not do: interpret the fields (`post_policy`), or other kinds of multipart.

Rules: RFC 7578; Amazon S3 API Reference, "POST Object" and "Browser-Based Uploads Using POST".
"""

import enum
import re
from urllib.parse import unquote

import msgspec

from tigrislike.s3api.errors import S3Error

MAX_PREFACE_BYTES = 20 * 1024
MAX_BOUNDARY_BYTES = 200  # RFC 2046 allows 70


class Field(msgspec.Struct, frozen=True):
    """A form field that came before the file."""

    name: str
    value: str


class FileStart(msgspec.Struct, frozen=True):
    """The file's part has begun. `filename` is as the client sent it, "" if it sent none; see `base_name`."""

    filename: str
    content_type: str


class FileEnd(msgspec.Struct, frozen=True):
    """The file is complete: its delimiter has arrived. `size` is in bytes."""

    size: int


Event = Field | FileStart | bytes | memoryview | FileEnd


class _State(enum.Enum):
    PREAMBLE = enum.auto()
    AFTER_DELIMITER = enum.auto()
    HEADERS = enum.auto()
    VALUE = enum.auto()
    FILE = enum.auto()
    AFTER_FILE = enum.auto()
    LATER_HEADERS = enum.auto()
    REST = enum.auto()


class FormParser:
    """One form, fed in pieces of any size."""

    def __init__(self, content_type: str) -> None:
        """
        Args:
            content_type: the request's Content-Type header.

        Raises:
            S3Error: RequestIsNotMultiPartContent for another type; MalformedPOSTRequest for a missing or bad boundary.
        """
        self._delimiter = b"\r\n--" + _boundary(content_type)
        # The first delimiter may stand at the very start, where no line end precedes it.
        self._held = b"\r\n"
        self._state = _State.PREAMBLE
        self._preface = 0
        self._name = ""
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """What the next piece of the body completes, in order.

        Raises:
            S3Error: MaxPostPreDataLengthExceededError, MalformedPOSTRequest, IncorrectNumberOfFilesInPostRequest.
        """
        events: list[Event] = []
        if self._before(_State.FILE):
            self._preface += len(data)
        buffer = self._held + data if self._held else data
        self._held = b""
        position = taken = 0
        while taken >= 0 and self._before(_State.REST):
            position = taken
            taken = self._step(buffer, position, events)
        if self._before(_State.FILE):
            if self._preface > MAX_PREFACE_BYTES:
                raise _preface_too_long()
            self._held = buffer[position:]
        elif self._state in (_State.AFTER_FILE, _State.LATER_HEADERS):
            self._held = buffer[position:]
            if len(self._held) > MAX_PREFACE_BYTES:
                raise _malformed("the headers of a part are too long")
        return events

    def _before(self, state: _State) -> bool:
        return self._state.value < state.value

    def finish(self) -> None:
        """To be called once the body has ended.

        Raises:
            S3Error: MalformedPOSTRequest where the form was cut short.
        """
        if self._state not in (_State.AFTER_FILE, _State.LATER_HEADERS, _State.REST):
            raise _malformed("it ends early")

    # Each step takes what it can from buffer[position:] and returns the new position, or -1 to wait for more.

    def _step(self, buffer: bytes, position: int, events: list[Event]) -> int:
        state = self._state
        if state is _State.PREAMBLE or state is _State.VALUE:
            return self._take_value(buffer, position, events)
        if state is _State.AFTER_DELIMITER or state is _State.AFTER_FILE:
            return self._take_delimiter_end(buffer, position)
        if state is _State.HEADERS or state is _State.LATER_HEADERS:
            return self._take_headers(buffer, position, events)
        return self._take_file(buffer, position, events)

    def _take_value(self, buffer: bytes, position: int, events: list[Event]) -> int:
        found = buffer.find(self._delimiter, position)
        if found < 0:
            return -1
        if self._state is _State.VALUE:
            events.append(Field(self._name, _text(buffer[position:found], f"the value of {self._name}")))
        self._state = _State.AFTER_DELIMITER
        return found + len(self._delimiter)

    def _take_delimiter_end(self, buffer: bytes, position: int) -> int:
        after_file = self._state is _State.AFTER_FILE
        if buffer.startswith(b"--", position):
            if not after_file:
                raise S3Error("IncorrectNumberOfFilesInPostRequest")
            self._state = _State.REST
            return position + 2
        newline = buffer.find(b"\r\n", position)
        padding = buffer[position : newline if newline >= 0 else len(buffer)]
        if padding.strip(b" \t") and not (newline < 0 and padding.strip(b" \t") in (b"-", b"\r")):
            raise _malformed("a boundary is not followed by CRLF")
        if newline < 0:
            return -1
        self._state = _State.LATER_HEADERS if after_file else _State.HEADERS
        # Keep the CRLF: an empty header block is then an immediate blank line.
        return newline

    def _take_headers(self, buffer: bytes, position: int, events: list[Event]) -> int:
        end = buffer.find(b"\r\n\r\n", position)
        if end < 0:
            return -1
        headers = _part_headers(buffer[position + 2 : end])
        name, filename = _disposition(headers.get("content-disposition", ""))
        is_file = name.lower() == "file"
        if self._state is _State.LATER_HEADERS:
            if is_file:
                raise S3Error("IncorrectNumberOfFilesInPostRequest")
            self._state = _State.REST
        elif is_file:
            if self._preface - (len(buffer) - end - 4) > MAX_PREFACE_BYTES:
                raise _preface_too_long()
            events.append(FileStart(filename, headers.get("content-type", "")))
            self._state = _State.FILE
        else:
            self._name = name
            self._state = _State.VALUE
        return end + 4

    def _take_file(self, buffer: bytes, position: int, events: list[Event]) -> int:
        found = buffer.find(self._delimiter, position)
        stop = found if found >= 0 else self._safe_end(buffer, position)
        if stop > position:
            self._size += stop - position
            events.append(buffer if stop - position == len(buffer) else memoryview(buffer)[position:stop])
        if found < 0:
            self._held = buffer[stop:]
            return -1
        events.append(FileEnd(self._size))
        self._state = _State.AFTER_FILE
        return found + len(self._delimiter)

    def _safe_end(self, buffer: bytes, position: int) -> int:
        """Where what might become a delimiter begins, or the end of the buffer."""
        candidate = buffer.find(b"\r", max(position, len(buffer) - len(self._delimiter) + 1))
        while candidate >= 0:
            if self._delimiter.startswith(buffer[candidate:]):
                return candidate
            candidate = buffer.find(b"\r", candidate + 1)
        return len(buffer)


def base_name(filename: str) -> str:
    """What `${filename}` stands for: the text after the last slash or backslash, as some browsers send a whole path."""
    return re.split(r"[/\\]", filename)[-1]


_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)


def _boundary(content_type: str) -> bytes:
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise S3Error("RequestIsNotMultiPartContent")
    match = _BOUNDARY.search(content_type)
    boundary = (match[1] or match[2]) if match else ""
    if not boundary or len(boundary) > MAX_BOUNDARY_BYTES or not boundary.isascii() or not boundary.isprintable():
        raise _malformed("its Content-Type names no usable boundary")
    return boundary.encode()


def _part_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n"):
        if line:
            name, colon, value = _text(line, "a header of a part").partition(":")
            if not colon:
                raise _malformed("a header of a part is not `name: value`")
            headers[name.strip().lower()] = value.strip()
    return headers


_PARAMETER = re.compile(r';\s*([a-z0-9*_-]+)\s*=\s*(?:"((?:\\"|[^"])*)"|([^\s;"]+))', re.IGNORECASE)


def _disposition(value: str) -> tuple[str, str]:
    """The field's name and the file's name."""
    if value.partition(";")[0].strip().lower() != "form-data":
        raise _malformed("a part is not form-data")
    parameters = {match[1].lower(): _unescape(match[2] or match[3] or "") for match in _PARAMETER.finditer(value)}
    if not parameters.get("name"):
        raise _malformed("a part has no name")
    extended = parameters.get("filename*", "")
    if extended.lower().startswith("utf-8''"):
        return parameters["name"], unquote(extended[7:])
    return parameters["name"], parameters.get("filename", "")


def _unescape(text: str) -> str:
    # Browsers write %22 for a quotation mark, older clients a backslash before it; other backslashes are Windows paths.
    return text.replace('\\"', '"').replace("%22", '"')


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _malformed(f"{what} is not UTF-8") from None


def _preface_too_long() -> S3Error:
    return S3Error("MaxPostPreDataLengthExceededError", extra={"MaxPostPreDataLengthBytes": str(MAX_PREFACE_BYTES)})


def _malformed(what: str) -> S3Error:
    return S3Error(
        "MalformedPOSTRequest", f"The body of your POST request is not well-formed multipart/form-data: {what}."
    )
