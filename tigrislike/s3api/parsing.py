"""Requests in: from query, headers and body to the model's input members, typed and checked.

`compile_input` turns the input shape of one operation into tables keyed by what is on the wire, so that a request is
parsed by walking what it carries (a dozen headers) and not what it might carry (fifty members).

Values come out as str, int, bool, aware UTC datetime, list or dict, under the model's member names. `Expires` and
`ResponseExpires` stay text: S3 keeps and returns them as they were written. `If-Modified-Since` and
`If-Unmodified-Since` that are no dates are ignored, as RFC 9110 asks. Enumerations, integers, booleans and dates are
checked with S3's own errors; the small tables below hold its wording where it has one.

What this module does not do: it does not read streaming payloads, compare digests, or judge what needs the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.text import decode_header, parse_timestamp, utf8_header
from tigrislike.s3api.xml import Element, read_document

Shapes = Mapping[str, Mapping[str, Any]]
Convert = Callable[[str], Any]

METADATA_PREFIX: Final = "x-amz-meta-"

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_RANGES: Final = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}

# --- S3's wording, where it has one ----------------------------------------------------------------------------------

# Wire name -> (lowest, highest, the argument's name in the error, message).
_BOUNDS: Final[dict[str, tuple[int, int, str, str]]] = {
    "max-keys": (0, 2**31 - 1, "maxKeys", "Argument maxKeys must be an integer between 0 and 2147483647"),
    "max-uploads": (0, 2**31 - 1, "max-uploads", "Argument max-uploads must be an integer between 0 and 2147483647"),
    "max-parts": (0, 2**31 - 1, "max-parts", "Argument max-parts must be an integer between 0 and 2147483647"),
    "part-number-marker": (
        0,
        2**31 - 1,
        "part-number-marker",
        "Argument part-number-marker must be an integer between 0 and 2147483647",
    ),
    "x-amz-max-parts": (0, 2**31 - 1, "x-amz-max-parts", "x-amz-max-parts must be between 0 and 2147483647"),
    "x-amz-part-number-marker": (
        0,
        2**31 - 1,
        "x-amz-part-number-marker",
        "x-amz-part-number-marker must be between 0 and 2147483647",
    ),
    "max-buckets": (1, 10_000, "max-buckets", "Argument max-buckets must be an integer between 1 and 10000"),
    "partNumber": (1, 10_000, "partNumber", "Part number must be an integer between 1 and 10000, inclusive"),
}

# Wire name of an enumeration -> (code, message); InvalidArgument also tells the argument's name and value.
_REFUSALS: Final[dict[str, tuple[str, str]]] = {
    "encoding-type": ("InvalidArgument", "Invalid Encoding Method specified in Request"),
    "x-amz-checksum-algorithm": (
        "InvalidRequest",
        "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [{allowed}]",
    ),
    "x-amz-checksum-type": ("InvalidRequest", "Value for x-amz-checksum-type header is invalid."),
    "x-amz-metadata-directive": ("InvalidArgument", "Unknown metadata directive."),
    "x-amz-object-attributes": ("InvalidArgument", "Invalid attribute name specified."),
    "x-amz-object-lock-legal-hold": ("InvalidArgument", "Legal Hold must be either of 'ON' or 'OFF'"),
    "x-amz-object-lock-mode": ("InvalidArgument", "Unknown wormMode directive."),
    "x-amz-optional-object-attributes": ("InvalidArgument", "Invalid attribute name specified."),
    "x-amz-sdk-checksum-algorithm": ("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid."),
    "x-amz-server-side-encryption": ("InvalidArgument", "The encryption method specified is not supported"),
    "x-amz-storage-class": ("InvalidStorageClass", "The storage class you specified is not valid"),
    "x-amz-tagging-directive": ("InvalidArgument", "Unknown tagging directive."),
}
_ANY_CASE: Final = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-sdk-checksum-algorithm"})

# Enumerations whose values are not S3's to list: a location is whatever regions this deployment has.
_OPEN_ENUMS: Final = frozenset({"BucketLocationConstraint"})
_XML_REFUSALS: Final = {"Event": ("InvalidArgument", "A specified event is not supported for notifications.")}

_RAW_TIMESTAMPS: Final = frozenset({"expires", "response-expires", "x-amz-fwd-header-expires"})
_LENIENT_TIMESTAMPS: Final = frozenset({"if-modified-since", "if-unmodified-since"})
_UTF8_HEADERS: Final = frozenset(
    {"x-amz-copy-source", "x-amz-rename-source", "x-amz-tagging", "x-amz-website-redirect-location"}
)
_MAY_NOT_BE_EMPTY: Final = {
    "versionId": "Version id cannot be the empty string",
    "version-id-marker": "A version-id marker cannot be empty.",
}

# Required in truth though not in the model. Shape -> ((member, error where it is missing), ...).
_REQUIRED: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "CompletedMultipartUpload": (("Parts", "MalformedXML"),),
    "CompletedPart": (("PartNumber", "MalformedXML"), ("ETag", "MalformedXML")),
    "VersioningConfiguration": (("Status", "IllegalVersioningConfigurationException"),),
}
_LIST_LIMITS: Final = {"ObjectIdentifierList": 1000, "CompletedPartList": 10_000}
_BODY_NEEDED: Final = {"CompleteMultipartUpload": ("InvalidRequest", "You must specify at least one part")}


@dataclass(frozen=True, slots=True)
class Input:
    """How one operation reads a request.

    Attributes:
        query, headers: wire name -> (member, convert or None); header names in lower case.
        metadata: the member that collects `x-amz-meta-` headers, "" where there is none.
        required: (member, error) pairs checked after everything was read.
        body: the member that the body becomes, "" where the body is the members themselves; None: no parsed body.
        document: the shape of an XML body; None with `body`: the body is text.
        roots: the names that the document element may have.
        body_missing: the error of an empty body, None where it may be empty.
    """

    bucket: bool
    key: bool
    query: dict[str, tuple[str, Convert | None]]
    headers: dict[str, tuple[str, Convert | None]]
    metadata: str
    required: tuple[tuple[str, Callable[[], S3Error]], ...]
    body: str | None
    document: Element | None
    roots: frozenset[str]
    body_missing: tuple[str, str | None] | None

    def parse(
        self, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> dict[str, Any]:
        """The input members of a request; see `Operation.parse`."""
        params: dict[str, Any] = {}
        if self.bucket:
            params["Bucket"] = bucket
            if self.key:
                params["Key"] = key
        if query:
            known = self.query
            for name, value in query.items():
                field = known.get(name)
                if field is not None:
                    member, convert = field
                    if convert is None:
                        params[member] = value
                    elif (converted := convert(value)) is not None:
                        params[member] = converted
        known = self.headers
        metadata: dict[str, str] | None = None
        for name, value in headers.items():
            field = known.get(name)
            if field is not None:
                member, convert = field
                if convert is None:
                    params[member] = value
                elif (converted := convert(value)) is not None:
                    params[member] = converted
            elif self.metadata and name.startswith(METADATA_PREFIX):
                if metadata is None:
                    metadata = params[self.metadata] = {}
                metadata[name[11:]] = decode_header(value)
        if self.body is not None:
            self._parse_body(params, body)
        for member, error in self.required:
            if member not in params:
                raise error()
        return params

    def _parse_body(self, params: dict[str, Any], body: bytes) -> None:
        if not body or body.isspace():
            if self.body_missing is not None:
                raise S3Error(*self.body_missing)
        elif self.document is None:
            try:
                params[self.body or ""] = body.decode("utf-8")
            except UnicodeDecodeError:
                raise S3Error("MalformedPolicy") from None
        else:
            document = read_document(self.document, self.roots, body)
            if self.body:
                params[self.body] = document
            else:
                params.update(document)


def compile_input(name: str, model: Mapping[str, Any], shapes: Shapes) -> Input:
    """The reader of the operation `name`.

    Args:
        model: the operation's entry in the service model.
        shapes: the service model's shapes.
    """
    reference: Mapping[str, Any] = model.get("input", {})
    shape: Mapping[str, Any] = {**shapes[reference["shape"]], **reference} if reference else {"members": {}}
    query: dict[str, tuple[str, Convert | None]] = {}
    headers: dict[str, tuple[str, Convert | None]] = {}
    metadata = ""
    uri: set[str] = set()
    in_body: list[str] = []
    missing: dict[str, Callable[[], S3Error]] = {}
    for member, use in shape["members"].items():
        merged = {**shapes[use["shape"]], **use}
        location = use.get("location")
        wire = use.get("locationName", member)
        if location == "querystring":
            query[wire] = (member, _wire_convert(merged, wire, shapes))
            missing[member] = _missing_query(wire)
        elif location == "header":
            wire = wire.lower()
            headers[wire] = (member, _wire_convert(merged, wire, shapes))
            missing[member] = _missing_header(wire)
        elif location == "headers":
            metadata = member
        elif location == "uri":
            uri.add(member)
        else:
            in_body.append(member)
    if "Key" in uri and "versionId" not in query:
        query["versionId"] = ("", _refuse_version)
    if name == "ListObjects":
        query["list-type"] = ("", _check_list_type)

    body: str | None = None
    document: Element | None = None
    roots: frozenset[str] = frozenset()
    body_missing: tuple[str, str | None] | None = None
    payload = shape.get("payload")
    if payload is not None:
        use = shape["members"][payload]
        merged = {**shapes[use["shape"]], **use}
        if merged["type"] == "structure" and not merged.get("eventstream"):
            body = payload
            document = _element("", use, shapes, {})
            roots = frozenset((use.get("locationName", payload), use["shape"]))
        elif merged["type"] == "string":
            body = payload
        if payload in shape.get("required", ()):
            body_missing = ("MissingRequestBodyError", None)
    elif in_body:
        body = ""
        document = _structure("", shape, shapes, {})
        roots = frozenset((shape.get("locationName", reference["shape"]), reference["shape"]))
        body_missing = ("MissingRequestBodyError", None)
    body_missing = _BODY_NEEDED.get(name, body_missing)
    return Input(
        bucket="Bucket" in uri,
        key="Key" in uri,
        query=query,
        headers=headers,
        metadata=metadata,
        required=tuple((member, missing[member]) for member in shape.get("required", ()) if member in missing),
        body=body,
        document=document,
        roots=roots,
        body_missing=body_missing,
    )


# --- query parameters and headers ------------------------------------------------------------------------------------


def _wire_convert(shape: Mapping[str, Any], wire: str, shapes: Shapes) -> Convert | None:
    kind = shape["type"]
    if kind in _RANGES:
        return _integer(wire, *_RANGES[kind])
    if kind == "boolean":
        return _boolean(wire)
    if kind == "timestamp":
        if wire in _RAW_TIMESTAMPS:
            return _response_header(wire) if wire == "response-expires" else None
        return _timestamp(wire)
    if kind == "list":
        item = shapes[shape["member"]["shape"]]
        return _list(None if "enum" not in item else _enumeration(item["enum"], wire))
    if "enum" in shape and shape["shape"] not in _OPEN_ENUMS:
        return _enumeration(shape["enum"], wire)
    if wire.startswith("response-"):
        return _response_header(wire)
    if wire in _UTF8_HEADERS:
        return utf8_header
    if wire in _MAY_NOT_BE_EMPTY:
        return _not_empty(wire)
    return None


def _integer(wire: str, low: int, high: int) -> Convert:
    low, high, argument, message = _BOUNDS.get(wire, (low, high, wire, ""))
    unparsable = message if wire == "partNumber" else f"Provided {wire} not an integer or within integer range"

    def convert(value: str) -> int:
        if _INTEGER.fullmatch(value) is None:
            raise invalid_argument(unparsable, wire, value)
        number = int(value)
        if not low <= number <= high:
            raise invalid_argument(message if message and number < 2**31 else unparsable, argument, value)
        return number

    return convert


def _boolean(wire: str) -> Convert:
    def convert(value: str) -> bool:
        lower = value.lower()
        if lower == "true":
            return True
        if lower == "false":
            return False
        raise invalid_argument(f"{wire} must be true or false", wire, value)

    return convert


def _timestamp(wire: str) -> Convert:
    lenient = wire in _LENIENT_TIMESTAMPS

    def convert(value: str) -> datetime | None:
        try:
            return parse_timestamp(value)
        except ValueError:
            if lenient:
                return None
            raise invalid_argument(f"{wire} is not a valid date", wire, value) from None

    return convert


def _enumeration(allowed: Iterable[str], wire: str) -> Convert:
    values = tuple(allowed)
    fold = wire in _ANY_CASE
    spelled = {(value.upper() if fold else value): value for value in values}
    code, message = _REFUSALS.get(wire, ("InvalidArgument", f"The value specified for {wire} is not valid"))
    message = message.format(allowed=", ".join(values))

    def convert(value: str) -> str | None:
        known = spelled.get(value.upper() if fold else value)
        if known is not None:
            return known
        if not value:
            return None  # an empty header says nothing
        if code == "InvalidArgument":
            raise invalid_argument(message, wire, value)
        raise S3Error(code, message, extra={"StorageClassRequested": value} if code == "InvalidStorageClass" else None)

    return convert


_LIST_ITEM = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^,]*))\s*(?:,|$)')


def _list(item: Convert | None) -> Convert:
    def convert(value: str) -> list[Any] | None:
        items: list[Any] = []
        at = 0
        while at < len(value):
            match = _LIST_ITEM.match(value, at)
            if match is None:  # text after a closing quote; keep it, the enumeration or the operation judges
                word, at = value[at:], len(value)
            else:
                word, at = match[1].replace('\\"', '"') if match[1] is not None else match[2].strip(), match.end()
            converted = item(word) if item is not None else word
            if converted:
                items.append(converted)
        return items or None

    return convert


def _response_header(wire: str) -> Convert:
    """`response-*` overrides become header values: what no header can hold is refused as S3 refuses it."""

    def convert(value: str) -> str:
        if not (value.isascii() and value.isprintable()):
            try:
                value.encode("latin-1")
            except UnicodeEncodeError:
                raise invalid_argument("Header value cannot be represented using ISO-8859-1.", wire, value) from None
            if any(character < " " or character == "\x7f" for character in value):
                raise invalid_argument("Header value contains control characters.", wire, value)
        return value

    return convert


def _not_empty(wire: str) -> Convert:
    def convert(value: str) -> str:
        if not value:
            raise invalid_argument(_MAY_NOT_BE_EMPTY[wire], wire, value)
        return value

    return convert


def _refuse_version(value: str) -> None:
    raise invalid_argument("This operation does not accept a version-id.", "versionId", value)


def _check_list_type(value: str) -> None:
    if value not in ("", "1"):
        raise invalid_argument("Invalid List Type specified in Request", "list-type", value)


def _missing_query(wire: str) -> Callable[[], S3Error]:
    return lambda: invalid_argument(f"The query parameter {wire} is required", wire, "")


def _missing_header(wire: str) -> Callable[[], S3Error]:
    if wire == "x-amz-object-attributes":
        return lambda: S3Error(
            "InvalidRequest",
            "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty",
        )
    return lambda: S3Error("MissingSecurityHeader", extra={"MissingHeaderName": wire})


# --- XML bodies ------------------------------------------------------------------------------------------------------

_Children = dict[str, dict[str, Element]]


def _element(member: str, use: Mapping[str, Any], shapes: Shapes, known: _Children) -> Element:
    """What one use of a shape looks like inside its parent element."""
    shape = {**shapes[use["shape"]], **use}
    kind = shape["type"]
    if kind == "structure":
        return _structure(member, shape, shapes, known)
    if kind == "list":
        item = {**shapes[shape["member"]["shape"]], **shape["member"]}
        if shape.get("flattened"):
            element = _element(member, shape["member"], shapes, known)
            element.repeated = True
        else:
            element = Element(member)
            element.is_list = True
            element.children = {}
            element.add(item.get("locationName", "member"), _element("", shape["member"], shapes, known))
        element.limit = _LIST_LIMITS.get(use["shape"], 0)
        return element
    element = Element(member)
    element.convert = _text_convert(shape)
    return element


def _structure(member: str, shape: Mapping[str, Any], shapes: Shapes, known: _Children) -> Element:
    element = Element(member)
    name = shape.get("shape", "")
    required = _REQUIRED.get(name, ())
    named = {code_member for code_member, _ in required}
    located = {inner for inner, use in shape["members"].items() if "location" in use}
    element.required = required + tuple(
        (inner, "MalformedXML") for inner in shape.get("required", ()) if inner not in named and inner not in located
    )
    for inner, use in shape["members"].items():
        if use.get("xmlAttribute"):
            convert = _text_convert({**shapes[use["shape"]], **use})
            element.attributes[use["locationName"].rpartition(":")[2]] = (inner, convert)
    children = known.get(name)
    if children is not None:
        element.children = children
        return element
    element.children = known[name] = {}
    for inner, use in shape["members"].items():
        if inner in located or use.get("xmlAttribute"):
            continue
        element_name = {**shapes[use["shape"]], **use}.get("locationName", inner)
        # Deprecated notifications have a list and its older single form under one name: the list holds both.
        present = element.children.get(element_name)
        if present is None or not present.repeated:
            element.add(element_name, _element(inner, use, shapes, known))
    return element


def _text_convert(shape: Mapping[str, Any]) -> Convert | None:
    kind = shape["type"]
    if kind in _RANGES:
        low, high = _RANGES[kind]

        def integer(value: str) -> int:
            value = value.strip()
            if _INTEGER.fullmatch(value) is None or not low <= int(value) <= high:
                raise S3Error("MalformedXML")
            return int(value)

        return integer
    if kind == "boolean":
        return _xml_boolean
    if kind == "timestamp":
        return _xml_timestamp
    if kind != "string":
        raise TypeError(f"no way to read a {kind} from XML")
    if "enum" in shape and shape["shape"] not in _OPEN_ENUMS:
        allowed = frozenset(shape["enum"])
        code, message = _XML_REFUSALS.get(shape["shape"], ("MalformedXML", None))

        def enumeration(value: str) -> str:
            value = value.strip()
            if value not in allowed:
                raise S3Error(code, message)
            return value

        return enumeration
    return _xml_not_empty if shape.get("min", 0) > 0 else None


def _xml_boolean(value: str) -> bool:
    word = value.strip().lower()
    if word in ("true", "1"):
        return True
    if word in ("false", "0"):
        return False
    raise S3Error("MalformedXML")


def _xml_timestamp(value: str) -> datetime:
    try:
        return parse_timestamp(value.strip())
    except ValueError:
        raise S3Error("MalformedXML") from None


def _xml_not_empty(value: str) -> str:
    if not value:
        raise S3Error("MalformedXML")
    return value
