"""Traces of what a node does, for an OpenTelemetry collector (OTLP over HTTP), where ``--otel-endpoint`` names one.
Where it does not, this module is not imported and nothing is wrapped.

A span for each request, with its id, and for each run of work owed; below them one for each transaction, and for each
read of a blob from another node or an origin. Everything is wrapped where it is wired (`node.py`, `server.py`), so that
what is traced knows nothing of it.

Never in a span: query strings, headers, bodies, secrets, the texts of errors. Paths are, with the names of buckets and
keys that are in them, as in the access log.

What a caller says of a trace of its own (``traceparent``, W3C Trace Context) is noted as a link, and a new trace
begins: whoever may send requests could otherwise decide what is recorded here, and write into the traces of others.
Only where all callers are trusted (``--otel-trust-callers``) are traces continued, those of other nodes included.

Sampling and the collector's credentials are in the standard variables (``OTEL_TRACES_SAMPLER``,
``OTEL_EXPORTER_OTLP_HEADERS``). A collector that does not answer costs spans, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import aclosing
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tigrislike import __version__
from tigrislike.bytecache.source import BlobSource
from tigrislike.config import Settings
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.kv.observed import Kind
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Item
from tigrislike.replication.tasks import Task

App = Callable[[Any, Any, Any], Awaitable[None]]

_UNTRACED: Final = frozenset({b"/healthz", b"/readyz", b"/_tigrislike/metrics"})
"""What asks every few seconds, and is of no interest."""

_EXPORT_S: Final = 5
_propagator: Final = TraceContextTextMapPropagator()


class Tracing:
    """What one process traces with.

    Args:
        provider: where spans go; closed with this.
        trusts_callers: whether traces that callers have begun are continued.
    """

    def __init__(self, provider: TracerProvider, *, trusts_callers: bool = False) -> None:
        self._provider = provider
        self._trusts_callers = trusts_callers
        self._tracer = provider.get_tracer("tigrislike", __version__)

    @classmethod
    def of(cls, settings: Settings, process: str) -> Tracing:
        """As the settings say. To be called in the process, for it starts a thread."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        facts = {
            "service.name": "tigrislike",
            "service.version": __version__,
            "cloud.region": settings.region,
            "tigrislike.process": process,
        }
        provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{settings.otel_endpoint}/v1/traces", timeout=_EXPORT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider, trusts_callers=settings.otel_trust_callers)

    async def aclose(self) -> None:
        """Send what is left; give up after some seconds."""
        # A thread that the end of the process does not wait for: the collector may be gone.
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has given up, and is closed
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="tracing", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXPORT_S):
                await done.wait()

    # --- requests

    def app(self, app: App) -> App:
        """An ASGI application whose requests are traced."""

        async def traced(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["raw_path"] in _UNTRACED:
                await app(scope, receive, send)
                return
            with self._request(scope) as span:

                async def sending(message: MutableMapping[str, Any]) -> None:
                    if message["type"] == "http.response.start":
                        status: int = message["status"]
                        span.set_attribute("http.response.status_code", status)
                        if status >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    await send(message)

                await app(scope, receive, sending)

        return traced

    @contextlib.contextmanager
    def _request(self, scope: MutableMapping[str, Any]) -> Iterator[trace.Span]:
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        theirs = _propagator.extract(carrier, Context())
        caller = trace.get_current_span(theirs).get_span_context()
        with self._tracer.start_as_current_span(
            method,
            context=theirs if self._trusts_callers else Context(),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": path},
            links=[Link(caller)] if caller.is_valid and not self._trusts_callers else [],
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            finally:
                notes = scope.get("access", {})
                span.update_name(notes.get("operation", method))
                for name, note in _NOTES.items():
                    if note in notes:
                        span.set_attribute(name, notes[note])

    def outgoing(self) -> dict[str, str]:
        """Headers for a request to another node: which span it belongs to."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier

    # --- below them

    def transaction(self, kind: Kind, name: str, took_ns: int, error: EngineError | None) -> None:
        """A transaction is over, as `observed.Observe`. Those that belong to nothing that is traced are left out."""
        if not trace.get_current_span().is_recording():
            return
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            f"transaction {name}",
            kind=SpanKind.CLIENT,
            attributes={"tigrislike.kind": kind},
            start_time=ended_ns - took_ns,
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        span.end(ended_ns)

    def source(self, source: BlobSource, served_from: Callable[[bytes], str]) -> BlobSource:
        """A source whose reads are traced. `served_from` says who gave the latest bytes of a blob."""
        return _TracedSource(self._tracer, source, served_from)

    def task(self, task: Task) -> Task:
        """A task whose runs are traced."""
        return _TracedTask(self._tracer, task)


_NOTES: Final = {
    "tigrislike.request_id": "request_id",
    "tigrislike.operation": "operation",
    "error.type": "error",
}
"""Attributes of a request's span, and the notes of its access record that they are."""


class _TracedSource:
    def __init__(self, tracer: trace.Tracer, source: BlobSource, served_from: Callable[[bytes], str]) -> None:
        self._tracer = tracer
        self._source = source
        self._served_from = served_from
        self.lives = source.lives
        self.keeps = getattr(source, "keeps", lambda _: True)

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        # Not made the current one: a generator runs in the contexts of whoever asks it for the next piece.
        span = self._tracer.start_span("fill", attributes={"tigrislike.blob": blob_id.hex()})
        received = 0
        try:
            async with aclosing(self._source.read(blob_id, size, start, stop)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    received += len(piece)
                    yield piece
            span.set_attribute("tigrislike.served_from", self._served_from(blob_id))
        except Exception as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            span.set_attribute("tigrislike.bytes", received)
            span.end()


class _TracedTask:
    def __init__(self, tracer: trace.Tracer, task: Task) -> None:
        self._tracer = tracer
        self._task = task
        self.name = task.name
        self.priority = task.priority
        self.concurrency = task.concurrency

    async def run(self, item: Item) -> Effect | None:
        facts: dict[str, str | int] = {
            "tigrislike.subject": item.subject.hex(),
            "tigrislike.attempts": item.attempts,
        }
        with self._tracer.start_as_current_span(
            f"task {self.name}",
            context=Context(),
            kind=SpanKind.CONSUMER,
            attributes=facts,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                return await self._task.run(item)
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise
