"""The FoundationDB engine: the official 7.1 binding's client library behind an asyncio adapter.

The binding is pinned to 7.1 with API version 710, which works with client libraries 7.1 and newer; the library in
turn must speak the cluster's protocol. Both are loaded when an engine is opened, so everything else works where
they are absent.

Transactions are `fdb_transaction.py`'s; retries, the settling of ambiguous commits and the rules for functions are
`retry.Runner`'s. Open after fork: a client does not survive one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from .clock import Clock, SystemClock
from .errors import EngineClosed, EngineError, EngineUnavailable
from .faults import Faults
from .fdb_client import Client, Library, load_binding, reason_of
from .fdb_transaction import PRIORITY_BATCH, TAG, TIMEOUT, FdbTransaction
from .limits import TRANSACTION_BYTES
from .retry import Runner
from .seal import Sealable, SealCheck

T = TypeVar("T")

DONE = b"\xfe/done/"
"""Where attempts leave their mark, under the store's prefix. Tuple-encoded keys never begin with 0xfe."""

TIMEOUT_S = 10.0
"""For one `transact` or `read`, retries and all."""

ANSWER_S = 3.5
"""For a cluster's first answer: who starts a node against one that is away should hear of it soon."""

CLUSTER_FILES = ("fdb.cluster", "/etc/foundationdb/fdb.cluster")
"""Where the client looks when neither a file nor FDB_CLUSTER_FILE is given."""


class FdbEngine(Sealable):
    """An `Engine` on a FoundationDB cluster. Made by `FdbEngine.open`.

    Attributes:
        background: the same at batch priority: its transactions are the first that a busy cluster puts off.
    """

    def __init__(
        self,
        client: Client,
        clock: Clock,
        faults: Faults | None,
        timeout_s: float,
        prefix: bytes,
        *,
        batch: bool = False,
    ) -> None:
        def runner(read_only: bool) -> Runner:
            return Runner(
                functools.partial(_begin, client, read_only, batch),
                clock,
                done_prefix=prefix + DONE,
                timeout_s=timeout_s,
                begin_background=functools.partial(_begin, client, read_only, True),
                faults=faults,
                seal=None if read_only else SealCheck(prefix),
            )

        self.prefix = prefix
        self._client = client
        self._clock = clock
        self._closed = False
        self._writes = runner(False)
        self._reads = runner(True)
        self.background = self if batch else FdbEngine(client, clock, faults, timeout_s, prefix, batch=True)

    @classmethod
    async def open(
        cls,
        cluster_file: str | None = None,
        *,
        prefix: bytes = b"",
        clock: Clock | None = None,
        faults: Faults | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> FdbEngine:
        """Open the cluster that `cluster_file` names (None: FoundationDB's default), once it answers.

        `prefix` is where this store's keys lie.

        Raises:
            EngineUnavailable: the client library is missing, the cluster file is, or the cluster does not answer; the
                message says which, and what to do. Within 5 seconds.
        """
        binding = load_binding()
        named = _existing(cluster_file)
        try:
            database = _database(binding, cluster_file)
            # Options of the database are those of each of its transactions, and cost them nothing.
            database.options.set_transaction_timeout(int(timeout_s * 1000))
            database.options.set_transaction_size_limit(TRANSACTION_BYTES)
        except binding.FDBError as error:
            raise EngineUnavailable(f"the cluster file {named} cannot be used: {reason_of(error)}") from error
        client = Client(Library(binding), database.dpointer, database)
        engine = cls(client, clock or SystemClock(), faults, timeout_s, prefix)
        await _answered(client, named, min(ANSWER_S, timeout_s))
        return engine

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._writes.transact(fn, args)

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._writes.transact(fn, args, past_seal=True)

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._reads.read(fn, args, max_age_ns=max_age_ns)

    def now_ns(self) -> int:
        return self._clock.now_ns()

    async def checkpoint(self) -> None:
        """Nothing to do: the cluster looks after itself."""

    async def close(self) -> None:
        self._closed = True
        await self._writes.close()
        await self._reads.close()
        if self.background is not self:
            await self.background.close()
            self._client.close()


def _begin(client: Client, read_only: bool, batch: bool, kind: bytes, left_s: float | None) -> FdbTransaction:
    library = client.library
    if code := library.create_transaction(client.database, client.address_at):
        raise client.error(code)
    pointer = client.address.value
    assert pointer is not None
    code = library.set_option(pointer, TAG, kind, len(kind))
    if batch:
        code = library.set_option(pointer, PRIORITY_BATCH, None, 0) or code
    if left_s is not None:
        code = library.set_option(pointer, TIMEOUT, max(int(left_s * 1000), 1).to_bytes(8, "little"), 8) or code
    if code:
        library.destroy_transaction(pointer)
        raise client.error(code)
    return FdbTransaction(client, pointer, read_only)


def _database(binding: Any, cluster_file: str | None) -> Any:
    # Not `binding.open`: it gives everybody the same database, and so the same options.
    if binding.impl._network_thread is None:
        binding.impl.init()
    return binding.impl.create_database(cluster_file)


def _existing(cluster_file: str | None) -> str:
    """The cluster file that will be used.

    Raises:
        EngineUnavailable: there is none.
    """
    asked = cluster_file or os.environ.get("FDB_CLUSTER_FILE")
    for path in (asked,) if asked else CLUSTER_FILES:
        if Path(path).is_file():
            return path
    raise EngineUnavailable(
        f"the cluster file {asked or CLUSTER_FILES[-1]} is missing: it says where the coordinators of a FoundationDB "
        "cluster are. Copy it from a machine of the cluster (/etc/foundationdb/fdb.cluster), and name it in the "
        "metadata URL fdb:///CLUSTERFILE or in FDB_CLUSTER_FILE"
    )


async def _answered(client: Client, cluster_file: str, limit_s: float) -> None:
    tr = _begin(client, True, False, b"open", limit_s)
    try:
        await tr.read_version()
    except EngineError as error:
        coordinators = _coordinators(cluster_file)
        raise EngineUnavailable(
            f"the FoundationDB cluster of {cluster_file} does not answer ({error}). Check that it runs (fdbcli -C "
            f"{cluster_file} --exec status), that its coordinators ({coordinators}) are reachable from here, and that "
            f"the client library ({client.library.version()}) is of the cluster's version"
        ) from error
    finally:
        tr.end()


def _coordinators(cluster_file: str) -> str:
    lines = [line.strip() for line in Path(cluster_file).read_text(errors="replace").splitlines()]
    named = [line for line in lines if line and not line.startswith("#")]
    return named[-1].rpartition("@")[2] if named else "none"
