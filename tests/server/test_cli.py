"""The command line, as people and scripts use it: in processes of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import tigrislike
from tests.nodes import RunningNode, running_node
from tigrislike import rotation, storage
from tigrislike.config import Settings, options
from tigrislike.metadata.secrets import MasterKey

NAMES = ["BUCKET_NAME", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"]


def tigris(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TIGRISLIKE_"))}
    return subprocess.run(
        [sys.executable, "-m", "tigrislike", *words],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={
            **inherited,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "COLUMNS": "200",
            "TERM": "dumb",
            **environment,
        },
    )


def variables(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def client(made: dict[str, str], ca_bundle: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=made["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=made["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=made["AWS_SECRET_ACCESS_KEY"],
        region_name=made["AWS_REGION"],
        verify=ca_bundle,
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_version() -> None:
    done = tigris("version")
    assert (done.returncode, done.stdout) == (0, tigrislike.__version__ + "\n")


def test_help_explains_every_flag() -> None:
    text = re.sub(r"[\s│]+", " ", tigris("serve", "--help").stdout)
    for option in options():
        if option.secret:
            assert f"--{option.name}" not in text.replace("--master-key-file", "")
        else:
            assert f"--{option.name}" in text
            assert option.help[:40] in text
            assert option.variable in text
    for command in (["--help"], ["storage", "create", "--help"], ["admin", "--help"], ["cache", "warm", "--help"]):
        assert tigris(*command).returncode == 0


@pytest.mark.parametrize(
    ("words", "status"),
    [(["frobnicate"], 2), (["serve", "--prot", "1"], 2), (["serve", "--port", "x"], 1), (["storage", "create"], 2)],
)
def test_a_command_line_that_makes_no_sense_is_refused(words: list[str], status: int) -> None:
    done = tigris(*words)
    assert done.returncode == status
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_slip_in_the_environment_is_pointed_out(tmp_path: Path) -> None:
    done = tigris("storage", "create", "bucket", f"--data-dir={tmp_path / 'd'}", TIGRISLIKE_REGOIN="x")
    assert done.returncode == 0
    assert "did you mean TIGRISLIKE_REGION?" in done.stderr


def test_storage_made_in_a_local_store_works_once_it_is_served(tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = tigris("storage", "create", "my-bucket", f"--data-dir={data}", "--port=9123")
    assert done.returncode == 0, done.stderr
    made = variables(done.stdout)
    assert list(made) == NAMES
    assert made["BUCKET_NAME"] == "my-bucket"
    assert made["AWS_ENDPOINT_URL_S3"] == "http://127.0.0.1:9123"
    assert made["AWS_REGION"] == "auto"
    again = tigris("storage", "create", "my-bucket", f"--data-dir={data}")
    assert again.returncode == 1
    assert again.stdout == ""
    assert "BucketAlreadyOwnedByYou" in again.stderr
    with running_node(data) as node:
        s3 = client({**made, "AWS_ENDPOINT_URL_S3": node.endpoint})
        s3.put_object(Bucket="my-bucket", Key="k", Body=b"x")
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["my-bucket"]


def test_storage_made_by_a_running_server(either_store: RunningNode) -> None:
    name = f"remote-{'tls' if either_store.ca_bundle else 'plain'}"
    words = ["storage", "create", name, "--json", f"--endpoint={either_store.endpoint}/"]
    done = tigris(*words, **either_store.exports)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert list(made) == NAMES
    s3 = client(made, either_store.ca_bundle)
    s3.put_object(Bucket=name, Key="k", Body=b"x")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.create_bucket(Bucket=name + "-other")
    again = tigris(*words, **either_store.exports)
    assert (again.returncode, again.stdout) == (1, "")
    assert "BucketAlreadyOwnedByYou" in again.stderr
    forged = tigris(*words, **{**either_store.exports, "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert forged.returncode == 1
    assert "SignatureDoesNotMatch" in forged.stderr


@pytest.mark.parametrize("remote", [False, True])
def test_storage_is_made_with_its_policies(store: RunningNode, remote: bool, tmp_path: Path) -> None:
    name = f"placed-{'remote' if remote else 'local'}"
    where = [f"--endpoint={store.endpoint}"] if remote else [f"--data-dir={tmp_path / 'data'}"]
    words = ["storage", "create", *where]
    bad = tigris(*words, name, "--durability=some", **store.exports)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "InvalidArgument" in bad.stderr
    made = tigris(*words, name, "--regions=iad,sjc", "--durability=homes=3", **store.exports)
    assert made.returncode == 0, made.stderr
    if remote:
        root = {**variables(made.stdout), **store.exports}
        shown = client(root).head_bucket(Bucket=name)["ResponseMetadata"]["HTTPHeaders"]
        assert (shown["x-tigris-regions"], shown["x-tigrislike-durability"]) == ("iad,sjc", "homes=3")


@pytest.mark.slow
def test_the_policies_of_a_bucket_are_changed_beside_its_node(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = variables(tigris("storage", "create", "my-bucket", f"--data-dir={data}").stdout)
    with running_node(data) as node:
        s3 = client({**made, "AWS_ENDPOINT_URL_S3": node.endpoint})
        assert "x-tigris-regions" not in s3.head_bucket(Bucket="my-bucket")["ResponseMetadata"]["HTTPHeaders"]
        words = ["buckets", "set", "my-bucket", f"--data-dir={data}"]
        done = tigris(*words, "--regions=iad")
        assert (done.returncode, done.stdout) == (0, "regions=iad\ndurability=local\nread-mode=strong\n"), done.stderr
        assert s3.head_bucket(Bucket="my-bucket")["ResponseMetadata"]["HTTPHeaders"]["x-tigris-regions"] == "iad"
        assert tigris(*words, "--durability=homes=2").stdout == "regions=iad\ndurability=homes=2\nread-mode=strong\n"
        back = tigris(*words, "--regions=global", "--durability=local")
        assert back.stdout == "regions=global\ndurability=local\nread-mode=strong\n"
        for refused, why in (
            (words, "nothing to change"),
            ([*words, "--regions=i a d"], "InvalidArgument"),
            (["buckets", "set", "no-bucket", f"--data-dir={data}", "--regions=iad"], "NoSuchBucket"),
        ):
            done = tigris(*refused)
            assert (done.returncode, done.stdout) == (1, "")
            assert why in done.stderr
    nowhere = tmp_path / "file"
    nowhere.touch()
    done = tigris("buckets", "set", "my-bucket", f"--data-dir={nowhere}", "--regions=iad")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


def test_public_storage_is_readable_by_anyone(store: RunningNode) -> None:
    import urllib.request

    done = tigris("storage", "create", "open-to-all", "--public", f"--endpoint={store.endpoint}", **store.exports)
    client(variables(done.stdout)).put_object(Bucket="open-to-all", Key="k", Body=b"free")
    with urllib.request.urlopen(f"{store.endpoint}/open-to-all/k", timeout=60) as response:
        assert response.read() == b"free"


def test_an_env_file_is_private_complete_and_never_overwritten(store: RunningNode, tmp_path: Path) -> None:
    file = tmp_path / "bucket.env"
    words = ["storage", "create", "env-bucket", f"--env-file={file}", f"--endpoint={store.endpoint}"]
    done = tigris(*words, **store.exports)
    assert (done.returncode, done.stdout) == (0, "")
    assert list(variables(file.read_text())) == NAMES
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_text()
    again = tigris(*[word.replace("env-bucket", "env-bucket-2") for word in words], **store.exports)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert file.read_text() == before
    buckets = client({**variables(before), **{n: store.exports[n] for n in NAMES[2:4]}}).list_buckets()["Buckets"]
    assert "env-bucket-2" not in [bucket["Name"] for bucket in buckets]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--endpoint=http://127.0.0.1:1"], "no answer"),
        (["--endpoint=ftp://x"], "no endpoint"),
        (["--env-file=/nonexistent/dir/file"], "cannot write"),
        (["--json", "--env-file=x"], "both given"),
        (["--metadata=sqlite:///proc/none/x.db"], "proc"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = tigris("storage", "create", "bucket", f"--data-dir={tmp_path / 'd'}", *words, **keys)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_asking_a_server_needs_keys(store: RunningNode) -> None:
    done = tigris("storage", "create", "bucket", f"--endpoint={store.endpoint}")
    assert done.returncode == 1
    assert "AWS_ACCESS_KEY_ID" in done.stderr


def test_a_server_that_is_none_of_ours_is_told_apart() -> None:
    import http.server
    import threading

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
            done = tigris("storage", "create", "bucket", f"--endpoint=http://127.0.0.1:{server.server_port}", **keys)
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == 1
    assert "HTTP status 501" in done.stderr


@pytest.mark.slow
def test_rotating_the_master_key_keeps_every_secret(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = variables(tigris("storage", "create", "my-bucket", f"--data-dir={data}").stdout)
    old = (data / "master.key").read_text()
    done = tigris("admin", "rotate-master-key", f"--data-dir={data}")
    assert done.returncode == 0, done.stderr
    assert "is in force" in done.stderr
    assert (data / "master.key").read_text() != old
    assert (data / "master.key").stat().st_mode & 0o777 == 0o600
    (kept,) = data.glob("master.key.*")
    assert (kept.read_text(), kept.suffix[1:]) == (old, MasterKey.parse(old).id.hex())
    assert kept.stat().st_mode & 0o777 == 0o600
    with running_node(data) as node:
        s3 = client({**made, "AWS_ENDPOINT_URL_S3": node.endpoint})
        s3.put_object(Bucket="my-bucket", Key="k", Body=b"x")
    (data / "master.key").write_text(old)
    wrong = tigris("storage", "create", "another", f"--data-dir={data}")
    assert wrong.returncode == 1
    assert "master key" in wrong.stderr


def test_a_rotation_interrupted_before_the_file_was_replaced_is_completed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tigris("storage", "create", "my-bucket", f"--data-dir={data}")
    old = (data / "master.key").read_text()
    assert tigris("admin", "rotate-master-key", f"--data-dir={data}").returncode == 0
    (data / "master.key").rename(data / "master.key.new")
    (data / "master.key").write_text(old)
    assert tigris("admin", "rotate-master-key", f"--data-dir={data}").returncode == 0
    assert not (data / "master.key.new").exists()
    assert tigris("storage", "create", "second", f"--data-dir={data}").returncode == 0


def test_an_old_master_key_that_cannot_be_kept_is_not_replaced(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = Settings(data_dir=data)
    storage.create_local(settings, "my-bucket", public=False)
    old = MasterKey.read_file(data / "master.key")
    kept = data / f"master.key.{old.id.hex()}"
    MasterKey.create_file(kept)
    with pytest.raises(rotation.RotationError, match="holds another key than the old one: move it away"):
        rotation.rotate(settings, None)
    kept.write_text("nonsense")
    with pytest.raises(rotation.RotationError, match="cannot be kept in"):
        rotation.rotate(settings, None)
    assert MasterKey.read_file(data / "master.key").id == old.id
    kept.unlink()
    assert "is in force" in rotation.rotate(settings, None)
    assert MasterKey.read_file(kept).id == old.id
    storage.create_local(settings, "second", public=False)


def test_a_master_key_from_the_environment_needs_a_file_for_the_new_one(tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new.key"
    environment = {"TIGRISLIKE_MASTER_KEY": "11" * 32}
    tigris("storage", "create", "my-bucket", f"--data-dir={data}", **environment)
    assert not (data / "master.key").exists()
    refused = tigris("admin", "rotate-master-key", f"--data-dir={data}", **environment)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--new-master-key-file" in refused.stderr
    words = ["admin", "rotate-master-key", f"--data-dir={data}", f"--new-master-key-file={new}"]
    assert tigris(*words, **environment).returncode == 0
    after = {"TIGRISLIKE_MASTER_KEY": new.read_text().strip()}
    assert tigris("storage", "create", "second", f"--data-dir={data}", **after).returncode == 0
