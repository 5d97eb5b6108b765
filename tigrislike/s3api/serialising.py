"""Responses out: from the model's output members to status, headers and XML body.

The body of an operation is written by a Python function generated from its output shape the first time it is needed:
straight-line code with every tag a literal, because a LIST writes a thousand rows. What the service model leaves out,
the names of the document elements, is one rule and one table. Members that are absent or None are not written.

Timestamps are int nanoseconds or datetimes; a str stands for itself. Streaming payloads are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tigrislike.s3api.text import encode_header, escape, http_date, iso8601, plain_header, url_encode_key
from tigrislike.s3api.xml import S3_NAMESPACE

__all__ = ["Header", "Output", "Writers", "url_encode_key"]

Shapes = Mapping[str, Mapping[str, Any]]
Header = tuple[bytes, bytes]

_DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
XML_TYPE: Final[Header] = (b"content-type", b"application/xml")
JSON_TYPE: Final[Header] = (b"content-type", b"application/json")

# The document element of each output whose members are the document; the model does not carry these names. Where the
# payload is a structure, its document element is that member's name, and this table is not asked.
_ROOTS: Final[dict[str, str]] = {
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "CreateSession": "CreateSessionResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAccelerateConfiguration": "AccelerateConfiguration",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketCors": "CORSConfiguration",
    "GetBucketLifecycle": "LifecycleConfiguration",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketLocation": "LocationConstraint",
    "GetBucketLogging": "BucketLoggingStatus",
    "GetBucketNotification": "NotificationConfiguration",
    "GetBucketNotificationConfiguration": "NotificationConfiguration",
    "GetBucketRequestPayment": "RequestPaymentConfiguration",
    "GetBucketTagging": "Tagging",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetBucketWebsite": "WebsiteConfiguration",
    "GetObjectAcl": "AccessControlPolicy",
    "GetObjectAttributes": "GetObjectAttributesResponse",
    "GetObjectTagging": "Tagging",
    "ListBucketAnalyticsConfigurations": "ListBucketAnalyticsConfigurationResult",
    "ListBucketIntelligentTieringConfigurations": "ListBucketIntelligentTieringConfigurationsOutput",
    "ListBucketInventoryConfigurations": "ListInventoryConfigurationsResult",
    "ListBucketMetricsConfigurations": "ListMetricsConfigurationsResult",
    "ListBuckets": "ListAllMyBucketsResult",
    "ListDirectoryBuckets": "ListAllMyDirectoryBucketsResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListObjectVersions": "ListVersionsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "ListParts": "ListPartsResult",
}
# The one document that is a single value: operation -> member.
_BARE_ROOTS: Final = {"GetBucketLocation": "LocationConstraint"}

_Encode = Callable[[Any], bytes]


class Output:
    """How one operation writes a response.

    Attributes:
        status: the HTTP status of success.
    """

    __slots__ = ("_body_type", "_headers", "_name", "_write", "status")

    def __init__(self, name: str, model: Mapping[str, Any], shapes: Shapes, writers: Writers) -> None:
        self._name = name
        self.status: int = model["http"].get("responseCode", 200)
        self._body_type: Header | None = None
        self._write: Callable[[Mapping[str, Any]], str | None] | None = None
        shape_name: str = model["output"]["shape"] if "output" in model else ""
        shape: Mapping[str, Any] = shapes[shape_name] if shape_name else {"members": {}}
        # None: a member of the body. "": the prefixed map of user metadata.
        self._headers: dict[str, tuple[bytes, _Encode] | None] = {}
        in_body = False
        for member, use in shape["members"].items():
            location = use.get("location")
            if location == "header":
                merged = {**shapes[use["shape"]], **use}
                self._headers[member] = (use["locationName"].lower().encode("ascii"), _header_encode(merged))
            elif location == "headers":
                self._headers[member] = (use["locationName"].lower().encode("ascii"), encode_header)
            else:
                self._headers[member] = None
                in_body = True
        payload = shape.get("payload")
        if payload is not None:
            use = shape["members"][payload]
            merged = {**shapes[use["shape"]], **use}
            if merged["type"] == "structure" and not merged.get("eventstream"):
                self._body_type = XML_TYPE
                self._write = writers.document(use.get("locationName", payload), use["shape"], payload)
            elif merged["type"] == "string":
                self._body_type = JSON_TYPE
                self._write = _text_payload(payload)
        elif name in _BARE_ROOTS:
            self._body_type = XML_TYPE
            self._write = _bare_document(_ROOTS[name], _BARE_ROOTS[name])
        elif in_body:
            self._body_type = XML_TYPE
            self._write = writers.document(_ROOTS.get(name, f"{name}Result"), shape_name, None)

    def headers(self, output: Mapping[str, Any]) -> list[Header]:
        """The header members of `output`, names in lower case.

        Raises:
            TypeError: `output` has a member that the model does not know; a mistake of the operation.
        """
        headers: list[Header] = []
        known = self._headers
        for member, value in output.items():
            if value is None:
                continue
            try:
                field = known[member]
            except KeyError:
                raise TypeError(f"the output of {self._name} has no member {member!r}") from None
            if field is None:
                continue
            name, encode = field
            if type(value) is dict:
                headers += [(name + key.encode("latin-1", "replace"), encode(text)) for key, text in value.items()]
            else:
                headers.append((name, encode(value)))
        return headers

    def serialise(self, output: Mapping[str, Any], status: int | None = None) -> tuple[int, list[Header], bytes]:
        """`(status, headers, body)`; see `Operation.serialise`."""
        headers = self.headers(output)
        body = b""
        if self._write is not None:
            written = self._write(output)
            if written is not None:
                assert self._body_type is not None
                headers.append(self._body_type)
                body = written.encode("utf-8", "xmlcharrefreplace")
        return status or self.status, headers, body


def _header_encode(shape: Mapping[str, Any]) -> _Encode:
    kind = shape["type"]
    if kind == "boolean":
        return lambda value: b"true" if value else b"false"
    if kind in ("integer", "long"):
        return lambda value: str(value).encode("ascii")
    if kind == "timestamp":
        if shape.get("timestampFormat", "rfc822") == "iso8601":
            return lambda value: plain_header(iso8601(value))
        return lambda value: plain_header(http_date(value))
    return plain_header


def _text_payload(member: str) -> Callable[[Mapping[str, Any]], str | None]:
    return lambda output: output.get(member)


def _bare_document(root: str, member: str) -> Callable[[Mapping[str, Any]], str]:
    def write(output: Mapping[str, Any]) -> str:
        return f'{_DECLARATION}<{root} xmlns="{S3_NAMESPACE}">{escape(output.get(member) or "")}</{root}>'

    return write


# --- generated writers -----------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """The value of a list member whose items all have the same members: their names once, then the values of each row.

    None stands for an absent member. A page of a thousand keys costs a third of what a dict for each would.
    """

    members: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]


class _TableWriter:
    """Writes a `Table` column by column, because a column has what a row has not: sameness.

    A value that stands all the way down becomes text of the row's template, character data is searched for special
    characters once, and what is left of a row is one formatting of a few values.
    """

    def __init__(self, writers: Writers, shape: str, name: str) -> None:
        self._writers = writers
        self._shape = shape
        self._name = name

    def __call__(self, table: Table, append: Callable[[str], None]) -> None:
        if not table.rows:
            return
        given = dict(zip(table.members, zip(*table.rows, strict=True), strict=True))
        template = [f"<{self._name}>"]
        varying: list[Sequence[Any]] = []
        for member, element, scalar in self._writers.columns(self._shape):
            column = given.pop(member, None)
            if column is None:
                continue
            first = column[0]
            if column.count(first) == len(column):
                if first is not None:
                    template.append(element(first).replace("%", "%%"))
            elif scalar is None or None in column:
                template.append("%s")
                varying.append(["" if value is None else element(value) for value in column])
            else:
                name, texts = scalar
                template.append(f"<{name}>%s</{name}>")
                varying.append(texts(column))
        if given:
            raise TypeError(f"{self._shape} has no member {', '.join(given)}")
        template.append(f"</{self._name}>")
        row = "".join(template)
        if varying:
            append("".join([row % values for values in zip(*varying, strict=True)]))
        else:
            append((row % ()) * len(table.rows))


def _escape_all(column: Sequence[str]) -> Sequence[str]:
    """Each of `column` as character data."""
    together = "".join(column)
    if together.isprintable() and not ("&" in together or "<" in together or ">" in together):
        return [value.replace('"', "&quot;") for value in column] if '"' in together else column
    return [escape(value) for value in column]


def _unchanged(column: Sequence[Any]) -> Sequence[Any]:
    return column


def _iso8601_all(column: Sequence[Any]) -> Sequence[str]:
    return [iso8601(moment) for moment in column]


Column = tuple[str, Callable[[Any], str], tuple[str, Callable[[Sequence[Any]], Sequence[Any]]] | None]
"""A member, what writes one value as an element, and for plain scalars the element's name and what makes the texts."""


class Writers:
    """The generated functions, one per structure, shared by all operations of a model.

    `write_X(o, a)` passes the inside of structure X, piece by piece, to `a`.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._names: set[str] = set()
        self._columns: dict[str, list[Column]] = {}
        self._namespace: dict[str, Any] = {
            "escape": escape,
            "http_date": http_date,
            "iso8601": iso8601,
            "Table": Table,
        }

    def document(self, root: str, shape: str, payload: str | None) -> Callable[[Mapping[str, Any]], str | None]:
        """A function from output members to a document.

        Args:
            root: the name of the document element.
            shape: the structure that it holds.
            payload: the member whose value that is, None where it is the output itself. Absent: no document.
        """
        self._structure(shape)
        write = self._namespace[f"write_{shape}"]
        attributes = self._attributes_of(self._shapes[shape])
        assert not attributes, f"no document element of the model has attributes, {shape} does"
        opening, closing = f'{_DECLARATION}<{root} xmlns="{S3_NAMESPACE}">', f"</{root}>"

        def document(output: Mapping[str, Any]) -> str | None:
            held = output if payload is None else output.get(payload)
            if held is None:
                return None
            pieces = [opening]
            write(held, pieces.append)
            pieces.append(closing)
            return "".join(pieces)

        return document

    def _structure(self, shape_name: str) -> None:
        if shape_name in self._names:
            return
        self._names.add(shape_name)
        lines = [f"def write_{shape_name}(o, a):", " get = o.get"]
        for member, use in self._shapes[shape_name]["members"].items():
            if "location" in use or use.get("xmlAttribute"):
                continue
            shape = {**self._shapes[use["shape"]], **use}
            lines.append(f" v = get({member!r})")
            if shape["type"] != "list":
                lines.append(" if v is not None:")
                lines += self._item(shape, shape.get("locationName", member), "v", "  ")
                continue
            item = {**self._shapes[shape["member"]["shape"]], **shape["member"]}
            if shape.get("flattened"):
                lines.append(" if v:")
                # As botocore reads it: the item's own name, where it has one, before that of the list.
                name = item.get("locationName", shape.get("locationName", member))
                if item["type"] == "structure" and self._is_row(item):
                    self._namespace[f"table_{shape_name}_{member}"] = _TableWriter(self, item["shape"], name)
                    lines += ["  if type(v) is Table:", f"   table_{shape_name}_{member}(v, a)", "   v = ()"]
                lines.append("  for e in v:")
                lines += self._item(item, name, "e", "   ")
            else:
                name = shape.get("locationName", member)
                lines += [" if v is not None:", f"  a({f'<{name}>'!r})", "  for e in v:"]
                lines += self._item(item, item.get("locationName", "member"), "e", "   ")
                lines.append(f"  a({f'</{name}>'!r})")
        exec("\n".join(lines), self._namespace)  # noqa: S102 - built from the service model alone

    def _item(self, shape: Mapping[str, Any], name: str, variable: str, indent: str) -> list[str]:
        """Lines that write the value in `variable` as an element."""
        kind = shape["type"]
        if kind == "structure":
            self._structure(shape["shape"])
            attributes = self._attributes_of(shape)
            if attributes:
                namespace = shape["xmlNamespace"]
                start = f'<{name} xmlns:{namespace["prefix"]}="{namespace["uri"]}"'
                opening = [f"{indent}a({start!r})"]
                for member, attribute in attributes:
                    start = f' {attribute}="'
                    value = f"{variable}.get({member!r})"
                    opening.append(f"{indent}if {value} is not None: a({start!r} + escape({value}) + '\"')")
                opening.append(f"{indent}a('>')")
            else:
                opening = [f"{indent}a({f'<{name}>'!r})"]
            return [*opening, f"{indent}write_{shape['shape']}({variable}, a)", f"{indent}a({f'</{name}>'!r})"]
        return [f'{indent}a(f"<{name}>{{{self._scalar(shape, name, variable)}}}</{name}>")']

    def columns(self, shape_name: str) -> list[Column]:
        """How a `Table` writes the members of a structure, in the model's order."""
        columns = self._columns.get(shape_name)
        if columns is None:
            columns = self._columns[shape_name] = [
                self._column(member, {**self._shapes[use["shape"]], **use})
                for member, use in self._shapes[shape_name]["members"].items()
            ]
        return columns

    def _column(self, member: str, shape: Mapping[str, Any]) -> Column:
        name = shape.get("locationName", member)
        if shape["type"] == "list":
            item = {**self._shapes[shape["member"]["shape"]], **shape["member"]}
            name = item.get("locationName", name)
            lines = ["for e in v:", *self._item(item, name, "e", "  ")]
        else:
            lines = self._item(shape, name, "v", "")
        source = "\n ".join(["def element(v):", "pieces = []", "a = pieces.append", *lines, "return ''.join(pieces)"])
        namespace = dict(self._namespace)
        exec(source, namespace)  # noqa: S102 - built from the service model alone
        kind = shape["type"]
        texts: Callable[[Sequence[Any]], Sequence[Any]] | None = None
        if kind == "string":
            texts = _escape_all
        elif kind in ("integer", "long"):
            texts = _unchanged
        elif kind == "timestamp" and shape.get("timestampFormat") != "rfc822":
            texts = _iso8601_all
        return member, namespace["element"], None if texts is None else (name, texts)

    def _is_row(self, shape: Mapping[str, Any]) -> bool:
        """Whether a `Table` can hold a structure: no attributes, and no lists but flattened ones of scalars."""
        for use in shape["members"].values():
            member = {**self._shapes[use["shape"]], **use}
            if use.get("xmlAttribute") or (member["type"] == "structure" and self._attributes_of(member)):
                return False
            if member["type"] == "list":
                item = self._shapes[member["member"]["shape"]]
                if not member.get("flattened") or item["type"] in ("structure", "list"):
                    return False
        return True

    def _scalar(self, shape: Mapping[str, Any], name: str, variable: str) -> str:
        """An expression for the character data of the scalar value in `variable`."""
        kind = shape["type"]
        if kind == "string":
            text = f"escape({variable})"
            if "enum" in shape:  # most values need no more than a look
                text = f"{variable} if {variable}.isidentifier() else {text}"
        elif kind == "boolean":
            text = f"'true' if {variable} else 'false'"
        elif kind in ("integer", "long"):
            text = variable
        elif kind == "timestamp":
            text = f"{'http_date' if shape.get('timestampFormat') == 'rfc822' else 'iso8601'}({variable})"
        else:
            raise TypeError(f"{name}: no way to write a {kind}")
        return text

    def _attributes_of(self, shape: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(member, use["locationName"]) for member, use in shape["members"].items() if use.get("xmlAttribute")]
