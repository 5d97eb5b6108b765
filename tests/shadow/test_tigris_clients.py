"""Buckets adopted by Tigris' own clients: its command line, and what it adds to boto3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import Client, client
from tests.nodes import running_node
from tests.shadow import shadows
from tests.shadow.shadows import Pair, running_pair

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_pair(tmp_path_factory.mktemp("tigris")) as pair:
        yield pair


def command_line(pair: Pair, directory: Path) -> Client:
    endpoint = pair.store.endpoint
    return client(
        "tigris",
        pair.store,
        directory,
        AWS_ENDPOINT_URL_S3=endpoint,
        AWS_ENDPOINT_URL_IAM=endpoint,
        AWS_ENDPOINT_URL_MGMT=endpoint,
        TIGRIS_STORAGE_ENDPOINT=endpoint,
        TIGRIS_IAM_ENDPOINT=endpoint,
        TIGRIS_MGMT_ENDPOINT=endpoint,
        TIGRIS_NO_UPDATE_CHECK="1",
        NODE_NO_WARNINGS="1",
    )


def test_the_command_line_migrates_a_bucket(pair: Pair, tmp_path: Path) -> None:
    tigris = command_line(pair, tmp_path)
    pair.at_origin.create_bucket(Bucket="old")
    bodies = {f"a/{number:02}": bytes([number]) * number * 10_000 for number in range(40)}
    for key, body in bodies.items():
        pair.at_origin.put_object(Bucket="old", Key=key, Body=body, Metadata={"key": key})
    tigris.run("tigris", "mk", "new")
    tigris.run(
        "tigris",
        *("buckets", "set-migration", "new", "--bucket", "old", "--endpoint", pair.origin.endpoint),
        *("--region", "auto", "--access-key", pair.origin.access_key_id),
        *("--secret-key", pair.origin.secret_access_key),
    )
    shown = tigris.run("tigris", "buckets", "get", "new")
    assert "old" in shown
    assert pair.origin.secret_access_key not in shown
    assert "40 object(s) migrated" in tigris.run("tigris", "buckets", "migrate", "new")
    listed = pair.at_store.list_objects_v2(Bucket="new")["Contents"]
    assert [each["Key"] for each in listed] == sorted(bodies)
    for key, body in bodies.items():
        there = pair.at_store.get_object(Bucket="new", Key=key)
        assert (there["Body"].read(), there["Metadata"]) == (body, {"key": key})
    tigris.run("tigris", "buckets", "migrate", "new")  # there is nothing to do
    tigris.run("tigris", "buckets", "set-migration", "new", "--disable")
    assert pair.at_store.get_object(Bucket="new", Key="a/07")["Body"].read() == bodies["a/07"]


@pytest.mark.parametrize("case", ["adopt", "refused"])
def test_what_tigris_adds_to_boto3(case: str, certificate: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """It takes sources over https only."""
    cert, key, authority = certificate
    with (
        running_node(tmp_path / "origin", f"--tls-cert={cert}", f"--tls-key={key}", ca_bundle=str(authority)) as origin,
        running_node(
            tmp_path / "store", "--allow-private-origins", environment={"SSL_CERT_FILE": str(authority)}
        ) as store,
    ):
        at_origin, at_store = shadows.client(origin), shadows.client(store)
        at_origin.create_bucket(Bucket="old")
        at_store.create_bucket(Bucket="new")
        for number in range(5):
            at_origin.put_object(Bucket="old", Key=f"k{number}", Body=b"x" * number * 20_000)
        python = client("tigris-boto3", store, tmp_path)
        python.case(
            "tigris_migration.py",
            case,
            *("new", "old", origin.endpoint, origin.access_key_id, origin.secret_access_key),
        )
