"""Traces: what a collector is sent by real nodes, and what nobody ever is."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.nodes import RunningNode, running_node
from tests.replication.test_peers import GOOD, RANGE, Asked, read, say, server
from tests.server.test_serve import until
from tigrislike.bytecache import SourceUnavailable
from tigrislike.config import ConfigError, load_settings
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Item
from tigrislike.node import Node
from tigrislike.tracing import Tracing, _TracedTask


class Span(NamedTuple):
    name: str
    trace: str
    id: str
    parent: str
    links: list[str]
    facts: dict[str, Any]
    process: str


class Collector:
    """An OTLP/HTTP collector that keeps what it is sent."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/base/v1/traces"
                collector.headers.append(str(self.headers))
                collector.bodies.append(body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/base"

    def spans(self) -> list[Span]:
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                process = {each.key: each.value.string_value for each in resource.resource.attributes}
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    facts = {}
                    for each in span.attributes:
                        kind = each.value.WhichOneof("value")
                        facts[each.key] = getattr(each.value, kind)
                    links = [link.trace_id.hex() for link in span.links]
                    ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    found.append(Span(span.name, *ids, links, facts, process["tigrislike.process"]))
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(collector.server.serve_forever)
        try:
            yield collector
        finally:
            collector.server.shutdown()
            collector.server.server_close()


def client_of(node: RunningNode) -> Any:
    return node.client()


THEIRS = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{THEIRS}-b7ad6b7169203331-01"


@pytest.mark.parametrize("trusts", [False, True])
def test_requests_and_work_owed_are_traced_down_to_their_transactions(
    tmp_path: Path, collector: Collector, trusts: bool
) -> None:
    flags = [f"--otel-endpoint={collector.url}", "--workers=1", "--reclaim-grace=0"]
    flags += ["--otel-trust-callers"] if trusts else []
    environment = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=for-the-collector", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running_node(tmp_path / "data", *flags, environment=environment) as node:
        client = client_of(node)
        client.create_bucket(Bucket="bucket")
        put = client.put_object(Bucket="bucket", Key="key", Body=b"x" * 100_000)["ResponseMetadata"]["RequestId"]
        with pytest.raises(client.exceptions.NoSuchKey) as missing:
            client.get_object(Bucket="bucket", Key="none")
        get = missing.value.response["ResponseMetadata"]["RequestId"]
        client.delete_object(Bucket="bucket", Key="key")
        link = client.generate_presigned_url("list_objects_v2", Params={"Bucket": "bucket"})
        for parent in (TRACEPARENT, "00-nonsense", "\xff" * 10):
            with urllib.request.urlopen(urllib.request.Request(link, headers={"traceparent": parent})) as answer:
                answer.read()
        with urllib.request.urlopen(f"{node.endpoint}/readyz"):
            pass

        def complete() -> bool:
            names = [span.name for span in collector.spans()]
            return names.count("ListObjectsV2") == 3 and "task reclaim" in names

        until(complete)
    spans = collector.spans()
    by_request = {
        span.facts["tigrislike.request_id"]: span
        for span in spans
        if not span.parent and "tigrislike.request_id" in span.facts
    }
    written, missed = by_request[put], by_request[get]
    assert (written.name, written.process) == ("PutObject", "worker 0")
    assert written.facts["http.request.method"] == "PUT"
    assert written.facts["url.path"] == "/bucket/key"
    assert written.facts["http.response.status_code"] == 200
    assert (missed.facts["error.type"], missed.facts["http.response.status_code"]) == ("NoSuchKey", 404)
    below = [span for span in spans if span.parent == written.id]
    assert {span.trace for span in below} == {written.trace}
    assert any(span.name.startswith("transaction ") and span.facts["tigrislike.kind"] == "write" for span in below)

    (reclaimed,) = (span for span in spans if span.name == "task reclaim")
    assert (reclaimed.process, reclaimed.facts["tigrislike.attempts"], reclaimed.parent) == ("agent", 0, "")
    assert any(span.parent == reclaimed.id for span in spans)

    listed = [span for span in spans if span.name == "ListObjectsV2"]
    assert [span.trace for span in listed].count(THEIRS) == trusts
    assert [link for span in listed for link in span.links] == ([] if trusts else [THEIRS])
    assert not [span for span in spans if span.name in ("Readyz", "GET")]
    assert not [span for span in spans if span.trace == THEIRS and not trusts]

    sent = b"".join(collector.bodies)
    for secret in (node.secret_access_key, node.access_key_id, "X-Amz-Signature", "Credential", "for-the-collector"):
        assert secret.encode() not in sent
    assert all("for-the-collector" in headers for headers in collector.headers)


@pytest.mark.slow
def test_a_collector_that_is_gone_costs_nobody_anything(tmp_path: Path) -> None:
    flags = ("--otel-endpoint=http://127.0.0.1:9", "--workers=1")
    with running_node(tmp_path / "data", *flags, environment={"OTEL_BSP_SCHEDULE_DELAY": "10"}) as node:
        client = client_of(node)
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="key", Body=b"x")
        assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == b"x"
        assert node.stop() == 0


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    code = (
        "import sys, tigrislike.server, tigrislike.s3api.app, tigrislike.admin.serving, tigrislike.cli;"
        "print([name for name in sys.modules if name.startswith('opentelemetry') or name == 'tigrislike.tracing'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "ftp://a", "http://a:0", "http://key@a", "http://a/?b", "http://"])
def test_a_collector_is_named_by_a_url(url: str) -> None:
    with pytest.raises(ConfigError, match="otel-endpoint"):
        load_settings({"otel_endpoint": url}, {})
    assert load_settings({"otel_endpoint": "http://a:4318/base/"}, {}).otel_endpoint == "http://a:4318/base"


def test_a_collector_needs_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.config.find_spec", lambda name: None if name == "opentelemetry" else object())
    with pytest.raises(ConfigError, match=r"install tigrislike\[otel\]"):
        load_settings({"otel_endpoint": "http://a:4318"}, {})


# --- what is below a request


class Scripted:
    """A source of one piece, and then perhaps an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes]:
        yield b"piece"
        if self.error is not None:
            raise self.error

    async def lives(self, blob_id: bytes) -> bool:
        return True

    def keeps(self, blob_id: bytes) -> bool:
        return False


def traced() -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter


def test_fills_say_from_where_they_came_and_how_they_failed() -> None:
    tracing, exporter = traced()

    async def main() -> None:
        source = tracing.source(Scripted(), lambda _: "fra")
        assert not source.keeps(b"")
        assert [piece async for piece in source.read(b"\x01" * 16, 10, 0, 5)] == [b"piece"]
        failing = tracing.source(Scripted(SourceUnavailable("a secret text")), lambda _: "fra")
        with pytest.raises(SourceUnavailable):
            [piece async for piece in failing.read(b"\x01" * 16, 10, 0, 10)]

    asyncio.run(main())
    well, badly = exporter.get_finished_spans()
    assert dict(well.attributes or {}) == {
        "tigrislike.blob": "01" * 16,
        "tigrislike.bytes": 5,
        "tigrislike.served_from": "fra",
    }
    assert (badly.status.status_code, badly.status.description) == (StatusCode.ERROR, "SourceUnavailable")


def test_what_a_node_fetches_for_a_request_is_traced_below_it(tmp_path: Path) -> None:
    tracing, exporter = traced()

    async def main() -> None:
        settings = load_settings({"data_dir": str(tmp_path / "data")}, {})
        async with Node.opened(settings, open_source=lambda _: Scripted(), tracing=tracing) as node:

            async def app(*_: Any) -> None:
                await node.metadata.ping()
                pieces = [bytes(piece) async for piece in node.blocks.open_blob(b"\x01" * 16, 5).read(0, 5)]
                assert b"".join(pieces) == b"piece"

            scope = {"type": "http", "method": "GET", "raw_path": b"/b/k", "headers": []}
            await tracing.app(app)(scope, None, None)
            assert {type(lane.task) for lane in node.consumer()._lanes.values()} == {_TracedTask}

    asyncio.run(main())
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"GET", "transaction _get", "fill"}
    for below in ("transaction _get", "fill"):
        assert spans[below].parent == spans["GET"].context
    assert (spans["fill"].attributes or {})["tigrislike.bytes"] == 5


def test_a_task_that_fails_says_so_and_what_belongs_to_nothing_is_left_out() -> None:
    tracing, exporter = traced()

    class Broken:
        name, priority, concurrency = "broken", 0, 1

        async def run(self, item: Item) -> Effect | None:
            tracing.transaction("write", "fn", 1_000_000, EngineUnavailable("a secret text"))
            raise ValueError("a secret text")

    async def main() -> None:
        tracing.transaction("read", "alone", 1, None)
        with pytest.raises(ValueError, match="secret"):
            await tracing.task(Broken()).run(Item("broken", b"s", 0, 0))
        await tracing.aclose()

    asyncio.run(main())
    transaction, task = exporter.get_finished_spans()
    assert (transaction.name, task.name) == ("transaction fn", "task broken")
    assert transaction.parent is not None
    assert task.context is not None
    assert transaction.parent.span_id == task.context.span_id
    assert transaction.end_time - transaction.start_time == 1_000_000  # type: ignore[operator]
    assert [span.status.description for span in (transaction, task)] == ["EngineUnavailable", "ValueError"]


def test_other_nodes_are_told_which_span_a_request_belongs_to() -> None:
    tracing, exporter = traced()

    async def main() -> Asked:
        async with server(say(206, GOOD, RANGE)) as (scripted, peers):
            peers.tell = tracing.outgoing
            seen: list[Asked] = scripted.asked

            async def app(*_: Any) -> None:
                assert await read(peers, scripted.peer) == GOOD

            scope = {"type": "http", "method": "GET", "raw_path": b"/b/k", "headers": []}
            await tracing.app(app)(scope, None, None)
            assert tracing.outgoing() == {}, "there is no span any more"
            return seen[0]

    asked = asyncio.run(main())
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    theirs = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
    assert asked.headers["traceparent"].startswith(theirs)


def test_an_exporter_that_hangs_does_not_keep_a_process_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.tracing._EXPORT_S", 0.01)
    released = threading.Event()
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(provider, "shutdown", released.wait)
    asyncio.run(Tracing(provider).aclose())
    released.set()
