"""The console in a real browser, on a real node on which things are wrong: Debian's Chromium, driven by Playwright.

`--console-pictures FOLDER` keeps the pictures that the documentation shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.scene import BUSY, FLOOD, MODELS, POISONED_KEY, STUCK, WHY
from tests.admin.stage import Stage, staged
from tests.clients.environments import Client, client
from tests.conftest import TOLD
from tests.nodes import RunningNode
from tigrislike.admin.client import RemoteApi
from tigrislike.console.views import PAGES

pytestmark = [pytest.mark.slow, pytest.mark.sqlite, pytest.mark.timeout(600)]

SEED = int.from_bytes(os.urandom(4), "big")
CHROMIUM = Path("/usr/bin/chromium")
PROGRAM = "console_chromium.py"
GALLERY = "gallery"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if not CHROMIUM.exists():
        pytest.skip(f"Debian's chromium is not installed: there is no {CHROMIUM}")
    with staged(tmp_path_factory.mktemp("stage"), SEED, "--slow-request=1ms", flood=1000) as stage:
        furnish(stage.node)
        yield stage


def s3_of(node: RunningNode) -> Any:
    return node.client()


def furnish(node: RunningNode) -> None:
    """A bucket of everything that the console shows differently."""
    s3 = s3_of(node)
    s3.create_bucket(Bucket=GALLERY)
    s3.put_bucket_versioning(Bucket=GALLERY, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=GALLERY, Key="notes/readme.txt", Body=b"As it was.\n")
    s3.put_object(Bucket=GALLERY, Key="notes/readme.txt", Body="Models and how they were made. \N{MICRO SIGN}\n" * 40)
    s3.put_object(Bucket=GALLERY, Key="notes/gone.txt", Body=b"gone")
    s3.delete_object(Bucket=GALLERY, Key="notes/gone.txt")
    s3.put_object(Bucket=GALLERY, Key="plot.png", Body=picture(), ContentType="image/png", Metadata={"made-by": "us"})
    s3.put_object(Bucket=GALLERY, Key="weights.safetensors", Body=tensors())
    s3.put_object(Bucket=GALLERY, Key="raw.bin", Body=bytes(range(256)) * 4)
    s3.put_object(Bucket=GALLERY, Key="page.html", Body=b"<h1>Hello</h1>", ContentType="text/html")
    s3.put_object(Bucket=GALLERY, Key="a b/\N{SNOWMAN} <i>&'\".txt", Body=b"odd")
    s3.close()


def picture() -> bytes:
    """A PNG of 64 by 64 pixels, in one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x1a\x4f\xc4" * 64) * 64
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tensors() -> bytes:
    """A safetensors file. https://github.com/huggingface/safetensors#format"""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number in range(12):
        at = [number * 256, (number + 1) * 256]
        header[f"model.layers.{number}.attention.weight"] = {"dtype": "F16", "shape": [8, 16], "data_offsets": at}
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + bytes(12 * 256)


@pytest.fixture
def chromium(stage: Stage, tmp_path: Path) -> Client:
    return client("console", stage.node, tmp_path)


@pytest.fixture
def told(stage: Stage, tmp_path: Path) -> Path:
    """What the program is told of the stage: see there."""
    file = tmp_path / "told.json"
    at = {"url": stage.node.endpoint, "main": MAIN, "pages": pages(stage), "dialogs": dialogs(stage)}
    file.write_text(json.dumps(at))
    return file


def pages(stage: Stage) -> dict[str, str]:
    """Every page there is, by a name: its path below the console."""
    scene = stage.scene
    item, zone = scene.poisoned, f"{scene.stuck_zone}"
    return {
        "overview": "/",
        "queue": "/queue",
        "queue-by-bucket": "/queue?by=bucket",
        "zones": "/queue/zones",
        "zones-of-a-region": f"/queue/zones?region={STUCK}",
        "zone": f"/queue/zones/{zone}",
        "no-zone": "/queue/zones/mars%2Fnothing",
        "items": f"/queue/items?bucket={FLOOD}",
        "items-of-none": "/queue/items?error=nothing%20like%20it",
        "items-of-a-region-that-is-not": "/queue/items?region=mars",
        "item": f"/queue/items/{item}",
        "no-item": "/queue/items/00.00",
        "dead": "/queue/dead",
        "nodes": "/nodes",
        "slow": "/slow",
        "settings": "/settings",
        "audit": "/audit",
        "caches": "/caches",
        "throughput": "/throughput",
        "migrations": "/migrations",
        "keys": "/keys",
        "ask-create-key": "/keys/create",
        "ask-rotate-key": f"/keys/{stage.node.access_key_id}/rotate",
        "ask-revoke-key": f"/keys/{stage.node.access_key_id}/revoke",
        "ask-revoke-no-key": "/keys/nobody/revoke",
        "buckets": "/buckets",
        "no-buckets": "/buckets?prefix=mars",
        "bucket": f"/buckets/{GALLERY}",
        "bucket-of-a-migration": f"/buckets/{MODELS}?prefix=checkpoints%2F",
        "bucket-folder": f"/buckets/{GALLERY}?prefix=notes%2F",
        "no-bucket": "/buckets/nothing-like-it",
        "empty-bucket": f"/buckets/{FLOOD}",
        "about-bucket": f"/buckets/{GALLERY}/about",
        "about-migrating-bucket": f"/buckets/{MODELS}/about",
        "versions": f"/buckets/{GALLERY}/versions",
        "object-text": f"/buckets/{GALLERY}/object?key=notes%2Freadme.txt",
        "object-gone": f"/buckets/{GALLERY}/object?key=notes%2Fgone.txt",
        "object-image": f"/buckets/{GALLERY}/object?key=plot.png",
        "object-tensors": f"/buckets/{GALLERY}/object?key=weights.safetensors",
        "object-bytes": f"/buckets/{GALLERY}/object?key=raw.bin",
        "object-html": f"/buckets/{GALLERY}/object?key=page.html",
        "object-odd": f"/buckets/{GALLERY}/object?key=a%20b%2F%E2%98%83%20%3Ci%3E%26'%22.txt",
        "object-migrated": f"/buckets/{MODELS}/object?key={POISONED_KEY.replace('/', '%2F')}",
        "no-object": f"/buckets/{GALLERY}/object?key=nothing",
        "no-image": f"/buckets/{GALLERY}/raw?show=image&key=page.html",
        "replicas": f"/buckets/{MODELS}/replicas?key={POISONED_KEY.replace('/', '%2F')}",
        "replicas-inline": f"/buckets/{GALLERY}/replicas?key=notes%2Freadme.txt",
        "link": f"/buckets/{GALLERY}/link?key=plot.png",
        "ask-delete": f"/buckets/{GALLERY}/delete?key=plot.png",
        "nothing": "/no/such/page",
        "ask-retry": f"/queue/items/{item}/retry",
        "ask-drop": f"/queue/items/{item}/drop",
        "ask-delay": f"/queue/items/{scene.migrate}/delay",
        "ask-delay-of-a-dead-one": f"/queue/items/{item}/delay",
        "ask-retry-dead": "/queue/dead/retry",
        "ask-pause": f"/queue/pause?zone={BUSY}%2F{FLOOD}",
        "ask-resume": f"/queue/resume?region={STUCK}",
    }


def dialogs(stage: Stage) -> dict[str, tuple[str, str]]:
    """The dialogs, by a name: a page, and the text of the link that asks."""
    scene = stage.scene
    return {
        "dialog-retry": (f"/queue/items/{scene.poisoned}", "Retry"),
        "dialog-drop": (f"/queue/items/{scene.poisoned}", "Drop"),
        "dialog-delay": (f"/queue/items/{scene.migrate}", "Delay"),
        "dialog-retry-dead": ("/queue/dead", "Retry all"),
        "dialog-pause": (f"/queue/zones/{scene.stuck_zone}", "Pause zone"),
        "dialog-delete": (f"/buckets/{GALLERY}/object?key=plot.png", "Delete"),
    }


MAIN = ("overview", "zone", "item", "bucket", "object-tensors", "replicas", "migrations", "throughput")
"""What the documentation shows."""


def test_every_page_has_an_address_here(stage: Stage) -> None:
    """So that no page is left out below."""
    paths = [path.partition("?")[0] for path in pages(stage).values()]
    left_out = [
        page.path
        for page in PAGES
        if page.method == "GET" and page.template and not any(page.pattern.fullmatch(path) for path in paths)
    ]
    assert left_out == []


def test_axe_finds_no_violation(
    chromium: Client, told: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    undecided = tmp_path / "undecided.json"
    said = chromium.case(PROGRAM, "axe", str(told), str(undecided), timeout_s=500)
    record_property(TOLD, said.strip().splitlines()[-1])
    for kind, each in json.loads(undecided.read_text()).items():
        contrast = f", with a contrast of {each['contrast'][0]} or more" if each["contrast"] else ""
        record_property(TOLD, f"undecided: {kind} on {', '.join(each['pages'])}{contrast}")


def test_everything_is_reached_by_keyboard(stage: Stage, chromium: Client) -> None:
    chromium.case(PROGRAM, "keyboard", stage.node.endpoint, stage.scene.stuck_zone)


def test_everything_is_there_without_scripts(stage: Stage, chromium: Client, told: Path) -> None:
    chromium.case(PROGRAM, "without_scripts", str(told), stage.scene.flooded_zone)


def test_nothing_moves_for_those_who_want_nothing_to(chromium: Client, told: Path) -> None:
    chromium.case(PROGRAM, "motion", str(told))


def test_pictures_at_three_widths(
    stage: Stage, chromium: Client, told: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept = request.config.getoption("--console-pictures")
    folder = tmp_path / "pictures"
    folder.mkdir()
    chromium.case(PROGRAM, "pictures", str(told), str(folder), str(int(bool(kept))))
    taken = sorted(folder.iterdir())
    assert len(taken) == len(MAIN) * 3 * 2
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        for file in taken:
            shutil.copy(file, kept)


# What follows changes the stage: it comes last, in this order.


def test_the_oldest_stuck_item_is_found_retried_and_drains(stage: Stage, chromium: Client) -> None:
    api = RemoteApi(stage.node.endpoint, stage.node.access_key_id, stage.node.secret_access_key)
    with contextlib.closing(api):

        def homes() -> list[str]:
            shown = asyncio.run(api.call("object", bucket=MODELS, key=POISONED_KEY))
            return [home.state for home in shown.versions[0].homes]

        assert homes() == []
        print(chromium.case(PROGRAM, "solve", stage.node.endpoint, WHY, MODELS))
        assert homes() == ["whole"], "its bytes are here"


def test_a_stuck_region_is_seen_to_drain(stage: Stage, chromium: Client) -> None:
    program = Path(__file__).parents[1] / "clients" / "programs" / PROGRAM
    with chromium.start("python", str(program), "drain", stage.node.endpoint) as looking:
        assert looking.stdout is not None
        said = looking.stdout.readline()
        if said == b"looking\n":
            with stage.second():
                rest, _ = looking.communicate(timeout=120)
        else:
            rest, _ = looking.communicate(timeout=120)
        assert looking.returncode == 0, (said + rest).decode()
