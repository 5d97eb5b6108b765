"""The metrics page as a whole: Prometheus' conventions, who may read it, and that its numbers come from somewhere."""

from __future__ import annotations

import asyncio
import http.client
import re
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from cryptography.x509 import load_pem_x509_certificate
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.cut_off_node import COMMAND, VARIABLE
from tests.nodes import RunningNode, running_node
from tests.replication.memory_origin import MemoryOrigin
from tests.server.test_metrics import s3, samples, scrape, whole_page
from tests.server.test_serve import until
from tigrislike.admin import gauges
from tigrislike.config import load_settings
from tigrislike.families import FAMILIES, NAMING, shown_name
from tigrislike.metadata.records import OriginPlace
from tigrislike.metrics import Reading
from tigrislike.node import TASKS, Node
from tigrislike.origin import OriginUnavailable
from tigrislike.origin.resilient import Limits, Resilient
from tigrislike.replication.origins import Origins
from tigrislike.replication.reclaim import ReclaimContent

TOKEN = "a-token-for-prometheus"
# Units that are none of Prometheus' base units, and what its linter keeps for kinds and parts of metrics.
NO_PART_OF_A_NAME = (
    *("milliseconds", "minutes", "hours", "days", "kilobytes", "megabytes", "percent", "ms", "ns", "kb", "mb"),
    *("counter", "gauge", "histogram", "summary", "total", "count", "sum"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path, Path]) -> Iterator[RunningNode]:
    """A node that asks for a token, and has done something of everything."""
    directory = tmp_path_factory.mktemp("metrics")
    (directory / "tokens").write_text(f"an-old-token\n{TOKEN}\n")
    cert, key, authority = certificate
    flags = [f"--metrics-auth={directory / 'tokens'}", "--cache-size=1GiB", "--reclaim-grace=0"]
    flags += [f"--tls-cert={cert}", f"--tls-key={key}", "--workers=1"]
    with running_node(directory / "data", *flags, ca_bundle=str(authority)) as node:
        yield node


def authorised(node: RunningNode, authorization: str = f"Bearer {TOKEN}") -> str:
    request = urllib.request.Request(
        f"{node.endpoint}/_tigrislike/metrics", headers={"Authorization": authorization} if authorization else {}
    )
    with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cafile=node.ca_bundle)) as page:
        return str(page.read().decode())


@pytest.fixture(scope="module")
def page(node: RunningNode) -> str:
    """All that can be on a page."""
    client = boto3.client(
        "s3",
        endpoint_url=node.endpoint,
        verify=node.ca_bundle,
        aws_access_key_id=node.access_key_id,
        aws_secret_access_key=node.secret_access_key,
        region_name="auto",
    )
    client.create_bucket(Bucket="named-bucket")
    client.put_object(Bucket="named-bucket", Key="named-key", Body=b"x" * 100_000)
    client.delete_object(Bucket="named-bucket", Key="named-key")
    client.put_object(Bucket="named-bucket", Key="named-key", Body=b"x" * 1000)
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket="named-bucket", Key="none")
    text = ""

    def complete() -> bool:
        nonlocal text
        text = authorised(node)
        return all(f"\n{shown_name(name)}" in text for name in FAMILIES)

    until(complete)
    return text


def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


# --- the conventions


def test_names_units_and_labels_follow_the_conventions_of_prometheus(page: str) -> None:
    found = families(page)
    assert len(found) == len(FAMILIES)
    for family in found:
        name = family.name
        assert re.fullmatch(r"tigrislike_[a-z][a-z0-9_]*[a-z]", name), name
        assert family.documentation.endswith("."), name
        assert family.type in ("counter", "gauge", "histogram"), name
        words = name.split("_")
        assert not set(words) & set(NO_PART_OF_A_NAME), name
        if unit := {"seconds", "bytes", "ratio"} & set(words):
            assert words[-1] in unit, f"{name}: the unit comes last"
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name == f"{name}_total"
            assert sample.value >= 0 or name == "tigrislike_node_beat_age_seconds", sample
            assert all(re.fullmatch(r"[a-z]+", label) for label in sample.labels), sample


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=zzz", "text/plain; version=", ";;;", "*/*"])
def test_whatever_is_accepted_there_is_a_page(node: RunningNode, accept: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": accept}
    request = urllib.request.Request(f"{node.endpoint}/_tigrislike/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cafile=node.ca_bundle)) as page:
        assert page.status == 200
        assert b"tigrislike_" in page.read()


def test_promtool_has_nothing_to_say_of_the_page(page: str) -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_page_has_every_family_and_no_other(page: str) -> None:
    assert {family.name for family in families(page)} == {shown_name(name).removesuffix("_total") for name in FAMILIES}


def test_the_docs_have_every_family_with_its_labels_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    row = r"^\| `(tigrislike_[a-z_]+)(?:\{([a-z,]*)\})?` \| (\w+) \| (.+) \|$"
    rows = re.findall(row, text, re.MULTILINE)
    documented = {name: (kind, f"{said}.", tuple(filter(None, labels.split(",")))) for name, labels, kind, said in rows}
    assert documented == {shown_name(name): family[:3] for name, family in FAMILIES.items()}
    parts = {f"{name}_{part}" for name in documented for part in ("bucket", "sum", "count")}
    assert set(re.findall(r"tigrislike_[a-z_]*[a-z]", text)) <= set(documented) | parts


def test_every_task_has_a_place(tmp_path: Path) -> None:
    async def lanes() -> list[str]:
        async with Node.opened(load_settings({"data_dir": str(tmp_path / "data")}, {})) as node:
            return list(node.consumer()._lanes)

    assert sorted(asyncio.run(lanes())) == sorted(TASKS)


# --- who may read it


def test_without_the_token_nothing_is_told(node: RunningNode, page: str) -> None:
    for authorization in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            authorised(node, authorization)
        assert (refused.value.code, refused.value.headers["www-authenticate"]) == (401, "Bearer")
        assert "tigrislike_" not in refused.value.read().decode()
        refused.value.close()
    assert "tigrislike_build_info" in authorised(node, "bearer an-old-token")


def test_a_token_can_be_replaced_and_without_its_file_none_is_good(node: RunningNode) -> None:
    tokens = node.data_dir.with_name("tokens")
    before = tokens.read_text()
    try:
        tokens.write_text("another")
        assert "tigrislike_build_info" in authorised(node, "Bearer another")
        for absent in (False, True):
            if absent:
                tokens.unlink()
            with pytest.raises(urllib.error.HTTPError) as refused:
                authorised(node)
            assert refused.value.code == 401
            refused.value.close()
        assert "nobody may read the metrics" in node.log.read_text()
    finally:
        tokens.write_text(before)


def test_buckets_are_named_to_who_brings_the_token_and_keys_to_nobody(page: str) -> None:
    found = samples(page)
    assert found["tigrislike_bucket_objects", (("bucket", "named-bucket"),)] == 1
    assert found["tigrislike_bucket_bytes", (("bucket", "named-bucket"),)] == 1000
    assert "named-key" not in page
    naming = {shown_name(name) for name in NAMING}
    assert {name for (name, labels), _ in found.items() if "named-bucket" in str(labels)} == naming


# --- that it is true


def test_the_certificate_that_is_served_is_told(page: str, certificate: tuple[Path, Path, Path]) -> None:
    expires = load_pem_x509_certificate(certificate[0].read_bytes()).not_valid_after_utc.timestamp()
    assert samples(page)["tigrislike_tls_certificate_expiry_timestamp_seconds", ()] == expires


def test_work_owed_is_counted_once_it_is_done(node: RunningNode, page: str) -> None:
    label = ("task", ReclaimContent.name)

    def done() -> bool:
        found = samples(authorised(node))
        return found["tigrislike_task_runs_total", (("result", "done"), label)] == 1

    until(done)
    found = samples(authorised(node))
    assert found["tigrislike_task_delay_seconds_count", (label,)] == 1
    assert 0 < found["tigrislike_task_delay_seconds_sum", (label,)] < 300
    assert found["tigrislike_queue_oldest_due_seconds", (("region", "anybody"),)] == 0
    assert found["tigrislike_region_alive_nodes", (("region", "local"),)] == 1


def test_transactions_and_event_loops_are_timed(node: RunningNode, page: str) -> None:
    found = samples(page)
    for kind in ("read", "write", "background"):
        assert found["tigrislike_database_seconds_count", (("kind", kind),)] > 0
    for process in ("agent", "worker"):
        lag = "tigrislike_event_loop_lag_seconds_count", (("process", process),)
        until(lambda lag=lag: samples(authorised(node))[lag] > 0)  # type: ignore[misc]


def test_a_database_that_is_away_is_told_by_every_part_that_knows(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    flags = ("--workers=1", "--access-log=off")
    with running_node(tmp_path / "data", *flags, command=COMMAND, environment={VARIABLE: str(cut)}) as node:
        whole_page(node)
        cut.write_text("refused")
        try:

            def away() -> bool:
                found = samples(scrape(node))
                return (
                    found["tigrislike_part_answers", (("part", "database"),)] == 0
                    and found["tigrislike_part_answers", (("part", "disk"),)] == 1
                    and ("tigrislike_database_ping_seconds", ()) not in found
                    and found["tigrislike_database_errors_total", (("error", "unavailable"),)] > 0
                )

            until(away)
        finally:
            cut.unlink()
        until(lambda: samples(scrape(node))["tigrislike_part_answers", (("part", "store"),)] == 1)


def counted(node: RunningNode, name: str, **labels: str) -> float:
    return samples(scrape(node)).get((name, tuple(sorted(labels.items()))), 0.0)


def test_refusals_are_told_by_the_bound_that_was_met(tmp_path: Path) -> None:
    flags = ("--workers=1", "--max-requests-per-key=1", "--max-connections=2")
    with running_node(tmp_path / "data", *flags) as node:
        client = s3(node)
        client.create_bucket(Bucket="bucket")
        named = {"Bucket": "bucket", "Key": "key"}
        upload = urlsplit(client.generate_presigned_url("put_object", Params=named))
        read = urlsplit(client.generate_presigned_url("get_object", Params=named))
        client.close()
        slow = http.client.HTTPConnection("127.0.0.1", node.port)
        slow.putrequest("PUT", f"{upload.path}?{upload.query}")
        slow.putheader("Content-Length", "600000")
        slow.endheaders(b"x")

        def status() -> int:
            other = http.client.HTTPConnection("127.0.0.1", node.port)
            other.request("GET", f"{read.path}?{read.query}")
            answer = other.getresponse()
            answer.read()
            other.close()
            return answer.status

        until(lambda: status() == 503)
        refused = counted(node, "tigrislike_refusals_total", reason="key")
        assert refused >= 1
        idle = http.client.HTTPConnection("127.0.0.1", node.port)
        idle.connect()
        assert status() == 503
        idle.close()
        slow.close()
        until(lambda: counted(node, "tigrislike_refusals_total", reason="connections") >= 1)
        by_code = counted(node, "tigrislike_errors_total", code="SlowDown")
        assert by_code >= counted(node, "tigrislike_refusals_total", reason="key") + 1


# --- origins


def test_what_origins_count_outlives_them() -> None:
    async def main() -> list[Counter[str]]:
        memory = MemoryOrigin({"k": b"data"})
        places = {"place": OriginPlace("memory://a")}

        class Records:
            async def origin(self, origin_id: bytes) -> OriginPlace:
                return places["place"]

        now_s = 0.0
        origins = Origins(
            Records(),  # type: ignore[arg-type]
            lambda place: Resilient(memory, Limits(attempts=1)),
            clock_s=lambda: now_s,
        )
        told = [origins.counted()]
        async with origins.using(b"a") as origin:
            await origin.head("k")
            told.append(origins.counted())
            places["place"] = OriginPlace("memory://b")
            now_s = 100.0
            async with origins.using(b"a") as other:
                memory.away = True
                with pytest.raises(OriginUnavailable):
                    await other.head("k")
            told.append(origins.counted())
        told.append(origins.counted())
        await origins.aclose()
        return told

    none, one, two, closed = asyncio.run(main())
    assert not none
    assert (one["calls"], one["requests"], one["unavailable"]) == (1, 1, 0)
    assert (two["calls"], two["requests"], two["unavailable"]) == (2, 2, 1)
    assert two == closed


# --- seldom


def test_what_is_dear_to_find_out_is_told_again_for_a_while() -> None:
    now_s, looks = 0.0, 0

    async def look() -> list[Reading]:
        nonlocal now_s, looks
        now_s += 0.1
        looks += 1
        return [("queue_items", ("r", "t"), looks)]

    async def main() -> None:
        nonlocal now_s
        seldom = gauges._seldom(look, lambda: now_s)
        assert await seldom() == await seldom() == [("queue_items", ("r", "t"), 1)]
        now_s += 4.9
        assert (await seldom())[0][2] == 1
        now_s += 0.2
        assert (await seldom())[0][2] == 2

    asyncio.run(main())
