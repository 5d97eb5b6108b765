"""Bounded reads on real nodes: two over one database, one cut off from it, and the commands that set the mode."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cut_off_node import COMMAND, VARIABLE
from tests.crash.requests import Client
from tests.nodes import RunningNode, engine_settings, running_node
from tests.server.test_cli import tigris, variables
from tests.server.test_metrics import samples
from tests.server.test_serve import until

BOUND_S = 2.0
QUICKLY_S = 5.0
FORCE = {"x-tigris-consistent": "true"}


def metrics(node: RunningNode) -> dict[str, float]:
    with urllib.request.urlopen(f"{node.endpoint}/_tigrislike/metrics") as answer:
        return {name: value for (name, labels), value in samples(answer.read().decode()).items() if not labels}


# --- two nodes over one database


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, RunningNode]]:
    """Nodes over one database, each with a disk of its own, of one worker each."""
    directory = tmp_path_factory.mktemp("pair")
    east, west = directory / "east", directory / "west"
    where = engine_settings(east) or {
        "metadata": f"sqlite://{directory / 'metadata.db'}",
        "master_key_file": directory / "master.key",
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in where.items()]
    with (
        running_node(east, *flags, "--workers=1", "--region=east") as first,
        running_node(west, *flags, "--workers=1", "--region=west") as second,
    ):
        made = Client(first).call("PUT", "/shared", headers={"x-tigrislike-read-mode": f"bounded={BOUND_S}"})
        assert made.status == 200
        yield first, second


def test_what_one_node_writes_the_other_reads_within_the_bound(pair: tuple[RunningNode, RunningNode]) -> None:
    east, west = (Client(node) for node in pair)
    east.call("PUT", "/shared/k", body=b"old")
    assert west.call("GET", "/shared/k").body == b"old"
    east.call("PUT", "/shared/k", body=b"new")
    written_s = time.monotonic()

    def new() -> bool:
        begun_s = time.monotonic()
        answer = west.call("GET", "/shared/k")
        if answer.body == b"old":
            assert begun_s <= written_s + BOUND_S
            assert int(answer.headers["age"]) <= BOUND_S
            return False
        assert answer.body == b"new"
        return True

    until(new)
    assert east.call("GET", "/shared/k").body == b"new"


def test_who_asks_for_consistency_gets_it_at_once(pair: tuple[RunningNode, RunningNode]) -> None:
    east, west = (Client(node) for node in pair)
    for n in range(10):
        writer, reader = (east, west) if n % 2 else (west, east)
        writer.call("PUT", "/shared/c", body=b"%d" % n)
        answer = reader.call("GET", "/shared/c", headers=FORCE)
        assert (answer.body, "age" in answer.headers) == (b"%d" % n, False)
        assert reader.call("GET", "/shared/c").body == b"%d" % n


def test_hits_are_counted(pair: tuple[RunningNode, RunningNode]) -> None:
    east = Client(pair[0])
    east.call("PUT", "/shared/h", body=b"h")
    east.call("GET", "/shared/h", headers=FORCE)
    before = metrics(pair[0])
    assert "age" in east.call("GET", "/shared/h").headers
    after = metrics(pair[0])
    assert after["tigrislike_bounded_hits_total"] == before["tigrislike_bounded_hits_total"] + 1
    assert after["tigrislike_bounded_stale_total"] == 0


# --- a node that is cut off


class CutOff:
    """A node of one worker and the file that cuts its way to the database."""

    def __init__(self, node: RunningNode, file: Path) -> None:
        self.node = node
        self.file = file
        self.client = Client(node)

    def status(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Its status, headers and body; and it does not take long."""
        begun_s = time.monotonic()
        answer = self.client.caller.send(method, path, headers)
        assert time.monotonic() - begun_s < QUICKLY_S
        return answer.status, dict(answer.headers), answer.body


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CutOff]:
    directory = tmp_path_factory.mktemp("cut")
    file = directory / "cut"
    flags = ("--workers=1", "--bounded-wait=200ms")
    with running_node(directory / "data", *flags, command=COMMAND, environment={VARIABLE: str(file)}) as node:
        yield CutOff(node, file)


@pytest.mark.parametrize("how", ["refused", "hang"])
def test_a_node_without_its_database_reads_what_it_knows(cut_off: CutOff, how: str) -> None:
    client, bucket = cut_off.client, f"bounded-{how}"
    client.call("PUT", f"/{bucket}", headers={"x-tigrislike-read-mode": "bounded=1ms"})
    client.call("PUT", f"/strong-{how}")
    large = bytes(range(256)) * 80_000
    for key, body in (("small", b"small"), ("large", large), ("unread", b"unread")):
        client.call("PUT", f"/{bucket}/{key}", body=body)
    client.call("PUT", f"/strong-{how}/k", body=b"k")
    client.call("GET", f"/{bucket}/small")
    client.call("GET", f"/{bucket}/large")
    before = metrics(cut_off.node)["tigrislike_bounded_stale_total"]
    cut_off.file.write_text(how)
    try:
        for _ in range(2):
            for key, body in (("small", b"small"), ("large", large)):
                status, headers, got = cut_off.status("GET", f"/{bucket}/{key}")
                assert (status, got) == (200, body)
                assert headers["cache-status"].startswith("tigrislike; hit; ttl=-")
                assert int(headers["age"]) >= 0
        assert cut_off.status("HEAD", f"/{bucket}/small")[0] == 200
        assert cut_off.status("GET", f"/{bucket}/large", headers={"range": "bytes=5-9"})[2] == large[5:10]
        assert metrics(cut_off.node)["tigrislike_bounded_stale_total"] == before + 6
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{cut_off.node.endpoint}/readyz")
        if how == "hang":  # a hanging engine says nothing: the first question that stays unanswered does
            until(lambda: "cannot be reached: no answer in time" in cut_off.node.log.read_text())
        for method, path in (
            ("GET", f"/{bucket}/unread"),
            ("GET", f"/strong-{how}/k"),
            ("PUT", f"/{bucket}/small"),
            ("DELETE", f"/{bucket}/small"),
        ):
            status, headers, _ = cut_off.status(method, path)
            assert (status, headers["retry-after"]) == (503, "1")
    finally:
        cut_off.file.unlink()
    until(lambda: cut_off.status("GET", f"/strong-{how}/k")[0] == 200)
    assert "ttl=-" not in cut_off.status("GET", f"/{bucket}/small")[1].get("cache-status", "")
    assert cut_off.status("PUT", f"/{bucket}/small")[0] == 200
    assert cut_off.status("GET", f"/{bucket}/small")[2] == b""


# --- commands


def test_the_mode_is_set_when_storage_is_made_and_changed_later(tmp_path: Path) -> None:
    data = tmp_path / "data"
    here = [f"--data-dir={data}", *(f"--{k.replace('_', '-')}={v}" for k, v in engine_settings(data).items())]
    made = tigris("storage", "create", "first", "--read-mode=bounded=1500ms", *here)
    assert made.returncode == 0, made.stderr
    with running_node(data) as node:
        client = Client(node)
        keys = {"AWS_ACCESS_KEY_ID": node.access_key_id, "AWS_SECRET_ACCESS_KEY": node.secret_access_key}
        words = ["storage", "create", "second", f"--endpoint={node.endpoint}", "--read-mode=bounded=5"]
        assert variables(tigris(*words, **keys).stdout)["BUCKET_NAME"] == "second"

        def mode(bucket: str) -> str:
            return client.call("HEAD", f"/{bucket}").headers["x-tigrislike-read-mode"]

        assert (mode("first"), mode("second")) == ("bounded=1.5s", "bounded=5s")
        changed = tigris("buckets", "set", "first", "--read-mode=strong", *here)
        assert (changed.returncode, changed.stdout) == (
            0,
            "regions=global\ndurability=local\nread-mode=strong\n",
        ), changed.stderr
        assert mode("first") == "strong"  # at once, on the running node
        words[2] = "third"
        refused = tigris(*words[:-1], "--read-mode=sometimes", **keys)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "InvalidArgument: A read mode is strong, or bounded=10s" in refused.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["first", "--read-mode=sometimes"], "InvalidArgument: A read mode is strong, or bounded=10s: from 1ms to 1h"),
        (["other", "--read-mode=strong"], "NoSuchBucket: The specified bucket does not exist"),
        (["first"], "nothing to change"),
    ],
)
def test_what_buckets_set_refuses(tmp_path: Path, words: list[str], why: str) -> None:
    data = tmp_path / "data"
    here = [f"--data-dir={data}", *(f"--{k.replace('_', '-')}={v}" for k, v in engine_settings(data).items())]
    assert tigris("storage", "create", "first", *here).returncode == 0
    done = tigris("buckets", "set", *words, *here)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
