"""Caches, throughput, replicas and migrations in the console of running nodes."""

from __future__ import annotations

import asyncio
import html
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import RunningNode, engine_settings, running_node
from tests.shadow.shadows import Pair, running_pair
from tests.shadow.test_surfaces import command
from tigrislike.console.page import PREFIX
from tigrislike.metadata import MasterKey, Metadata, history
from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.records import Node, NodeSample

from .browser import Answer, Browser

SECOND = 10**9
BODY = random.Random(1).randbytes(1 << 20)
EAST, WEST = b"east" * 4, b"west" * 4
UNTIL_S = 60.0


def words(markup: str) -> str:
    """The text of a part of a page, with a space in place of each tag and all other space."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", markup)).split())


def said(answer: Answer) -> str:
    return words(answer.text)


def operator_of(node: RunningNode) -> Browser:
    browser = Browser(node.endpoint)
    assert browser.sign_in(node.access_key_id, node.secret_access_key).status == 303
    return browser


def client_of(node: RunningNode) -> Any:
    return node.client()


# --- caches and throughput


async def note_hours(data_dir: Path) -> None:
    """Two nodes' last hour: one that was down for ten minutes in its midst, one that started anew a while ago."""
    where = engine_settings(data_dir)
    master = MasterKey.load(None, where.get("master_key_file", data_dir / "master.key"), create=True)
    engine = await open_engine(where.get("metadata", f"sqlite://{data_dir / 'metadata.db'}"))
    try:
        now_ns = time.time_ns()
        for node, region in ((EAST, "east"), (WEST, "west")):
            metadata = await Metadata.open(engine, master_key=master, node_id=node, region=region)
            await metadata.join(Node(node, region, f"http://{region}.example"))
            for number in range(240):
                at_ns = now_ns - (240 - number) * 15 * SECOND
                if node == EAST and 100 <= number < 140:
                    continue
                anew = node == WEST and number >= 200
                count = 15 * (number - 199 if anew else number)
                sample = NodeSample(
                    at_ns,
                    1 + anew * (now_ns - 41 * 15 * SECOND),
                    requests=(2 if node == EAST else 3) * count,
                    sent_bytes=1024 * count,
                    hits=9 * count,
                    misses=count,
                    cache_used=1 << 30,
                    cache_capacity=2 << 30,
                )
                await engine.transact(history.note, metadata.context, sample)
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def looker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    data_dir = tmp_path_factory.mktemp("looking") / "data"
    data_dir.mkdir()
    asyncio.run(note_hours(data_dir))
    with running_node(data_dir, "--region=here") as node:
        yield operator_of(node)


def legend(page: Answer, plot: str) -> str:
    """What a plot's legend says."""
    begin = page.text.index(f'id="{plot}-head"')
    return " ".join(
        html.unescape(re.sub("<[^>]*>", " ", page.text[begin : page.text.index("</table>", begin)])).split()
    )


def test_throughput_over_an_hour_with_a_gap_and_a_restart(looker: Browser) -> None:
    page = looker.get("/throughput")
    told = legend(page, "requests")
    assert "east 65617374 2/s 2/s 2/s" in told, "a gap is no dip, and what was counted in it no peak"
    assert "west 77657374 3/s 3/s 3/s" in told, "nor is a counter that starts anew"
    assert "1.0 KiB/s" in legend(page, "sent")
    lines = re.findall(r'<path class="plot-line plot-\d" stroke-dasharray="[^"]*" d="(M[^"]*L[^"]*)"', page.text)
    assert sorted(line.count("M") for line in lines[:2]) == [1, 2], "the line of the one that was down is broken"
    assert page.text.count('<svg class="plot" role="img"') == 4


def test_caches_now_and_over_time(looker: Browser) -> None:
    page = looker.get("/caches")
    assert "east 65617374 90% 90% 90%" in legend(page, "hit-rate")
    assert "east 65617374 1.0 GiB 1.0 GiB 1.0 GiB" in legend(page, "used")
    text = said(page)
    assert "The node that answers" in text
    assert "here" in text
    assert looker.get("/caches", X_Live="1").status == 200, "it is refreshed"


def test_one_node_alone_and_other_times(looker: Browser) -> None:
    alone = looker.get(f"/throughput?node={WEST.hex()}")
    assert "west" in legend(alone, "requests")
    assert "east" not in legend(alone, "requests")
    for span in ("3600", "10800", "86400", "259200"):
        page = looker.get(f"/throughput?span={span}")
        assert "3/s" in legend(page, "requests"), span
    for query in ("span=60", "span=never", "span=", "node=zz", "node=" + "0" * 33):
        assert looker.get(f"/throughput?{query}").status == (200 if query == "span=" else 400), query
    assert "Nothing is known of this time." in looker.get("/caches?node=" + "0" * 32).text


# --- replicas


def put(client: Any, bucket: str) -> bool:
    """Write an object; False where its bucket wants a node that nobody has seen to beat yet."""
    try:
        client.put_object(Bucket=bucket, Key="k", Body=BODY)
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] == "ServiceUnavailable":
            return False
        raise
    return True


@pytest.mark.slow
@pytest.mark.sqlite
def test_where_an_object_is_as_two_regions_see_it(tmp_path: Path) -> None:
    first = tmp_path / "iad"
    with running_node(first, "--region=iad") as iad:
        flags = f"--metadata=sqlite://{first / 'metadata.db'}", f"--master-key-file={first / 'master.key'}"
        with running_node(tmp_path / "sjc", "--region=sjc", *flags) as sjc:
            here, there = client_of(iad), client_of(sjc)
            here.create_bucket(Bucket="bucket")
            here.put_object(Bucket="bucket", Key="k", Body=BODY)
            at_iad, at_sjc = operator_of(iad), operator_of(sjc)
            path = "/buckets/bucket/replicas?key=k"
            page = said(at_iad.get(path))
            assert "all of it, durably 1 durable and 0 cached of 1 blocks alive" in page
            assert "as its bucket wants it" in page
            assert "1 durable and 0 cached of 1 blocks" in said(at_sjc.get(path)), "the other region is asked"
            assert "nothing durably" not in said(at_sjc.get(path))
            assert there.get_object(Bucket="bucket", Key="k")["Body"].read() == BODY
            until_s = time.monotonic() + UNTIL_S
            for looker in (at_iad, at_sjc):
                while "nothing durably 0 durable and 1 cached of 1 blocks" not in (page := said(looker.get(path))):
                    assert time.monotonic() < until_s, page  # it is kept behind the answer
                assert "2 nodes told what is on their disks." in page
            everywhere = at_sjc.get("/buckets/bucket/object?key=k")
            assert PREFIX + path in everywhere.html.links
            wanted = client_of(iad)
            wanted.meta.events.register(
                "before-call.s3.CreateBucket",
                lambda params, **_: params["headers"].update({"X-Tigris-Regions": "iad,sjc"}),
            )
            wanted.create_bucket(Bucket="both")
            until_s = time.monotonic() + UNTIL_S
            while not put(wanted, "both"):
                assert time.monotonic() < until_s
            page = said(at_sjc.get("/buckets/both/replicas?key=k"))
            assert "Wanted in iad, sjc, on 2 nodes or more." in page
            assert page.count("all of it, durably") == 2
            assert page.count("alive") == 2
            assert "Regions iad,sjc" in said(at_sjc.get("/buckets/both/about"))
            for made in (here, there, wanted):
                made.close()


# --- migrations


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_pair(tmp_path_factory.mktemp("migrations")) as pair:
        yield pair


def tell(pair: Pair, action: str, **what: str) -> None:
    browser = operator_of(pair.store)
    csrf = browser.get("/").html.csrf
    assert browser.post(f"/queue/{action}", {"csrf": csrf, **what}).status == 303


def begin_migration(pair: Pair, bucket: str) -> None:
    done = command(pair.store.data_dir, "origin", "migrate", bucket)
    assert done.returncode == 0, done.stderr


def card(browser: Browser, bucket: str) -> str:
    """What the page says of one bucket's migration."""
    text = browser.get("/migrations").text
    begin = text.index(f'id="m-{bucket}"')
    return words(text[begin : text.index("</section>", begin)])


def until(browser: Browser, bucket: str, wanted: str) -> str:
    until_s = time.monotonic() + UNTIL_S
    while wanted not in (told := card(browser, bucket)):
        assert time.monotonic() < until_s, told
    return told


@pytest.mark.slow
def test_a_migration_that_is_half_done(pair: Pair) -> None:
    mine, other = pair.bucket()
    for number in range(3):
        pair.at_origin.put_object(Bucket=other, Key=f"k{number}", Body=BODY)
    browser = operator_of(pair.store)
    told = card(browser, mine)
    assert "not begun" in told
    assert f"s3://{other}" in told
    tell(pair, "pause", region=pair.store.region)
    tell(pair, "pause", zone=f"anybody/{mine}")
    begin_migration(pair, mine)
    assert "walking" in until(browser, mine, "walking")
    tell(pair, "resume", zone=f"anybody/{mine}")
    told = until(browser, mine, "fetching")
    assert "Keys looked at 3" in told
    assert "Adopted 3" in told
    assert "Bytes still to come, of objects 3" in told
    replicas = said(browser.get(f"/buckets/{mine}/replicas?key=k0"))
    assert "the object that it was adopted from" in replicas
    assert f"s3://{other}" in replicas
    assert "Owed for it" in replicas
    tell(pair, "resume", region=pair.store.region)
    until_s = time.monotonic() + UNTIL_S
    while any("Owed for it" in said(browser.get(f"/buckets/{mine}/replicas?key=k{number}")) for number in range(3)):
        assert time.monotonic() < until_s
    assert "Bytes still to come, of objects 0" in until(browser, mine, "done")
    assert "yes" in said(browser.get(f"/buckets/{mine}/about")).partition("Shadow")[2][:5]


@pytest.mark.slow
def test_what_is_deleted_here_is_owed_to_a_shadow_that_is_written_through(pair: Pair) -> None:
    mine, other = pair.bucket(write_through=True)
    pair.at_origin.put_object(Bucket=other, Key="k", Body=BODY)
    browser = operator_of(pair.store)
    asked = browser.get(f"/buckets/{mine}/delete?key=k")
    assert "Its shadow loses it too." in asked.html.text
    tell(pair, "pause", zone=f"anybody/{mine}")
    assert "written through" in card(browser, mine)
    csrf = browser.get("/").html.csrf
    path = f"/buckets/{mine}/upload?key=new"
    assert browser.ask("POST", path, b"bytes", X_CSRF_Token=csrf, Content_Type="text/plain").status == 201
    assert "Owed to the shadow 1" in until(browser, mine, "Owed to the shadow 1")
    assert "Owed to its shadow" in said(browser.get(f"/buckets/{mine}/replicas?key=new"))
    tell(pair, "resume", zone=f"anybody/{mine}")
    until_s = time.monotonic() + UNTIL_S
    while pair.at_origin.list_objects_v2(Bucket=other, Prefix="new")["KeyCount"] == 0:
        assert time.monotonic() < until_s
    assert pair.at_origin.get_object(Bucket=other, Key="new")["Body"].read() == b"bytes"
