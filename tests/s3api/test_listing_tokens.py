"""Continuation tokens: opaque, and good for one listing only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.listing_tokens import open_token, seal_token

SECRET = b"k" * 32


@given(st.text(max_size=100))
def test_a_token_opens_to_its_key(key: str) -> None:
    assert open_token(SECRET, "objects/b", seal_token(SECRET, "objects/b", key), "continuation-token") == key


@given(st.text(max_size=60))
def test_what_was_not_sealed_is_refused(token: str) -> None:
    with pytest.raises(S3Error) as caught:
        open_token(SECRET, "objects/b", token, "continuation-token")
    assert caught.value.code == "InvalidArgument"


def test_a_token_of_another_listing_or_key_is_refused() -> None:
    token = seal_token(SECRET, "objects/b", "key")
    for secret, listing in ((SECRET, "objects/c"), (b"x" * 32, "objects/b")):
        with pytest.raises(S3Error):
            open_token(secret, listing, token, "continuation-token")
