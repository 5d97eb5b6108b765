"""Damage under a whole node: over HTTP no wrong byte leaves, and what somebody else has is healed on the way."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cache.serving import COMMAND, VARIABLE
from tests.e2e.conftest import client
from tests.nodes import RunningNode, remove_store, running_node

BLOCK = 2 * 1024 * 1024
LONG = 6
"""Blocks of an object: more than the kernel takes between two processes whose client reads nothing."""
SHORT = 3
BUCKET = "weights"
WAIT_S = 60.0


class Damaged:
    """A node, its source, and objects whose blocks can be damaged."""

    def __init__(self, node: RunningNode, pristine: Path) -> None:
        self.node = node
        self.pristine = pristine
        self.s3 = client(node)
        self.s3.create_bucket(Bucket=BUCKET)
        self.dice = random.Random(11)
        self.cache_dir = node.data_dir / "cache"
        self.count = 0

    def home(self) -> set[Path]:
        return {path for path in (self.cache_dir / "home").rglob("*") if path.is_file()}

    def put(self, place: str, blocks: int = SHORT) -> Stored:
        """An object whose blocks are durable here (home), or were fetched from the source (cache)."""
        self.count += 1
        data = self.dice.randbytes(blocks * BLOCK - 1000)
        before = self.home()
        self.s3.put_object(Bucket=BUCKET, Key=f"object-{self.count}", Body=data)
        until(lambda: len(self.home() - before) == blocks)
        files = self.home() - before
        for path in files:
            shutil.copyfile(path, self.pristine / path.name)
        stored = Stored(self, f"object-{self.count}", data, place, min(files).name.partition(".")[0])
        if place == "cache":
            for path in files:
                path.unlink()
            assert stored.get() == (200, data)
            until(lambda: all(stored.file(number).exists() for number in range(blocks)))
        return stored


class Stored:
    """One object in a `Damaged` node, and its last block but one, which is damaged.

    Behind the first bytes of a long object that block is far away when a client has read no more than those.
    """

    def __init__(self, damaged: Damaged, key: str, data: bytes, place: str, blob: str) -> None:
        self.node = damaged.node
        self.pristine = damaged.pristine
        self.data = data
        self.place = place
        self.blob = blob
        self.blocks = -(-len(data) // BLOCK)
        self.target = self.blocks - 2
        self.tree = damaged.cache_dir / place / blob[:2]
        self.url = damaged.s3.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key})

    def file(self, number: int) -> Path:
        return self.tree / f"{self.blob}.{number}"

    def forget_elsewhere(self) -> None:
        for number in range(self.blocks):
            (self.pristine / f"{self.blob}.{number}").unlink()

    def opened(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        target = urlsplit(self.url)
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=WAIT_S)
        connection.sock = socket.socket()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sock.settimeout(WAIT_S)
        connection.sock.connect(("127.0.0.1", target.port))
        connection.request(
            "GET",
            f"{target.path}?{target.query}",
            headers={"Range": f"bytes={start}-{(stop or len(self.data)) - 1}"} if start else {},
        )
        return connection.getresponse(), connection

    def get(
        self, start: int = 0, stop: int | None = None, interrupt: Callable[[], None] = lambda: None
    ) -> tuple[int, bytes]:
        """(status, body, as far as it came); `interrupt` is called when some of the body is here."""
        response, connection = self.opened(start, stop)
        try:
            body = response.read(1000)
            interrupt()
            try:
                body += response.read()
            except http.client.IncompleteRead as error:
                body += error.partial
            except ConnectionError:
                pass  # cut before the rest
            return response.status, body
        finally:
            connection.close()

    def rewrite(self, change: Callable[[bytearray], None]) -> None:
        path = self.file(self.target)
        before = path.stat().st_mtime_ns
        data = bytearray(path.read_bytes())
        change(data)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
        path.chmod(0o400)
        os.utime(path, ns=(before, before + 1_000_000_000))

    def flip(self, offset: int) -> None:
        self.rewrite(lambda data: data.__setitem__(offset, data[offset] ^ 8))

    def swap(self) -> None:
        one, other = self.file(self.target), self.file(self.target + 1)
        spare = one.with_name("spare")
        for source, target in ((one, spare), (other, one), (spare, other)):
            source.rename(target)

    def take_anothers(self) -> None:
        content = self.file(0).read_bytes()
        self.rewrite(lambda data: data.__setitem__(slice(None), content))


DAMAGE: dict[str, Callable[[Stored], None]] = {
    "data": lambda stored: stored.flip(12345),
    "footer": lambda stored: stored.flip(BLOCK + 36),
    "footer-checksum": lambda stored: stored.flip(BLOCK + 4095),
    "magic": lambda stored: stored.flip(BLOCK),
    "truncated": lambda stored: stored.rewrite(lambda data: data.__delitem__(slice(5000, None))),
    "extended": lambda stored: stored.rewrite(lambda data: data.extend(bytes(4096))),
    "swapped": Stored.swap,
    "another-block": Stored.take_anothers,
}


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def metrics(node: RunningNode) -> dict[str, float]:
    """Values by name and labels."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=WAIT_S)
    try:
        connection.request("GET", "/_tigrislike/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.fixture(scope="module")
def damaged() -> Iterator[Damaged]:
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as name:
        directory = Path(name)
        pristine = directory / "pristine"
        pristine.mkdir()
        with running_node(
            directory / "node", f"--block-size={BLOCK}", command=COMMAND, environment={VARIABLE: str(pristine)}
        ) as node:
            yield Damaged(node, pristine)
        remove_store(directory / "node")


MOMENTS = ("before-the-first-read", "after-it", "during-it")


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "alone"])
@pytest.mark.parametrize("place", ["home", "cache"])
@pytest.mark.parametrize(
    "damage", [name if name == "data" else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGE]
)
def test_every_damage_at_every_moment_over_http(damaged: Damaged, damage: str, place: str, has_source: bool) -> None:
    for moment in MOMENTS:
        stored = damaged.put(place, LONG if moment == "during-it" else SHORT)
        if not has_source:
            stored.forget_elsewhere()
        if moment == "after-it":
            for _ in range(2):
                assert stored.get() == (200, stored.data)
        elif moment == "before-the-first-read":
            DAMAGE[damage](stored)
        if moment == "after-it":
            DAMAGE[damage](stored)
        hurt = partial(DAMAGE[damage], stored) if moment == "during-it" else _nothing
        status, body = stored.get(interrupt=hurt)
        assert status == 200
        assert stored.data.startswith(body)
        if has_source:
            assert len(body) == len(stored.data)
            assert stored.get() == (200, stored.data)
            until(partial(_is_pristine, damaged, stored))
        else:
            assert len(stored.get()[1]) < len(stored.data)
            start = stored.target * BLOCK + 1
            status, body = stored.get(start)
            assert status == 500
            for secret in (str(damaged.node.data_dir), stored.blob, "block", str(damaged.pristine)):
                assert secret.encode() not in body
            assert stored.file(stored.target).exists() == (place == "home")
            # All that is sound is still served.
            assert stored.get(5, stored.target * BLOCK) == (206, stored.data[5 : stored.target * BLOCK])


def _nothing() -> None:
    pass


def _is_pristine(damaged: Damaged, stored: Stored) -> bool:
    """Whether the damaged block is what it was; a moment after its bytes were served, when it came from a source."""
    path = stored.file(stored.target)
    return path.exists() and path.read_bytes() == (damaged.pristine / path.name).read_bytes()


def test_metrics_tell_what_was_healed_and_what_an_operator_must_see_to(damaged: Damaged) -> None:
    before = metrics(damaged.node)
    stored = damaged.put("home")
    stored.flip(1)
    assert stored.get() == (200, stored.data)

    def grown(name: str) -> float:
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key.startswith(name))

    after = before
    until(lambda: _is_pristine(damaged, stored))
    while not grown("tigrislike_healed"):  # it is counted a moment after the file is there
        after = metrics(damaged.node)
    stored.flip(1)
    stored.forget_elsewhere()
    assert stored.get(stored.target * BLOCK)[0] == 500
    after = metrics(damaged.node)
    assert grown("tigrislike_healed") == 1
    assert grown("tigrislike_corrupt_unhealed") >= 1
    assert grown("tigrislike_verify_failures") >= 2


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "alone"])
@pytest.mark.parametrize("place", ["home", "cache"])
def test_sectors_that_go_bad_under_what_was_verified_are_damage_too(
    damaged: Damaged, place: str, has_source: bool
) -> None:
    """Whoever sends a verified block without copying it is the first to meet them."""
    before = metrics(damaged.node)
    stored = damaged.put(place)
    if not has_source:
        stored.forget_elsewhere()
    for _ in range(2):
        assert stored.get() == (200, stored.data)
    bad = damaged.pristine / "bad" / str(stored.file(stored.target).stat().st_ino)
    bad.parent.mkdir(exist_ok=True)
    bad.touch()
    try:
        status, body = stored.get()
        assert status == 200
        if has_source:
            assert body == stored.data
            until(lambda: _is_pristine(damaged, stored))
        else:
            assert body == stored.data[: stored.target * BLOCK]
            assert stored.get(stored.target * BLOCK)[0] == 500
            name = "tigrislike_corrupt_unhealed_total"
            assert metrics(damaged.node)[name] > before[name]
        assert stored.get(1, stored.target * BLOCK) == (206, stored.data[1 : stored.target * BLOCK])
    finally:
        bad.unlink()


def test_while_the_source_is_away_a_client_is_told_to_come_back(damaged: Damaged) -> None:
    stored = damaged.put("home")
    stored.flip(1)
    (damaged.pristine / "away").touch()
    try:
        response, connection = stored.opened(stored.target * BLOCK)
        assert (response.status, response.getheader("Retry-After") is not None) == (503, True)
        assert b"SlowDown" in response.read()
        connection.close()
    finally:
        (damaged.pristine / "away").unlink()
    assert stored.get() == (200, stored.data)


def test_a_blob_that_was_deleted_is_not_fetched(damaged: Damaged) -> None:
    stored = damaged.put("cache")
    for number in range(stored.blocks):
        stored.file(number).unlink()
    (damaged.pristine / "dead").touch()
    try:
        assert stored.get()[0] == 500
        assert not any(stored.file(number).exists() for number in range(stored.blocks))
    finally:
        (damaged.pristine / "dead").unlink()
    assert stored.get() == (200, stored.data)


def test_a_range_of_what_is_elsewhere_is_fetched_by_whichever_worker_is_asked(damaged: Damaged) -> None:
    stored = damaged.put("home")
    for number in range(stored.blocks):
        stored.file(number).unlink()
    found: list[Any] = [stored.get(start) for start in range(0, len(stored.data), len(stored.data) // 7)]
    assert found == [
        (206 if start else 200, stored.data[start:]) for start in range(0, len(stored.data), len(stored.data) // 7)
    ]
    cached = damaged.cache_dir / "cache" / stored.blob[:2]
    until(lambda: sum(path.name.startswith(stored.blob) for path in cached.iterdir()) == stored.blocks)
