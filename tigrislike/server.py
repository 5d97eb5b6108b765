"""`tigrislike serve`: the processes of a node, and what each of them runs.

The supervisor (`supervisor.py`) binds the port and starts one agent, which opens the store, makes the root key at
first start and does the background work (`node.py`), and then N workers, each an event loop (uvloop) under uvicorn's
life cycle with our HTTP protocol (`s3api/http.py`) and the S3 application. Even one worker runs this way: a crash of
the interpreter costs one process, and there is one way of running to understand.

SIGTERM drains: the port is closed, requests in flight finish within the drain time-out, exit status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from cryptography.x509 import load_pem_x509_certificate

from tigrislike.accept import Acceptor, LoadTable
from tigrislike.bytecache.verified import Verified
from tigrislike.config import Settings
from tigrislike.counting import Column, Row, Table
from tigrislike.logs import AccessLog, Record, open_log, setup_logging
from tigrislike.metadata.access import canonical_id
from tigrislike.metadata.kv import SteadyClock
from tigrislike.metrics import Look, Metrics, Reading
from tigrislike.node import HIT_INTERVAL_S, NODE_REFUSES, TASKS, Duty, Node, OpenSource, make_directories, repeating
from tigrislike.replication.epochs import Epochs
from tigrislike.s3api.errors import ERRORS
from tigrislike.s3api.http import Front, HttpProtocol, Limits
from tigrislike.s3api.protocol import load_protocol
from tigrislike.s3api.request import new_request_id
from tigrislike.slow import SlowRequests
from tigrislike.sole import Occupied, occupy
from tigrislike.supervisor import Role, Supervisor

if TYPE_CHECKING:
    from tigrislike.tracing import Tracing

_LOG = logging.getLogger("tigrislike.server")

# A thread that computes delays the event loop by at most this much (CPython's default is 5 ms).
_SWITCH_INTERVAL_S = 0.0005
_CLEANUP_TIMEOUT_S = 5.0
_LAG_INTERVAL_S = 0.25
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # and what a client on this machine uses
# A page of a listing is some ten thousand objects and no cycle: with CPython's default of 700 it would be searched for
# garbage many times over while it is built, which costs a third of the whole request.
_GC_THRESHOLDS = (50_000, 20, 100)


@dataclass(frozen=True)
class Ready:
    """What the operator is told when the node answers requests."""

    endpoint: str
    region: str
    access_key_id: str
    secret_access_key: str
    admin_endpoint: str = ""


class StartError(Exception):
    """The node cannot start; the message says what to put right."""


class BindError(StartError):
    """The address cannot be listened on."""


@dataclass(frozen=True)
class Shared:
    """What the processes of a node share: memory that is there before they are.

    Attributes:
        loads: connections by worker.
        verified: which chunks of which blocks have been verified since the node started.
        metrics: a row for the agent, and then one for each worker.
        epochs: which requests of other nodes were accepted.
        clock: the one that they all go by.
        slow: slow requests of each worker.
        endpoint: the URL at which other nodes reach this one.
    """

    loads: LoadTable
    verified: Verified
    metrics: Table
    epochs: Epochs
    clock: SteadyClock
    slow: SlowRequests
    endpoint: str

    @classmethod
    def of(cls, settings: Settings, endpoint: str) -> Shared:
        operations = [operation.name for operation in load_protocol()]
        return cls(
            LoadTable(settings.workers),
            Verified.shared(),
            Table(1 + settings.workers, [*operations, "PostObject"], ERRORS, TASKS),
            Epochs(),
            SteadyClock(),
            SlowRequests(settings.workers, settings.slow_request_s),
            endpoint,
        )

    def open_node(
        self, settings: Settings, open_source: OpenSource | None, row: Row, tracing: Tracing | None
    ) -> contextlib.AbstractAsyncContextManager[Node]:
        return Node.opened(
            settings,
            policy=settings.cache_policy,
            open_source=open_source,
            verified=self.verified,
            row=row,
            tracing=tracing,
            clock=self.clock,
        )

    def worker_gone(self, index: int) -> None:
        self.loads.absent(index)
        self.metrics.absent(1 + index)

    def agent_gone(self) -> None:
        self.metrics.absent(0)


def serve(settings: Settings, on_ready: Callable[[Ready], None], open_source: OpenSource | None = None) -> int:
    """Run a node until SIGTERM or SIGINT; the process's exit status.

    Args:
        on_ready: called once requests are answered.
        open_source: called in each process with its node: where blocks come from that are not on this disk.

    Raises:
        StartError: the address is taken, or not this machine's (BindError); a file that the settings name cannot be
            used; a node runs on the cache directory already.
    """
    setup_logging(settings.log_level, "supervisor", settings.log_format)
    _raise_descriptor_limit()
    check_files(settings)
    try:
        make_directories(settings)
        lock = occupy(settings.cache_dir)
    except (Occupied, OSError) as error:
        raise StartError(f"cannot open the store: {error}") from error
    try:
        return _serve(settings, on_ready, open_source, lock)
    finally:
        os.close(lock)


def _serve(settings: Settings, on_ready: Callable[[Ready], None], open_source: OpenSource | None, lock: int) -> int:
    """`serve`, once the node may start. `lock` is the supervisor's alone."""
    listener = bind(settings.host, settings.port)
    try:
        admin_listener = bind(*_host_and_port(settings.admin_listen)) if settings.admin_listen else None
    except BindError:
        listener.close()
        raise
    listeners = [each for each in (listener, admin_listener) if each is not None]
    endpoint = endpoint_url(settings, listener.getsockname()[1])
    shared = Shared.of(settings, peer_endpoint(settings, listener.getsockname()[1]))
    _preload()

    def tell(facts: dict[str, dict[str, Any]]) -> None:
        root = facts["agent"]
        admin_endpoint = ""
        if admin_listener is not None:
            host, _ = _host_and_port(settings.admin_listen)
            admin_endpoint = _url(settings, host, admin_listener.getsockname()[1])
        keys = root["access_key_id"], root["secret_access_key"]
        on_ready(Ready(endpoint, settings.region, *keys, admin_endpoint))

    def run_worker(index: int) -> Callable[[Callable[[dict[str, Any]], None], int], int]:
        def run(announce: Callable[[dict[str, Any]], None], lifeline: int) -> int:
            os.close(lock)
            main = worker(settings, listeners, shared, index, open_source, announce, lifeline)
            return _run(f"worker {index}", settings, main)

        return run

    def run_agent(announce: Callable[[dict[str, Any]], None], lifeline: int) -> int:
        os.close(lock)
        _close(listeners)
        return _run("agent", settings, agent(settings, shared, open_source, announce, lifeline))

    roles = [Role("agent", run_agent, on_exit=shared.agent_gone)]
    for index in range(settings.workers):
        gone = partial(shared.worker_gone, index)
        roles.append(Role(f"worker {index}", run_worker(index), front=True, on_exit=gone))
    try:
        return Supervisor(roles, settings.drain_timeout_s, tell, on_stop=partial(_close, listeners)).run()
    finally:
        _close(listeners)


def check_files(settings: Settings) -> None:
    """Try the files that the settings name and that each worker will open, so that one line says what is wrong.

    Raises:
        StartError: with the setting, the file and the reason.
    """
    named = {"tls-cert": settings.tls_cert, "tls-key": settings.tls_key, "metrics-auth": settings.metrics_auth}
    for name, path in named.items():
        if path is not None:
            try:
                path.read_bytes()
            except OSError as error:
                raise StartError(f"--{name} {path}: {error.strerror}") from error
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
        except OSError as error:
            raise StartError(f"--tls-cert {settings.tls_cert} with --tls-key {settings.tls_key}: {error}") from error
    # Opening a pipe would wait for its reader, and closing it again would be the end for that.
    if settings.access_log not in ("-", "off") and not Path(settings.access_log).is_fifo():
        try:
            os.close(open_log(settings.access_log))
        except OSError as error:
            raise StartError(f"--access-log {settings.access_log}: {error.strerror}") from error


def _close(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on an address; port 0 takes a free one.

    Raises:
        BindError: with the address and the reason.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(4096)
    except OSError as error:
        raise BindError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def endpoint_url(settings: Settings, port: int) -> str:
    """The URL that a client on this machine uses."""
    return _url(settings, settings.host, port)


def _url(settings: Settings, host: str, port: int) -> str:
    host = _WILDCARDS.get(host, host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{'https' if settings.tls_cert else 'http'}://{host}:{port}"


def peer_endpoint(settings: Settings, port: int) -> str:
    """The URL at which other nodes reach this one, which listens on `port`."""
    if settings.advertise:
        return settings.advertise
    url = endpoint_url(settings, port)
    if settings.host not in _WILDCARDS:
        return url
    return f"{url.partition('://')[0]}://{primary_address()}:{port}"


def primary_address() -> str:
    """The address that this machine's packets have which go by its default route; 127.0.0.1 where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; reserved for documentation (RFC 5737)
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address


class WorkerServer(uvicorn.Server):
    """uvicorn's life cycle around our listener, connections and stop signal."""

    def __init__(
        self,
        config: uvicorn.Config,
        front: Front,
        listeners: Sequence[tuple[socket.socket, uvicorn.Config]],
        table: LoadTable,
        index: int,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.server_state = front
        self.front = front
        self._listeners = listeners
        self._table = table
        self._index = index
        self._announce = announce
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Begin to drain."""
        self.should_exit = True
        self._stopped.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("the application refused to start")
        loop = asyncio.get_running_loop()
        limits = self.front.limits
        self.servers = []
        for listener, config in self._listeners:
            acceptor = Acceptor(
                listener,
                self._table,
                self._index,
                lambda: len(self.front.connections),
                partial(HttpProtocol, config, self.front, self.lifespan.state, loop),
                config.ssl,
                limits.header_timeout_s,
            )
            acceptor.start()
            self.servers.append(acceptor)  # type: ignore[arg-type]  # it needs close() and wait_closed()
        self.started = True
        self._announce()

    async def main_loop(self) -> None:
        ticking = asyncio.get_running_loop().create_task(self.front.tick_for_ever())
        self._ticking = ticking
        stopped = asyncio.get_running_loop().create_task(self._stopped.wait())
        await asyncio.wait([ticking, stopped], return_when=asyncio.FIRST_COMPLETED)
        if ticking.done():
            ticking.result()  # the clock of all time-outs has failed: end this process, another takes its place

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.front.draining = True
        await super().shutdown(sockets)
        cut = list(self.front.tasks)
        if cut:
            await asyncio.wait(cut, timeout=_CLEANUP_TIMEOUT_S)
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: `worker` has set them, and uvicorn would end by raising SIGTERM again."""
        yield


async def worker(
    settings: Settings,
    listeners: Sequence[socket.socket],
    shared: Shared,
    index: int,
    open_source: OpenSource | None,
    announce: Callable[[dict[str, Any]], None],
    lifeline: int,
) -> int:
    """Answer requests until told to stop."""
    from tigrislike.admin import gauges
    from tigrislike.admin.desk import Desk
    from tigrislike.admin.serving import admin_routes
    from tigrislike.console.serving import console_routes, to_console
    from tigrislike.s3api.app import create_app
    from tigrislike.s3api.server_log import FLUSH_S, LOOK_S, ServerLog
    from tigrislike.s3api.service import ServiceApplication

    row = shared.metrics.row(1 + index)
    async with contextlib.AsyncExitStack() as stack:
        tracing = await open_tracing(settings, f"worker {index}", stack)
        try:
            node = await stack.enter_async_context(shared.open_node(settings, open_source, row, tracing))
        except NODE_REFUSES as error:
            _LOG.error("cannot open the store: %s", error)
            return 1
        desk = Desk(
            node.metadata,
            settings,
            members=node.regional.members,
            blocks=node.blocks,
            slow=shared.slow,
        )
        looks = {"database": gauges.database(node.metadata), "store": gauges.store(desk)}
        if settings.tls_cert is not None:
            looks["certificate"] = certificate(settings.tls_cert)
        metrics = desk.metrics = Metrics(shared.metrics, node.blocks, looks, {"buckets": gauges.buckets(desk)})
        operators = [*admin_routes(desk), *console_routes(desk)]
        server_log = ServerLog(
            node.metadata,
            node.log_spool,
            canonical_id,
            lambda result, lines: row.add("server_log_lines", result, amount=lines),
        )
        app = create_app(
            metadata=node.metadata,
            blocks=node.blocks,
            settings=settings,
            metrics=metrics,
            epochs=shared.epochs,
            receive_copy=node.regional.receiver.receive,
            regional=node.regional,
            server_log=server_log,
            also=() if settings.admin_listen else operators,
        )
        desk.gateway, desk.presences = app.gateway, node.regional.presences
        apps: list[Any] = [app, ServiceApplication(routes=[*operators, to_console()])]
        served = list(zip(listeners, apps if tracing is None else map(tracing.app, apps), strict=False))
        duties: list[Duty] = [
            ("hits", node.blocks.flush_hits, HIT_INTERVAL_S),
            ("logged buckets", server_log.look, LOOK_S),
            ("server log", server_log.flush, FLUSH_S),
            *node.regional_duties(),
            *counting(row, "worker", node.counted),
        ]

        def note(record: Record) -> None:
            server_log.take(record)
            shared.slow.note(index, record)

        try:
            return await serve_apps(served, settings, shared.loads, index, row, duties, announce, lifeline, note=note)
        finally:
            await server_log.flush()


async def serve_app(
    app: Any,
    settings: Settings,
    listener: socket.socket,
    table: LoadTable,
    index: int,
    row: Row,
    duties: list[Duty],
    announce: Callable[[dict[str, Any]], None],
    lifeline: int,
) -> int:
    """`serve_apps` for one."""
    return await serve_apps([(listener, app)], settings, table, index, row, duties, announce, lifeline)


async def serve_apps(
    served: Sequence[tuple[socket.socket, Any]],
    settings: Settings,
    table: LoadTable,
    index: int,
    row: Row,
    duties: list[Duty],
    announce: Callable[[dict[str, Any]], None],
    lifeline: int,
    note: Callable[[Record], None] | None = None,
) -> int:
    """Serve ASGI applications on this process's event loop, each on a listener, and do its duties beside, until told to
    stop. `note` is told of each request that is over."""
    configs = [
        uvicorn.Config(
            app,
            interface="asgi3",
            ws="none",
            log_config=None,
            log_level=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=settings.drain_timeout_s,  # type: ignore[arg-type]  # seconds, for wait_for
        )
        for _, app in served
    ]
    for config in configs:
        config.load()
    gc.set_threshold(*_GC_THRESHOLDS)

    def count(record: Record) -> None:
        row.request(record)
        if note is not None:
            note(record)
        row.sendfile(front.sendfile_bytes, front.sendfile_cold)

    async def count_sendfile() -> None:
        """Of downloads that are not over: they may take hours."""
        row.sendfile(front.sendfile_bytes, front.sendfile_cold)

    access_log = AccessLog(settings.access_log, count)
    front = Front(Limits.of(settings), access_log, new_request_id)
    # What exists now lives as long as the process: keep it out of every later garbage collection.
    gc.collect()
    gc.freeze()
    listeners = [(listener, config) for (listener, _), config in zip(served, configs, strict=True)]
    server = WorkerServer(configs[0], front, listeners, table, index, lambda: announce({}))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.stop)
    loop.add_reader(lifeline, _on_lifeline, loop, lifeline, server.stop)
    try:
        async with repeating([*duties, ("sendfile", count_sendfile, HIT_INTERVAL_S)]):
            await server.serve()
    finally:
        access_log.close()
    return 0


async def agent(
    settings: Settings,
    shared: Shared,
    open_source: OpenSource | None,
    announce: Callable[[dict[str, Any]], None],
    lifeline: int,
) -> int:
    """Prepare the store, then do its background work until told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(lifeline, _on_lifeline, loop, lifeline, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        tracing = await open_tracing(settings, "agent", stack)
        try:
            row = shared.metrics.row(0)
            node = await stack.enter_async_context(shared.open_node(settings, open_source, row, tracing))
            await node.join(shared.endpoint)
            root = await node.ensure_root()
        except NODE_REFUSES as error:
            _LOG.error("cannot open the store: %s", error)
            return 1
        announce({"access_key_id": root.key_id, "secret_access_key": root.secret})
        async with repeating(counting(row, "agent", node.counted)):
            await node.work(stop, shared.epochs, shared.metrics)
    return 0


async def open_tracing(settings: Settings, process: str, stack: contextlib.AsyncExitStack) -> Tracing | None:
    """What this process traces with, closed by `stack`; None where nothing is traced, and nothing for it imported."""
    if not settings.otel_endpoint:
        return None
    from tigrislike.tracing import Tracing

    return await stack.enter_async_context(contextlib.aclosing(Tracing.of(settings, process)))


def certificate(path: Path) -> Look:
    """What the metrics say of the certificate that this process serves: as it is now, for it is not read again."""
    expires_s = load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()

    async def look() -> list[Reading]:
        return [("tls_certificate_expiry_timestamp_seconds", (), expires_s)]

    return look


def counting(row: Row, process: str, counted: Callable[[], Iterable[tuple[Column, int]]]) -> list[Duty]:
    """The duties of a process that keep its row up to date: what others count, and how late its event loop is."""
    loop = asyncio.get_running_loop()
    late = row.timer("event_loop_lag_seconds", process)

    async def tell() -> None:
        row.tell(counted())

    async def lag() -> None:
        due_s = loop.time() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        late(max(0, int((loop.time() - due_s) * 1e9)))

    return [("counts", tell, HIT_INTERVAL_S), ("lag", lag, 0.0)]


def _on_lifeline(loop: asyncio.AbstractEventLoop, lifeline: int, stop: Callable[[], None]) -> None:
    loop.remove_reader(lifeline)
    _LOG.error("the supervisor is gone: stopping")
    stop()


def _run(name: str, settings: Settings, main: Any) -> int:
    setup_logging(settings.log_level, name, settings.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result: int = runner.run(main)
        return result


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _preload() -> None:
    """Import what the children need, so that they share its memory and start in milliseconds.

    None of it may start a thread or open anything: both do not survive a fork.
    """
    import tigrislike.console.serving
    import tigrislike.s3api.app  # noqa: F401

    gc.collect()
    gc.freeze()
