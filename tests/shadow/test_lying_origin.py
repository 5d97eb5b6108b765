"""A bucket over an origin that fails: a real node, clients over HTTP, and a server that is told how to fail."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError, ResponseStreamingError

from tests.nodes import RunningNode, running_node
from tests.origin.lying import Fault, Lying, running_lying
from tests.shadow.shadows import client, look_through
from tigrislike.metadata.records import OriginPlace

DATA = Random(63).randbytes(9 << 20)  # a block and a piece
BUCKET = "looks"


@pytest.fixture(scope="module")
def lying() -> Iterator[Lying]:
    with running_lying(seed=7) as server:
        yield server


@pytest.fixture(scope="module")
def store(lying: Lying, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    flags = ("--allow-private-origins", "--workers=1", "--origin-silence=300ms", "--origin-timeout=5s")
    with running_node(tmp_path_factory.mktemp("lying") / "data", *flags) as node:
        s3 = client(node)
        s3.create_bucket(Bucket=BUCKET)
        s3.close()
        look_through(node, BUCKET, OriginPlace(f"s3://{lying.bucket}", lying.endpoint, "us-east-1", "any", "any"))
        yield node


@pytest.fixture
def s3(lying: Lying, store: RunningNode) -> Iterator[Any]:
    made = client(store)
    yield made
    made.close()
    lying.faults.clear()
    lying.always = Fault()


FAULTS = {
    "500": Fault(status=500),
    "slow": Fault(slow_s=1.0),
    "stalls": Fault(stall=3_000_000),
    "cut": Fault(cut=3_000_000),
    "shorter": Fault(shorter=1),
    "longer": Fault(longer=1),
    "another range": Fault(shift=1),
    "another version": Fault(etag="another"),
    "the whole object": Fault(whole=True),
}


def read(s3: Any, key: str) -> bytes:
    data: bytes = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return data


@pytest.mark.parametrize("name", FAULTS)
def test_what_happens_once_no_client_sees(lying: Lying, s3: Any, name: str) -> None:
    lying.put(name, DATA)
    lying.faults.append(FAULTS[name])
    assert read(s3, name) == DATA
    assert not lying.faults
    assert read(s3, name) == DATA


def test_an_object_that_changes_under_its_readers_is_one_version_or_none(lying: Lying, s3: Any) -> None:
    lying.put("changes", DATA)
    other = DATA[::-1]
    lying.faults.append(Fault(change=(3_000_000, other)))
    # Who had been told the length and version of what is gone cannot be given anything else.
    with contextlib.suppress(ClientError, BotoCoreError):
        assert read(s3, "changes") in (DATA, other)
    assert not lying.faults
    assert read(s3, "changes") == other


LASTING = {"silent": Fault(silent=True), "cut off": Fault(cut=0), "503": Fault(status=503)}


@pytest.mark.parametrize("name", LASTING)
def test_what_does_not_end_is_an_error_within_the_bound_and_hits_are_served(lying: Lying, s3: Any, name: str) -> None:
    lying.put("here", DATA)
    assert read(s3, "here") == DATA
    lying.put(name, DATA)
    lying.always = LASTING[name]
    began_s = time.monotonic()
    with pytest.raises(ClientError) as raised:
        read(s3, name)
    assert time.monotonic() - began_s < 10  # of the node's 5 s, and those of a busy machine
    answer = raised.value.response
    assert answer["Error"]["Code"] in ("SlowDown", "ServiceUnavailable")
    assert int(answer["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
    assert read(s3, "here") == DATA
    lying.always = Fault()
    recovered(s3, name)


def test_an_origin_goes_away_and_comes_back(lying: Lying, s3: Any) -> None:
    lying.put("stays", DATA)
    assert read(s3, "stays") == DATA
    lying.put("waits", DATA)
    lying.call(lying.go_away)
    for _ in range(2):
        with pytest.raises(ClientError, match="SlowDown"):
            read(s3, "waits")
    assert read(s3, "stays") == DATA
    lying.call(lying.come_back)
    recovered(s3, "waits")


def recovered(s3: Any, key: str) -> None:
    """Read until the origin is asked again, as a client does that is told to come later."""
    while True:  # bounded by the test's own time-out
        try:
            assert read(s3, key) == DATA
            return
        except ResponseStreamingError:
            pass  # its second block was asked for while the first one's request was the probe
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("SlowDown", "ServiceUnavailable"):
                raise
