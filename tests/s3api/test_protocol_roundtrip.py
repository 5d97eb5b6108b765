"""Every operation of the installed model, both ways, against botocore's own serialiser and parser.

What botocore writes for a request is routed to the same operation and parsed to equal parameters; what this server
writes for a response is read by botocore as equal members. Values are drawn from the model's shapes: the fewest
members, all of them, and random choices.
"""

from __future__ import annotations

import datetime
import functools
from email.header import decode_header, make_header
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import botocore.session
import pytest
from botocore import parsers, serialize
from botocore.awsrequest import HeadersDict
from botocore.model import ListShape, MapShape, OperationModel, Shape, StructureShape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tigrislike.s3api.protocol import Protocol, load_protocol
from tigrislike.s3api.text import http_date

BUCKET, KEY = "some-bucket", "some/key"
PROTOCOL: Protocol = load_protocol()
MODEL = botocore.session.get_session().get_service_model("s3")
NAMES = sorted(MODEL.operation_names)

# Requests that mean the later form of the operation, as documented in `routing`.
TWINS = {
    "GetBucketLifecycle": "GetBucketLifecycleConfiguration",
    "GetBucketNotification": "GetBucketNotificationConfiguration",
    "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
    "PutBucketNotification": "PutBucketNotificationConfiguration",
}
# What this server needs beyond the model: structure -> members, operation -> members.
ALSO_REQUIRED = {
    "CompletedMultipartUpload": {"Parts"},
    "CompletedPart": {"PartNumber", "ETag"},
    "VersioningConfiguration": {"Status"},
    "CompleteMultipartUploadRequest": {"MultipartUpload"},
}

# Part of a host name, though sent in a header.
HOST_LABELS = {"x-amz-request-route"}
# The deprecated single form of a list, written under the same element name.
OUTDATED = {
    ("TopicConfigurationDeprecated", "Event"),
    ("QueueConfigurationDeprecated", "Event"),
    ("CloudFunctionConfiguration", "Event"),
}

NO_CONTROLS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
IN_XML = st.text(NO_CONTROLS | st.sampled_from("\t\n&<>\"' "), max_size=12)
IN_HEADER = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
IN_QUERY = st.text(NO_CONTROLS, min_size=1, max_size=12)
IN_RESPONSE_OVERRIDE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
SECONDS = st.integers(0, 4_000_000_000)


def moments(milliseconds: bool) -> st.SearchStrategy[datetime.datetime]:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return st.builds(
        lambda second, millisecond: epoch + datetime.timedelta(seconds=second, milliseconds=millisecond),
        SECONDS,
        st.integers(0, 999) if milliseconds else st.just(0),
    )


def values(shape: Shape, pick: str, location: str = "", name: str = "") -> st.SearchStrategy[Any]:
    """Values of a shape. `pick` says which optional members a structure has: none, all, or some."""
    if isinstance(shape, StructureShape):
        members = {
            member: values(
                inner, pick, inner.serialization.get("location", "body"), inner.serialization.get("name", "")
            )
            for member, inner in shape.members.items()
            if (shape.name, member) not in OUTDATED
        }
        required = set(shape.required_members) | ALSO_REQUIRED.get(shape.name, set())
        if getattr(shape, "is_tagged_union", False):
            return st.sampled_from(sorted(members)).flatmap(lambda one: st.fixed_dictionaries({one: members[one]}))
        chosen = set(members) if pick == "all" else required
        rest = {member: members[member] for member in members if member not in chosen}
        return st.fixed_dictionaries(
            {member: members[member] for member in members if member in chosen},
            optional=rest if pick == "some" else None,
        )
    if isinstance(shape, ListShape):
        return st.lists(values(shape.member, pick, location), min_size=1, max_size=2)
    if isinstance(shape, MapShape):
        names, texts = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z"), st.text(NO_CONTROLS, min_size=1).map(str.strip)
        return st.dictionaries(names, texts, max_size=3)
    if shape.type_name == "timestamp":
        return moments(milliseconds=location == "body" and shape.serialization.get("timestampFormat") != "rfc822")
    if shape.type_name in ("integer", "long"):
        return st.integers(1, 10_000 if shape.type_name == "integer" else 2**50)
    if shape.type_name == "boolean":
        return st.booleans()
    if shape.type_name == "blob":
        return st.binary(max_size=8)
    assert shape.type_name == "string", shape
    if getattr(shape, "enum", None):
        return st.sampled_from(shape.enum)
    if shape.metadata.get("jsonvalue") or name in HOST_LABELS:
        return st.from_regex(r"\A[a-z0-9]{1,8}\Z")
    if location == "header":
        return IN_HEADER
    if location == "querystring":
        return IN_RESPONSE_OVERRIDE if name.startswith("response-") else IN_QUERY
    if shape.name == "Policy":
        return IN_XML.filter(str.strip)
    return IN_XML.filter(bool) if shape.metadata.get("min") else IN_XML


@functools.cache
def inputs(name: str, pick: str) -> st.SearchStrategy[dict[str, Any]]:
    shape = MODEL.operation_model(name).input_shape
    return st.just({}) if shape is None else values(shape, pick).map(lambda params: params | address(shape))


def address(shape: StructureShape) -> dict[str, str]:
    return {member: value for member, value in (("Bucket", BUCKET), ("Key", KEY)) if member in shape.members}


@functools.cache
def outputs(name: str, pick: str) -> st.SearchStrategy[dict[str, Any]]:
    shape = MODEL.operation_model(name).output_shape
    return st.just({}) if shape is None else values(shape, pick)


def written_by_botocore(
    operation: OperationModel, params: dict[str, Any]
) -> tuple[dict[str, str], dict[str, str], bytes]:
    """`(query, headers, body)` as the app would hand them to the protocol."""
    request = serialize.create_serializer("rest-xml", include_validation=False).serialize_to_request(params, operation)
    _, _, flags = request["url_path"].partition("?")
    query = dict(parse_qsl(flags, keep_blank_values=True))
    query |= {name: str(value) for name, value in request["query_string"].items()}
    headers = {
        name.lower(): str(value).encode().decode("latin-1") for name, value in request.get("headers", {}).items()
    }
    body = request["body"]
    return query, headers, body if isinstance(body, bytes) else b""


def expected_input(operation: OperationModel, params: dict[str, Any]) -> dict[str, Any]:
    expected = {member: value for member, value in params.items() if value != {} or member != "Metadata"}
    shape = operation.input_shape
    if shape is not None and PROTOCOL[operation.name].streams_body:
        expected.pop(shape.serialization["payload"], None)
    for member in ("Expires", "ResponseExpires"):
        if member in expected:
            expected[member] = http_date(expected[member])
    return expected


def check_request(name: str, params: dict[str, Any]) -> None:
    operation = MODEL.operation_model(name)
    query, headers, body = written_by_botocore(operation, params)
    ours = PROTOCOL[name]
    if name != "WriteGetObjectResponse":  # lives on a host of its own
        assert ours.method == operation.http["method"]
        routed = PROTOCOL.route(ours.method, ours.level, query, headers)
        if name == "ListDirectoryBuckets" and "MaxDirectoryBuckets" not in params:
            assert routed.name == "ListBuckets"
        else:
            assert routed.name == TWINS.get(name, name)
    content = b"" if ours.streams_body else body
    parsed = ours.parse(params.get("Bucket", ""), params.get("Key", ""), query, headers, content)
    assert parsed == expected_input(operation, params)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_fewest_parameters_arrive_as_botocore_sent_them(name: str, data: st.DataObject) -> None:
    check_request(name, data.draw(inputs(name, "none")))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_all_parameters_arrive_as_botocore_sent_them(name: str, data: st.DataObject) -> None:
    check_request(name, data.draw(inputs(name, "all")))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_parameters_arrive_as_botocore_sent_them(name: str, data: st.DataObject) -> None:
    check_request(name, data.draw(inputs(name, "some")))


def as_nanoseconds(value: Any) -> Any:
    """The same value with every datetime as the int that operations give."""
    if isinstance(value, datetime.datetime):
        return int(value.timestamp()) * 10**9 + value.microsecond * 1000
    if isinstance(value, dict):
        return {name: as_nanoseconds(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_nanoseconds(inner) for inner in value]
    return value


def check_response(name: str, output: dict[str, Any]) -> None:
    operation = MODEL.operation_model(name)
    shape = operation.output_shape
    ours = PROTOCOL[name]
    status, headers, body = ours.serialise(output)
    assert ours.serialise(as_nanoseconds(output)) == (status, headers, body)
    assert status == operation.http.get("responseCode", 200)
    assert all(header == header.lower() for header, _ in headers)
    assert operation.http["method"] != "HEAD" or body == b""
    if body.startswith(b"<"):
        assert (b"content-type", b"application/xml") in headers
    if shape is None:
        assert (headers, body) == ([], b"")
        return
    if shape.event_stream_name:
        assert body == b""
        return
    expected = dict(output)
    payload = shape.serialization.get("payload", "")
    if payload and shape.members[payload].type_name == "blob":
        expected.pop(payload, None)
        assert body == b""
    if name == "GetBucketLocation":  # botocore reads this one by hand too
        root = ElementTree.fromstring(body)
        assert root.tag == "{http://s3.amazonaws.com/doc/2006-03-01/}LocationConstraint"
        assert (root.text or "") == output.get("LocationConstraint", "")
        return
    response = {
        "status_code": status,
        "headers": HeadersDict({header.decode(): value.decode("latin-1") for header, value in headers}),
        "body": body,
    }
    parsed = parsers.create_parser("rest-xml").parse(response, shape)
    parsed.pop("ResponseMetadata")
    if payload and payload not in expected:
        parsed.pop(payload)
    if name == "GetBucketNotification":
        for configuration in parsed.values():
            configuration.pop("Event", None)
    if "Metadata" in parsed:
        decoded = {member: decode_words(value) for member, value in parsed.pop("Metadata").items()}
        assert decoded == expected.pop("Metadata", {})
    assert parsed == expected


def decode_words(value: str) -> str:
    return str(make_header(decode_header(value))) if value.startswith("=?") else value


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_fewest_members_are_read_by_botocore_as_written(name: str, data: st.DataObject) -> None:
    check_response(name, data.draw(outputs(name, "none")))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_all_members_are_read_by_botocore_as_written(name: str, data: st.DataObject) -> None:
    check_response(name, data.draw(outputs(name, "all")))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_members_are_read_by_botocore_as_written(name: str, data: st.DataObject) -> None:
    check_response(name, data.draw(outputs(name, "some")))
