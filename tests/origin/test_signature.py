"""Signatures of requests that go out, against botocore's."""

from __future__ import annotations

import datetime

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.origin.signature import UNSIGNED, Signer, encoded_path, encoded_query

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text("abcdefghij-", min_size=1, max_size=8)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
NOW_S = 1_795_949_632


@given(
    key=TEXT,
    query=st.dictionaries(TEXT, TEXT, max_size=4),
    metadata=st.dictionaries(NAMES, VALUES, max_size=3),
    token=st.sampled_from(["", "session/token=="]),
)
def test_signs_as_botocore_does(key: str, query: dict[str, str], metadata: dict[str, str], token: str) -> None:
    path, parameters = encoded_path(f"/bucket/{key}"), encoded_query(query.items())
    headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    ours = Signer("AKID", "secret", "eu-west-1", token).signed(
        "PUT", "host:9000", path, parameters, headers, now_s=NOW_S
    )
    assert ours["Authorization"] == _botocore(path, parameters, headers, token)


def _botocore(path: str, parameters: str, headers: dict[str, str], token: str) -> str:
    class Signing(botocore.auth.S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:
            return UNSIGNED

    url = f"http://host:9000{path}" + (f"?{parameters}" if parameters else "")
    request = AWSRequest("PUT", url, headers={**headers, "x-amz-content-sha256": UNSIGNED})
    with pytest.MonkeyPatch.context() as patch:
        now = datetime.datetime.fromtimestamp(NOW_S, datetime.UTC)
        patch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: now)
        Signing(Credentials("AKID", "secret", token or None), "s3", "eu-west-1").add_auth(request)
    return str(request.headers["Authorization"])


def test_without_an_access_key_nothing_is_signed() -> None:
    assert Signer("", "", "auto").signed("GET", "host", "/", "", {"a": "b"}) == {"a": "b"}


def test_a_key_of_another_day_is_derived_anew() -> None:
    signer = Signer("AKID", "secret", "auto")
    first = signer.signed("GET", "host", "/", "", {}, now_s=NOW_S)
    signer.signed("GET", "host", "/", "", {}, now_s=NOW_S + 86_400)
    assert signer.signed("GET", "host", "/", "", {}, now_s=NOW_S) == first
