"""The S3 protocol, compiled from botocore's service model.

`load_protocol` reads the model of the installed botocore, and nothing else of botocore, and makes one `Operation` for
each operation in it. Routing tables are built at once; the reader and the writer of an operation are compiled when it
is first used. Operations work on plain dictionaries whose keys are the model's member names.

What this module does not do: no I/O, no authentication, no digests, no streaming payloads, and it does not know which
operations this server performs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from botocore.loaders import Loader

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.extensions import extend
from tigrislike.s3api.parsing import Input, compile_input
from tigrislike.s3api.routing import Router
from tigrislike.s3api.serialising import Header, Output, Writers

Model = Mapping[str, Any]
Shapes = Mapping[str, Mapping[str, Any]]

_MIB: Final = 1024 * 1024
DEFAULT_MAX_BODY: Final = _MIB
# A thousand keys of 1024 bytes with references in them; ten thousand parts with ETag and checksum, indented.
_MAX_BODY: Final = {"DeleteObjects": 4 * _MIB, "CompleteMultipartUpload": 8 * _MIB}


class Operation:
    """One operation of the model.

    Attributes:
        name: as in the model, such as `PutObject`.
        method: the HTTP method.
        level: what it addresses: `service`, `bucket` or `object`.
        uri_query: the query that the model writes into the path; a flag has the value "".
        required_query, required_headers: what a request must carry (headers in lower case).
        status: the HTTP status of success.
        streams_body: the request's body is the content of an object or part, not to be given to `parse`.
        has_body: a body means something to this operation, streamed or parsed.
        max_body: the most bytes of a parsed body.
        checksum_required: the request must carry Content-MD5 or a checksum of its body.
        checksum_algorithm_member: the input member that names the request's checksum algorithm, "" where there is none.
        checksum_mode_member: the input member by which a response's checksum is asked for, "" where there is none.
        response_checksums: the algorithms that a response may carry.
    """

    __slots__ = (
        "_input",
        "_model",
        "_output",
        "_shapes",
        "_writers",
        "checksum_algorithm_member",
        "checksum_mode_member",
        "checksum_required",
        "has_body",
        "level",
        "max_body",
        "method",
        "name",
        "required_headers",
        "required_query",
        "response_checksums",
        "status",
        "streams_body",
        "uri_query",
    )

    def __init__(self, name: str, model: Model, shapes: Shapes, writers: Writers) -> None:
        self.name = name
        self._model = model
        self._shapes = shapes
        self._writers = writers
        self._input: Input | None = None
        self._output: Output | None = None
        http = model["http"]
        path, _, uri_query = http["requestUri"].partition("?")
        self.method: str = http["method"]
        self.level = "object" if "{Key+}" in path else "bucket" if "{Bucket}" in path else "service"
        self.uri_query = dict(parse_qsl(uri_query, keep_blank_values=True))
        self.status: int = http.get("responseCode", 200)

        shape: Model = shapes[model["input"]["shape"]] if "input" in model else {"members": {}}
        members = shape["members"]
        required = [members[member] for member in shape.get("required", ())]
        self.required_query = frozenset(use["locationName"] for use in required if use.get("location") == "querystring")
        self.required_headers = frozenset(
            use["locationName"].lower() for use in required if use.get("location") == "header"
        )
        payload = shape.get("payload")
        self.streams_body = payload is not None and shapes[members[payload]["shape"]]["type"] == "blob"
        self.has_body = any("location" not in use for use in members.values())
        self.max_body = _MAX_BODY.get(name, DEFAULT_MAX_BODY)

        checksum = model.get("httpChecksum", {})
        self.checksum_required = bool(checksum.get("requestChecksumRequired", model.get("httpChecksumRequired", False)))
        self.checksum_algorithm_member: str = checksum.get("requestAlgorithmMember", "")
        self.checksum_mode_member: str = checksum.get("requestValidationModeMember", "")
        self.response_checksums: tuple[str, ...] = tuple(checksum.get("responseAlgorithms", ()))

    def __repr__(self) -> str:
        return f"<Operation {self.name}>"

    def parse(
        self, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes = b""
    ) -> dict[str, Any]:
        """The input members of a request.

        Args:
            bucket, key: decoded, "" where the operation has none.
            query: decoded names and values; a bare flag has the value "".
            headers: lower-case name -> value decoded as latin-1.
            body: the whole body, b"" where `streams_body`.

        Returns:
            member name -> str, int, bool, datetime (aware, UTC), list or dict. Absent members are absent.

        Raises:
            S3Error: InvalidArgument, MalformedXML, MissingRequestBodyError, MaxMessageLengthExceeded and the others of
                `parsing` and `xml`; nothing else, whatever the request holds.
        """
        if len(body) > self.max_body:
            raise S3Error("MaxMessageLengthExceeded", extra={"MaxMessageLengthBytes": str(self.max_body)})
        plan = self._input
        if plan is None:
            plan = self._input = compile_input(self.name, self._model, self._shapes)
        return plan.parse(bucket, key, query, headers, body)

    def serialise(self, output: Mapping[str, Any], status: int | None = None) -> tuple[int, list[Header], bytes]:
        """The response that `output` makes.

        Args:
            output: member name -> value; None and absent are the same. Timestamps are int nanoseconds since 1970,
                datetimes, or text.
            status: instead of the operation's own, such as 206.

        Returns:
            Status, headers (names in lower case; Content-Type where there is a body, no Content-Length), body.
            A streaming payload (`Body`) is left to the caller, and the body is empty.

        Raises:
            TypeError: `output` has a member that the model does not know.
        """
        return self._writer().serialise(output, status)

    def headers(self, output: Mapping[str, Any]) -> list[Header]:
        """The header members of `output` alone, for a 304 or another answer without its body."""
        return self._writer().headers(output)

    def _writer(self) -> Output:
        plan = self._output
        if plan is None:
            plan = self._output = Output(self.name, self._model, self._shapes, self._writers)
        return plan


class Protocol:
    """All operations of a service model, by name and by request."""

    __slots__ = ("_operations", "_router")

    def __init__(self, model: Model) -> None:
        shapes: Shapes = model["shapes"]
        writers = Writers(shapes)
        self._operations = {
            name: Operation(name, operation, shapes, writers) for name, operation in model["operations"].items()
        }
        self._router = Router(self._operations.values())

    def __getitem__(self, name: str) -> Operation:
        return self._operations[name]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations.values())

    def __len__(self) -> int:
        return len(self._operations)

    def route(self, method: str, level: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Operation:
        """The operation that a request means.

        Args:
            method: upper case. OPTIONS is not routed: answer preflights first.
            level: what the path addresses: `service`, `bucket` or `object`.
            query: decoded; only its names matter, but for `list-type` and `select-type`.
            headers: lower-case names.

        Raises:
            S3Error: MethodNotAllowed (with Allow), InvalidArgument where two subresources are named,
                PreconditionFailed for a POST to a bucket that is no form upload.
        """
        return self._router.route(method, level, query, headers)


def load_protocol() -> Protocol:
    """The protocol of the installed botocore's S3 model, and of `extensions`.

    Costs some 35 ms, nearly all of it reading the model.
    """
    model = Loader().load_service_model("s3", "service-2")
    for section in ("operations", "shapes"):
        for entry in model[section].values():
            entry.pop("documentation", None)
            for member in entry.get("members", {}).values():
                member.pop("documentation", None)
    extend(model)
    return Protocol(model)
