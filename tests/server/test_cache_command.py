"""`tigrislike cache` as people run it: processes of its own, beside a running node and without one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from tests.admin.pristine import BLOCK, files_of, give_away, make, settings_of
from tests.nodes import RunningNode, engine_settings, running_node
from tests.server.test_cli import tigris
from tests.server.test_metrics import samples, scrape
from tests.server.test_serve import s3, until
from tigrislike.admin import cache
from tigrislike.admin.cache import Target
from tigrislike.config import Settings
from tigrislike.node import Node

MIB = 1024 * 1024
LARGE = 5 * BLOCK + 77


def command(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in engine_settings(data_dir).items()]
    return tigris("cache", *words, f"--data-dir={data_dir}", *flags)


def answer(data_dir: Path, *words: str) -> list[Any]:
    done = command(data_dir, *words, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def fill(node: RunningNode) -> None:
    client = s3(node)
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="llama/config.json", Body=b"{}")
    client.put_object(Bucket="models", Key="llama/weights", Body=os.urandom(9 * MIB))
    upload = client.create_multipart_upload(Bucket="models", Key="llama/parts")["UploadId"]
    parts = []
    for number, size in ((1, 5 * MIB), (2, 5 * MIB), (3, 20_000)):
        etag = client.upload_part(
            Bucket="models", Key="llama/parts", UploadId=upload, PartNumber=number, Body=os.urandom(size)
        )["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    client.complete_multipart_upload(
        Bucket="models", Key="llama/parts", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    client.copy_object(Bucket="models", Key="copy", CopySource="models/llama/weights")


@pytest.mark.slow
def test_the_cache_of_a_running_node_is_seen_and_pinned_and_scrubbed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_node(data) as node:
        fill(node)
        found = {line["key"]: line for line in answer(data, "ls", "s3://models/llama/")}
        blocks = {key: (line["blocks"], line["home_blocks"], line["here_bytes"]) for key, line in found.items()}
        assert blocks == {
            "llama/config.json": (0, 0, 2),
            "llama/parts": (3, 3, 10 * MIB + 20_000),
            "llama/weights": (2, 2, 9 * MIB),
        }
        (warmed,) = answer(data, "warm", "s3://models")
        assert warmed == {"objects": 4, "bytes": 28 * MIB + 20_002, "fetched_bytes": 0, "failed": []}
        (pinned,) = answer(data, "unpin", "s3://models/llama/")
        assert (pinned["objects"], pinned["blobs"]) == (3, 4), "an object and its copy are one blob"
        (pinned,) = answer(data, "pin", "s3://models/copy")
        assert (pinned["objects"], pinned["blobs"]) == (1, 1)
        (evicted,) = answer(data, "evict", "s3://models")
        assert evicted == {"objects": 4, "blobs": 0, "bytes": 0, "left": 2}
        until(lambda: ("tigrislike_scrub_completed_timestamp_seconds", ()) in samples(scrape(node)))  # its own first
        (scrubbed,) = answer(data, "scrub")
        assert (scrubbed["blocks"], scrubbed["damaged"]) == (5, 0)
        assert s3(node).get_object(Bucket="models", Key="llama/weights")["ContentLength"] == 9 * MIB
    (status,) = answer(data, "stat")
    assert status["pins"] == 1
    assert status["usage"]["ready"]
    assert status["scrub"]["blocks"] == 5, "without a node just as well"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["ls", "models"], 1, "expected s3://BUCKET"),
        (["ls", "s3://nothing"], 1, "NoSuchBucket"),
        (["ls"], 2, "S3_URL"),
        (["frobnicate"], 2, "frobnicate"),
        (["warm", "s3://b", "--cache-policy=arc"], 1, "setting cache-policy"),
    ],
)
def test_what_makes_no_sense_is_refused(store: RunningNode, words: list[str], status: int, says: str) -> None:
    done = command(store.data_dir, *words)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    done = command(tmp_path / "typo", "stat")
    assert done.returncode == 1
    assert "there is no store in" in done.stderr
    assert not (tmp_path / "typo" / "cache").exists()


# -- Cut off ---------------------------------------------------------------------------------------------------------


def warming(settings: Settings, pristine: Path, *reads: int) -> subprocess.Popen[str]:
    words = [str(settings.data_dir), str(pristine), *map(str, reads)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.admin.warming", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.sqlite
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_warming_that_is_cut_off_leaves_nothing_broken_and_is_gone_on_with(
    tmp_path: Path, number: signal.Signals
) -> None:
    settings, pristine = settings_of(tmp_path / "data"), tmp_path / "pristine"
    blobs = asyncio.run(make(settings, large=LARGE))
    give_away(settings, pristine, blobs["large"])
    with warming(settings, pristine, 3) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert "tigrislike: interrupted; what is done stays done: run it again to go on" in said.splitlines()
        assert "Traceback" not in said
        assert files_of(settings, "filling") == set()
    else:
        assert process.returncode == -signal.SIGKILL
    here = files_of(settings, "cache")
    assert len(here) <= 3

    with warming(settings, pristine) as process:
        out, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    done = json.loads(out)
    missing = 6 - len(here)
    assert (missing - 1) * BLOCK <= done["fetched_bytes"] <= missing * BLOCK
    assert done["bytes"] == LARGE
    assert len(files_of(settings, "cache")) == 6
    assert files_of(settings, "filling") == set()

    async def look() -> None:
        async with Node.opened(settings) as node:
            async with aclosing(cache.present(node, Target("bucket"))) as found:
                assert [presence.here_bytes async for presence in found] == [LARGE]
            await node.blocks.verify_blob(blobs["large"], LARGE)
            usage = await node.blocks.usage()
            sizes = [path.stat().st_size for path in (settings.cache_dir / "cache").rglob("*.*")]
            assert (usage.used_bytes, usage.blocks, usage.pinned_blocks) == (sum(sizes), 6, 6)
            reconciled = await node.blocks.reconcile()
            assert (reconciled.added, reconciled.removed, reconciled.garbage) == (0, 0, 0)

    asyncio.run(look())
