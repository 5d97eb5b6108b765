"""Which operation a request means: by method, by what its path addresses, and by its query.

The dictionaries are built once from the service model; routing a request is one lookup for its method and level and one
for each query parameter. As in S3, a parameter that names a subresource (`?acl`, `?acl=`, `?acl=x`: all the same)
chooses the operation, two of them are refused, and any other parameter is ignored. What the model leaves ambiguous is
in the tables below and nowhere else.

OPTIONS is not routed: preflights are answered from a bucket's CORS rules before anything is routed. Nor is the upload
by an HTML form, a POST of multipart/form-data to a bucket, which the model does not know; any other POST to a bare
bucket is S3's PreconditionFailed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from tigrislike.s3api.errors import S3Error, invalid_argument

if TYPE_CHECKING:
    from tigrislike.s3api.protocol import Operation

LEVELS: Final = ("service", "bucket", "object")

# Twins that the same request could mean: deprecated forms of later operations, and one that lives on another host.
_UNROUTED: Final = frozenset(
    {
        "GetBucketLifecycle",
        "GetBucketNotification",
        "PutBucketLifecycle",
        "PutBucketNotification",
        "WriteGetObjectResponse",
    }
)
# Operations told apart by an optional parameter.
_TOLD_BY: Final = {"ListDirectoryBuckets": "max-directory-buckets"}
# A header that makes a PUT a copy.
_COPY_SOURCE: Final = "x-amz-copy-source"
# Names that choose an operation although the model shows them as ordinary parameters. A PUT with a part number but no
# upload id must not overwrite the object.
_CHOOSING: Final = {"uploadId": ("DELETE", "GET", "POST", "PUT"), "partNumber": ("PUT",)}


class _Choice:
    """The operations that share method, level and subresource, the most demanding first."""

    __slots__ = ("candidates", "only")

    def __init__(self, operations: Iterable[Operation]) -> None:
        demands = [(_demands(operation), operation) for operation in operations]
        common = frozenset.intersection(*(demand for demand, _ in demands))
        ranked = sorted(demands, key=lambda pair: -len(pair[0]))
        self.candidates = tuple((tuple(demand - common), operation) for demand, operation in ranked)
        self.only: Operation | None = ranked[0][1] if len(ranked) == 1 else None

    def choose(self, query: Mapping[str, str], headers: Mapping[str, str]) -> Operation:
        if self.only is not None:
            return self.only
        for demands, operation in self.candidates:
            for name, value in demands:
                if name == _COPY_SOURCE:
                    if name not in headers:
                        break
                elif name not in query or (value and query[name] != value):
                    break
            else:
                return operation
        return self.candidates[-1][1]


def _demands(operation: Operation) -> frozenset[tuple[str, str]]:
    """(name, value) of what must be there for this operation; an empty value stands for any."""
    demands = {(name, "") for name in operation.required_query}
    demands |= {(name, value) for name, value in operation.uri_query.items() if value}
    if _COPY_SOURCE in operation.required_headers:
        demands.add((_COPY_SOURCE, ""))
    if operation.name in _TOLD_BY:
        demands.add((_TOLD_BY[operation.name], ""))
    return frozenset(demands)


class Router:
    """The routing table of a service model."""

    __slots__ = ("_allowed", "_routes", "_subresources")

    def __init__(self, operations: Iterable[Operation]) -> None:
        grouped: dict[tuple[str, str], dict[str, list[Operation]]] = defaultdict(lambda: defaultdict(list))
        for operation in operations:
            if operation.name not in _UNROUTED:
                grouped[operation.method, operation.level][_subresource(operation)].append(operation)
        self._subresources = {name for groups in grouped.values() for name in groups if name}
        # level, subresource or "" -> the methods that it has
        self._allowed: dict[tuple[str, str], set[str]] = defaultdict(set)
        # (method, level) -> the choice without a subresource, and by subresource; None: not with this method
        self._routes: dict[tuple[str, str], tuple[_Choice | None, dict[str, _Choice | None]]] = {}
        for (method, level), groups in grouped.items():
            plain: _Choice | None = None
            named: dict[str, _Choice | None] = dict.fromkeys(self._subresources)
            for name, members in groups.items():
                self._allowed[level, name].add(method)
                if name:
                    named[name] = _Choice(members)
                else:
                    plain = _Choice(members)
            for name, methods in _CHOOSING.items():
                if name == "partNumber" and method in methods and level == "object":
                    named[name] = named["uploadId"]
            self._routes[method, level] = (plain, named)

    def route(self, method: str, level: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Operation:
        """The operation that a request means; see `Protocol.route`."""
        entry = self._routes.get((method, level))
        if entry is None:
            raise self._not_allowed(method, level, "")
        choice, named = entry
        if query:
            chosen = ""
            for name in query:
                if name in named:
                    other = named[name]
                    if chosen and (other is None or other is not choice):
                        raise _conflict(chosen, name)
                    if other is None:
                        raise self._not_allowed(method, level, name)
                    chosen, choice = name, other
        if choice is None:
            if method == "POST" and level == "bucket":
                raise S3Error(
                    "PreconditionFailed",
                    extra={"Condition": "Bucket POST must be of the enclosure-type multipart/form-data"},
                )
            raise self._not_allowed(method, level, "")
        return choice.only or choice.choose(query, headers)

    def _not_allowed(self, method: str, level: str, subresource: str) -> S3Error:
        allowed = self._allowed.get((level, subresource), ())
        return S3Error(
            "MethodNotAllowed",
            extra={"Method": method, "ResourceType": (subresource or level).upper()},
            headers={"allow": ", ".join(sorted(allowed))},
        )


def _subresource(operation: Operation) -> str:
    names = [name for name, value in operation.uri_query.items() if not value]
    names += [name for name in _CHOOSING if name in operation.required_query]
    return names[0] if names else ""


def _conflict(first: str, second: str) -> S3Error:
    return invalid_argument(f"Conflicting query string parameters: {first}, {second}", "ResourceType", first)
