"""Readers of model weights, unchanged, against a running node: a model of 256 MiB goes in by a plain upload, and comes
out of every reader with the bytes that it was made of (`weights.py`).

What needs torch (Run:ai's model streamer, s3torchconnector) has a large environment of its own, `make clients-torch`;
safetensors over s3fs and Arrow have another, `make .venvs/weights`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.clients.environments import Client, cases, client
from tests.clients.weights import Model, write_model
from tests.nodes import RunningNode, remove_store, running_node

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
PREFIX = "hub/organisation/a model+ü"
# What Run:ai's documentation says to export for stores that are not AWS's.
STREAMER = {
    "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    "RUNAI_STREAMER_CONCURRENCY": "16",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Each shard is stored in another way: one blob, parts of a block each, parts whose ends lie within blocks.
TRANSFERS = [
    TransferConfig(multipart_threshold=1024 * MIB),
    TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB),
    TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=5 * MIB + 4321),
]


@dataclass(frozen=True)
class Hub:
    """A node with a model in it. `path` is the model's place, bucket first; `scratch` is another, to write to."""

    node: RunningNode
    model: Model
    bucket: str

    @property
    def path(self) -> str:
        return f"{self.bucket}/{PREFIX}"

    @property
    def scratch(self) -> str:
        return f"{self.bucket}/written/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    directory = tmp_path_factory.mktemp("model")
    yield write_model(directory / "model")
    shutil.rmtree(directory)


def s3_client(node: RunningNode) -> Any:
    return node.client()


def filled(node: RunningNode, model: Model) -> Hub:
    """Upload the model, as its owner does."""
    hub = Hub(node, model, "weights")
    s3 = s3_client(node)
    s3.create_bucket(Bucket=hub.bucket)
    for number, name in enumerate(model.files):
        transfer = TRANSFERS[number % len(TRANSFERS)]
        s3.upload_file(str(model.directory / name), hub.bucket, f"{PREFIX}/{name}", Config=transfer)
    s3.close()
    return hub


@pytest.fixture(scope="module")
def http_hub(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    data_dir = tmp_path_factory.mktemp("hub") / "data"
    with running_node(data_dir) as node:
        yield filled(node, model)
    remove_store(data_dir)


@pytest.fixture(scope="module")
def https_hub(
    model: Model, tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path, Path]
) -> Iterator[Hub]:
    cert, key, authority = certificate
    data_dir = tmp_path_factory.mktemp("hub") / "data"
    with running_node(data_dir, f"--tls-cert={cert}", f"--tls-key={key}", ca_bundle=str(authority)) as node:
        yield filled(node, model)
    remove_store(data_dir)


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Hub:
    found: Hub = request.getfixturevalue(f"{request.param}_hub")
    return found


def over_both(program: str, *over_tls: str) -> pytest.MarkDecorator:
    """Every case of a program over http, and those named over https too, where the node sends bytes in another way."""
    found = cases(program)
    assert set(over_tls) <= set(found)
    pairs = [("http", case) for case in found] + [("https", case) for case in over_tls]
    return pytest.mark.parametrize(("hub", "case"), pairs, indirect=["hub"])


# -- Without torch ---------------------------------------------------------------------------------------------------


@over_both(
    "weights_files.py", "whole_shards_are_loaded_through_s3fs", "shards_are_read_by_many_ranges_at_once_through_arrow"
)
def test_safetensors_and_arrow(hub: Hub, tmp_path: Path, case: str) -> None:
    reader = client("weights", hub.node, tmp_path, AWS_MAX_ATTEMPTS="1")
    reader.case("weights_files.py", case, hub.path, str(hub.model.expected), hub.scratch)


# -- With torch ------------------------------------------------------------------------------------------------------


@over_both("model_streamer.py", "every_shard_is_streamed")
def test_model_streamer(hub: Hub, tmp_path: Path, case: str) -> None:
    reader = client("torch", hub.node, tmp_path, **STREAMER)
    print(reader.case("model_streamer.py", case, f"s3://{hub.path}", str(hub.model.expected)))


@over_both("torch_connector.py", "a_shard_is_streamed")
def test_s3torchconnector(hub: Hub, tmp_path: Path, case: str) -> None:
    reader = client("torch", hub.node, tmp_path, AWS_EC2_METADATA_DISABLED="true")
    places = f"s3://{hub.path}", str(hub.model.expected), f"s3://{hub.scratch}"
    print(reader.case("torch_connector.py", case, *places))


def test_readers_ask_by_path_for_many_short_ranges(model: Model, tmp_path: Path) -> None:
    data_dir, log, home = tmp_path / "data", tmp_path / "access.log", tmp_path / "home"
    home.mkdir()
    shard = model.files[2]
    with running_node(data_dir, f"--access-log={log}") as node:
        hub = filled(node, model)
        reader = client("torch", node, home, **STREAMER)
        reader.case("model_streamer.py", "every_shard_is_streamed", f"s3://{hub.path}", str(model.expected))
        s3 = s3_client(node)
        source = {"Bucket": hub.bucket, "Key": f"{PREFIX}/{shard}"}
        s3.copy_object(Bucket=hub.bucket, Key=f"copy/{shard}", CopySource=source)  # a name to know its requests by
        s3.close()
        places = f"s3://{hub.bucket}/copy", str(model.expected), "s3://nowhere"
        reader.case("torch_connector.py", "a_shard_is_streamed", *places)
    remove_store(data_dir)

    # The node has ended: every line is there.
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    gets = [line for line in lines if line["operation"] == "GetObject"]
    assert {line["status"] for line in gets} == {206}
    assert max(line["sent_bytes"] for line in gets) <= 8 * MIB
    size = (model.directory / shard).stat().st_size
    for name, prefix, least in ("model streamer", "hub", model.size), ("s3torchconnector", "copy", size):
        ranges = [line for line in gets if line["path"].startswith(f"/{hub.bucket}/{prefix}/")]
        assert sum(line["sent_bytes"] for line in ranges) >= least
        assert len(ranges) >= least / (8 * MIB)
        connections = len({line["client"] for line in ranges})
        print(f"{name}: {len(ranges)} ranges on {connections} connections, {_at_once(ranges)} at once")


def _at_once(lines: list[dict[str, Any]]) -> int:
    """The largest number of requests that were in hand at one moment."""
    moments = [(line["time_ns"], -1) for line in lines]
    moments += [(line["time_ns"] - line["duration_us"] * 1000, 1) for line in lines]
    level = highest = 0
    for _, step in sorted(moments):
        level += step
        highest = max(highest, level)
    return highest


# -- The AWS command line --------------------------------------------------------------------------------------------


@pytest.fixture
def aws(hub: Hub, tmp_path: Path) -> Client:
    return client("awscli", hub.node, tmp_path, AWS_MAX_ATTEMPTS="1")


@pytest.mark.parametrize("hub", ["http", "https"], indirect=True)
def test_a_model_is_copied_by_the_command_line(aws: Client, hub: Hub) -> None:
    place = f"s3://{hub.scratch}"
    aws.run("aws", "configure", "set", "default.s3.max_concurrent_requests", "16")
    aws.run("aws", "s3", "cp", "--no-progress", "--recursive", str(hub.model.directory), place)
    aws.run("aws", "s3", "cp", "--no-progress", "--recursive", place, "back")
    for name in hub.model.files:
        assert digest(aws.directory / "back" / name) == digest(hub.model.directory / name), name
    shutil.rmtree(aws.directory / "back")


@pytest.mark.parametrize("hub", ["http"], indirect=True)
def test_a_large_file_is_copied_by_the_command_line(aws: Client, hub: Hub) -> None:
    large = aws.directory / "large"
    with large.open("wb") as out:
        for name in hub.model.files[:3]:
            with (hub.model.directory / name).open("rb") as file:
                shutil.copyfileobj(file, out, 8 * MIB)
    sent, place = digest(large), f"s3://{hub.scratch}/large"
    aws.run("aws", "s3", "cp", "--no-progress", "large", place)
    aws.run("aws", "s3", "cp", "--no-progress", place, "large")
    assert digest(large) == sent
    with aws.start("aws", "s3", "cp", place, "-") as process:  # in order, through a pipe
        assert process.stdout is not None
        assert hashlib.file_digest(process.stdout, "sha256").digest() == sent
    assert process.returncode == 0
    large.unlink()


@pytest.mark.parametrize("hub", ["http"], indirect=True)
def test_ranges_are_got_by_the_command_line(aws: Client, hub: Hub) -> None:
    names = hub.model.files[:3]
    size = (hub.model.directory / names[1]).stat().st_size
    asked = [
        (names[0], "0-7", 0, 8),
        (names[0], f"{8 * MIB - 1}-{8 * MIB}", 8 * MIB - 1, 8 * MIB + 1),
        (names[1], "-5", size - 5, size),
        (names[1], "20000001-", 20_000_001, size),
        (names[2], "5242880-29360127", 5_242_880, 29_360_128),
    ]
    running = [
        aws.start(
            *("aws", "s3api", "get-object", f"--bucket={hub.bucket}", f"--key={PREFIX}/{name}"),
            *(f"--range=bytes={spoken}", f"range {spoken}"),
        )
        for name, spoken, _, _ in asked
    ]
    ended = [(process.communicate(timeout=240)[0], process.returncode) for process in running]
    for (name, spoken, start, stop), (output, status) in zip(asked, ended, strict=True):
        assert status == 0, output
        with (hub.model.directory / name).open("rb") as file:
            whole = os.fstat(file.fileno()).st_size
            expected = os.pread(file.fileno(), stop - start, start)
        assert json.loads(output)["ContentRange"] == f"bytes {start}-{stop - 1}/{whole}"
        assert (aws.directory / f"range {spoken}").read_bytes() == expected


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
