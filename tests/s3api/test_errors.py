"""S3's errors and their documents."""

from __future__ import annotations

from xml.etree import ElementTree

import botocore.session
import pytest
from botocore import parsers
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.errors import ERRORS, S3Error, error_document, invalid_argument


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("NoSuchKey", 404),
        ("AccessDenied", 403),
        ("InvalidRange", 416),
        ("InvalidPartNumber", 416),
        ("MissingContentLength", 411),
        ("PreconditionFailed", 412),
        ("NotModified", 304),
        ("MethodNotAllowed", 405),
        ("NotImplemented", 501),
        ("SlowDown", 503),
        ("InternalError", 500),
        ("ConditionalRequestConflict", 409),
        ("BadDigest", 400),
    ],
)
def test_a_code_has_its_status_and_a_message(code: str, status: int) -> None:
    error = S3Error(code)
    assert (error.code, error.status, error.message) == (code, status, ERRORS[code][1])
    assert str(error) == f"{code}: {error.message}"


def test_every_error_of_the_model_is_known_with_the_same_status() -> None:
    model = botocore.session.get_session().get_service_model("s3")
    for name in model.operation_names:
        for shape in model.operation_model(name).error_shapes:
            assert ERRORS[shape.name][0] == shape.metadata["error"]["httpStatusCode"], shape.name


def test_message_extra_headers_and_status_may_be_given() -> None:
    error = S3Error("InvalidRange", "No", extra={"A": "1"}, headers={"x": "y"}, status=400)
    assert (error.message, error.extra, error.headers, error.status) == ("No", {"A": "1"}, {"x": "y"}, 400)


def test_an_unknown_code_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="'NoSuchThing' is not an S3 error code"):
        S3Error("NoSuchThing")


class Lost(Exception):
    code = "NoSuchBucket"
    extra = {"BucketName": "b"}  # noqa: RUF012


class Odd(Exception):
    code = "Mystery"


class Numbered(Exception):
    code = 404


def test_an_exception_of_another_layer_says_which_error_it_is() -> None:
    error = S3Error.of(Lost("no bucket b"))
    assert (error.code, error.message, error.extra) == ("NoSuchBucket", "no bucket b", {"BucketName": "b"})
    assert S3Error.of(Lost()).message == "The specified bucket does not exist"


@pytest.mark.parametrize("exception", [ValueError("a secret"), Odd("a secret"), Numbered("a secret")])
def test_the_text_of_an_unforeseen_exception_stays_here(exception: Exception) -> None:
    error = S3Error.of(exception)
    assert (error.code, error.status) == ("InternalError", 500)
    assert "secret" not in error.message


def test_an_s3_error_is_itself() -> None:
    error = invalid_argument("No", "max-keys", "x")
    assert S3Error.of(error) is error
    assert error.extra == {"ArgumentName": "max-keys", "ArgumentValue": "x"}


def test_the_document_reads_as_s3_writes_it() -> None:
    assert error_document("NoSuchKey", "No <key>", "/b/a&b", "R1", {"Key": 'a"b'}) == (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code><Message>No &lt;key&gt;</Message>'
        b"<Key>a&quot;b</Key><Resource>/b/a&amp;b</Resource><RequestId>R1</RequestId></Error>"
    )


def test_botocore_reads_the_document() -> None:
    body = error_document("InvalidArgument", "No", "/b", "R1", {"ArgumentName": "max-keys"})
    response = {"status_code": 400, "headers": {}, "body": body}
    parsed = parsers.create_parser("rest-xml").parse(response, None)
    assert parsed["Error"]["Code"] == "InvalidArgument"
    assert parsed["Error"]["ArgumentName"] == "max-keys"


XML_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"))


@given(XML_TEXT, XML_TEXT, XML_TEXT)
def test_any_text_fits_into_a_document(message: str, resource: str, value: str) -> None:
    root = ElementTree.fromstring(error_document("NoSuchKey", message, resource, "R1", {"Key": value}))
    assert [root.findtext(name) for name in ("Message", "Resource", "Key")] == [message, resource, value]
