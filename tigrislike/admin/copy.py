"""`tigrislike admin copy-metadata`: a store's metadata from one engine to another, for one that outgrew its machine.

The source is sealed (`metadata/kv/seal.py`), its rows are copied and verified, the target is opened, and the source
stays sealed with a reason that says where the store went. At every moment at most one of the two takes writes:

    source              target
    open                empty
    sealed, copying     "copying": may not be opened
    sealed, opening     "copying", every row verified
    sealed, opening     open
    sealed, moved       open

Each step is one transaction, conditional on the one before it, so whatever is interrupted is taken up by running the
same command again, or given up with `abort`, and two copies at once cannot both go on. Rows are written by short
transactions, several under way at a time; a cursor in the target says how far all of them are there.

A copy changes no row. Only keys move with the prefix of the store. What engines keep for themselves stays behind: the
marks that settle commits, the metadata version, the seal. Counters are plain numbers while nothing adds to them.

What this does not do: copy blocks. A node keeps its cache directory, and finds its blocks by the same records.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tigrislike.admin.rows import Digest, Row, digest, foreign_key, pages
from tigrislike.metadata.keyspace import Keyspace
from tigrislike.metadata.kv import (
    AmbiguousCommit,
    Engine,
    EngineClosed,
    EngineError,
    EngineUnavailable,
    RetryableError,
    Transaction,
)
from tigrislike.metadata.kv.seal import CLOCK_FLOOR, COPYING, OWN, SEALED, seal_members, sealed_value
from tigrislike.metadata.migrating import FORMAT
from tigrislike.metadata.records import cluster as cluster_codec

T = TypeVar("T")

COPIED = OWN + b"/copied"
"""In a store that a copy made: from where, when, and the token of the seal under which its source was copied."""
CURSOR = OWN + b"/cursor"
"""In a target: all rows up to the key `after` are there."""

START: dict[str, Any] = {"after": "", "rows": 0, "bytes": 0}
STALE: dict[str, Any] = {"stale": True}
"""The cursor of a target whose rows are of an earlier sealing of the source: they are cleared before anything else."""

CHUNK_BYTES = 200_000
"""Of one transaction, as FoundationDB counts: it is at its best far below its limit of 10 MB."""
CHUNK_ROWS = 1000
IN_FLIGHT = 16
"""Transactions under way at a time."""

PATIENCE_S = 60.0
"""How long an engine may be away in the middle of a copy."""
RETRY_S = 0.5
CLOCK_PATIENCE_S = 5.0
"""How far a clock may be behind for the copy to wait until it has caught up."""

COPYING_PHASE, OPENING_PHASE, MOVED_PHASE = "copying", "opening", "moved"


class CopyError(Exception):
    """The copy is not complete, or must not be begun; the message says what to do."""


@dataclass(frozen=True)
class Step:
    """How far a copy is. `phase` is "copy" or "verify"; `of_bytes` is 0 where the whole is not known."""

    phase: str
    rows: int
    bytes: int
    of_bytes: int = 0


@dataclass(frozen=True)
class Copied:
    """What a copy came to. `resumed_rows` were there from an earlier run; `seconds` are this run's."""

    rows: int
    bytes: int
    digest: str
    resumed_rows: int
    seconds: float


@dataclass(frozen=True)
class Store:
    """One side of a copy: an open engine, and its URL for people."""

    engine: Engine
    url: str


async def copy_metadata(
    source: Store,
    target: Store,
    *,
    keep_source: bool = False,
    report: Callable[[Step], None] = lambda _: None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    patience_s: float = PATIENCE_S,
) -> Copied:
    """Copy the store in `source` to `target`, or go on with a copy that was interrupted.

    Args:
        keep_source: the source goes on taking writes when the copy is complete, which is then a backup, not a move.
        report: called after every few transactions.
        sleep: waits for an engine that is away, or a clock that is behind.
        patience_s: how long an engine may be away.

    Raises:
        CopyError: refused, for one of many reasons, or interrupted by an engine that does not come back.
    """
    began_s = time.monotonic()
    run = _Run(source, target, report, sleep, patience_s)
    token = await run.begin()
    if token is None:
        found, resumed = await run.verify_finished(), 0
    else:
        resumed = await run.copy_rows()
        found = await run.verify()
        await run.open_target(found)
    await run.settle_source(keep_source)
    return Copied(found.rows, found.bytes, found.digest, found.rows if token is None else resumed, _since(began_s))


def _since(began_s: float) -> float:
    return round(time.monotonic() - began_s, 3)


class _Run:
    """One run of a copy."""

    def __init__(
        self,
        source: Store,
        target: Store,
        report: Callable[[Step], None],
        sleep: Callable[[float], Awaitable[object]],
        patience_s: float,
    ) -> None:
        self.patience_s = patience_s
        self.source = source
        self.target = target
        self.report = report
        self.sleep = sleep
        self.claim = b""
        self.token = ""
        self.copied_bytes = 0

    async def begin(self) -> str | None:
        """Seal the source and claim the target; the token that ties them together, None if the target is open already.

        Raises:
            CopyError: it must not be done.
        """
        cluster = await self._persist(_read_store, self.source)
        seal = await self._persist(_read_members, self.source, SEALED)
        _check_source(self.source, self.target, seal)
        state = await self._persist(_read_target, self.target)
        if seal is not None and state.copied is not None and state.copied["token"] == seal["token"]:
            self.token = seal["token"]
            return None
        if seal is not None and seal["phase"] == MOVED_PHASE:
            raise CopyError(
                f"{self.source.url}: {seal['reason']}, but that is not there. If it is lost for good, "
                "`--abort --force` opens this one as it was when it was copied"
            )
        _check_target(self.target, state, cluster)
        if seal is None:
            self.token = secrets.token_hex(16)
            seal = {
                "reason": f"its metadata is being copied to {self.target.url}",
                "phase": COPYING_PHASE,
                "token": self.token,
                "target": self.target.url,
                "since_ns": self.source.engine.now_ns(),
            }
            await self._persist(_change_seal, self.source, None, seal)
        self.token = seal["token"]
        self.since_ns: int = seal["since_ns"]
        self.claim = json.dumps(
            {"source": self.source.url, "cluster": cluster, "token": self.token, "run": secrets.token_hex(8)}
        ).encode()
        try:
            await self._persist(_claim_target, self.target, self.claim, cluster)
        except CopyError:
            # Somebody else was there first. Nothing has been copied under this seal, nor will be.
            if state.copying is None:
                await self._persist(_change_seal, self.source, self.token, None)
            raise
        cursor = await self._persist(_read_members, self.target, CURSOR)
        if cursor == STALE:
            await _clear_rows(self.target, self.claim, self._persist)
            await self._persist(_put_cursor, self.target, self.claim, json.dumps(START).encode())
        return self.token

    async def copy_rows(self) -> int:
        """Copy every row that is not there yet; the number that were there before."""
        cursor = await self._persist(_read_members, self.target, CURSOR) or START
        after = bytes.fromhex(cursor["after"])
        resumed: int = cursor["rows"]
        rows, size = resumed, cursor["bytes"]
        reading: asyncio.Task[list[list[Row]]] | None = None
        windows = _windows(self._pages(after))
        try:
            window = await anext(windows, None)
            while window:
                # The next rows are read while these are written.
                reading = asyncio.ensure_future(_next(windows))
                async with asyncio.TaskGroup() as group:
                    for chunk in window:
                        group.create_task(self._persist(_put_rows, self.target, self.claim, chunk))
                rows += sum(map(len, window))
                size += sum(len(key) + len(value) for chunk in window for key, value in chunk)
                mark = {"after": window[-1][-1][0].hex(), "rows": rows, "bytes": size}
                await self._persist(_put_cursor, self.target, self.claim, json.dumps(mark).encode())
                self.report(Step("copy", rows, size))
                self.copied_bytes = size
                window = await reading
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await windows.aclose()
        return resumed

    async def verify(self) -> Digest:
        """Read both sides; the digest that they share.

        Raises:
            CopyError: they differ.
        """
        ours, theirs = await asyncio.gather(self._digest(self.source, True), self._digest(self.target, False))
        if ours != theirs:
            raise CopyError(
                f"the copy is not what was copied: {ours.rows} rows with digest {ours.digest} in {self.source.url}, "
                f"{theirs.rows} rows with digest {theirs.digest} in {self.target.url}. The target stays closed: "
                "give it up with --abort, and look for who else writes there"
            )
        return ours

    async def verify_finished(self) -> Digest:
        """What a copy that was interrupted after it had opened the target had copied."""
        return await self._digest(self.source, True)

    async def open_target(self, found: Digest) -> None:
        """Let nodes open the target, once its clock is past every stamp of the source."""
        floor_ns = max(found.latest_stamp, self.since_ns)
        behind_s = (floor_ns - self.target.engine.now_ns()) / 1e9
        if behind_s > CLOCK_PATIENCE_S:
            raise CopyError(
                f"this machine's clock is {behind_s:.1f} s behind the newest version in {self.source.url}: versions "
                "made in the target would sort before it. Set the clock right and run this again"
            )
        while self.target.engine.now_ns() <= floor_ns:
            await self.sleep((floor_ns - self.target.engine.now_ns()) / 1e9 + 0.001)
        await self._persist(_change_phase, self.source, self.token, OPENING_PHASE)
        copied = {"source": self.source.url, "token": self.token, "finished_ns": self.target.engine.now_ns()}
        await self._persist(_open_target, self.target, self.claim, json.dumps(copied).encode(), floor_ns)

    async def settle_source(self, keep: bool) -> None:
        """Say in the source where its store went, or let it go on."""
        if keep:
            await self._persist(_change_seal, self.source, self.token, None)
            return
        reason = f"the store has moved to {self.target.url}"
        await self._persist(_change_phase, self.source, self.token, MOVED_PHASE, reason)

    async def _digest(self, store: Store, tell: bool) -> Digest:
        found = Digest(0, 0, "", 0)
        began_s = time.monotonic()
        while True:
            try:
                async for found in digest(store.engine):
                    if tell:
                        self.report(Step("verify", found.rows, found.bytes, self.copied_bytes))
                return found
            except (RetryableError, EngineUnavailable) as error:
                await self._wait_for(store, error, began_s)

    async def _pages(self, after: bytes) -> AsyncIterator[list[Row]]:
        began_s = time.monotonic()
        while True:
            try:
                async for page in pages(self.source.engine, after):
                    yield page
                    after = page[-1][0]
                    began_s = time.monotonic()
                return
            except (RetryableError, EngineUnavailable) as error:
                await self._wait_for(self.source, error, began_s)

    async def _persist(self, step: Callable[..., Awaitable[T]], store: Store, *args: object) -> T:
        """Run one step, which may be repeated without harm, until it is certain that it is done."""
        began_s = time.monotonic()
        while True:
            try:
                return await step(store, *args)
            except (RetryableError, EngineUnavailable, AmbiguousCommit) as error:
                await self._wait_for(store, error, began_s)

    async def _wait_for(self, store: Store, error: EngineError, began_s: float) -> None:
        if isinstance(error, EngineClosed) or time.monotonic() - began_s > self.patience_s:
            raise CopyError(f"{store.url}: {error}. Run this again to go on where it stopped") from error
        await self.sleep(RETRY_S)


async def abort_copy(source: Store, target: Store | None, *, force: bool = False) -> str:
    """Give up a copy that has not finished: the target, if it is given, is emptied, and the source takes writes again.

    `force`: open the source although its store has moved, or may have: for when the target is lost for good.

    Returns:
        A sentence for the operator.

    Raises:
        CopyError: the copy is complete, or it may be and only the target can tell.
        EngineError: an engine cannot be reached.
    """
    seal = await _read_members(source, SEALED)
    phase = seal.get("phase", "") if seal is not None else ""
    if seal is not None and "token" not in seal:
        raise CopyError(f"{source.url} is sealed, but by no copy: {seal['reason']}")
    if phase == MOVED_PHASE and not force:
        raise CopyError(
            f"{source.url}: {seal['reason'] if seal else ''}; there is nothing to abort. To go back, copy from there. "
            "If that store is lost for good, --force opens this one as it was when it was copied"
        )
    if phase == OPENING_PHASE and target is None and not force:
        raise CopyError(
            f"the copy of {source.url} was so far that {seal['target'] if seal else ''} may be open already: "
            "name it with --to, so that it can be asked"
        )
    emptied = False
    if target is not None:
        token = seal["token"] if seal is not None else ""
        cluster = await _read_store(source)
        claim = json.dumps(
            {"source": source.url, "cluster": cluster, "token": "", "run": secrets.token_hex(8)}  # no seal's token
        ).encode()
        # From here on the run that is copying, if one is, can neither write nor open the target.
        if await target.engine.transact_past_seal(_seize_target, target.engine.prefix, token, cluster, claim):
            await _clear_rows(target, claim, _once)
            await target.engine.transact_past_seal(_forget_target, target.engine.prefix, claim)
            emptied = True
    if seal is not None:
        # Without the target to seize, only the seal as it was seen tells that the copy is not about to open it.
        await _change_seal(source, seal["token"], None, seen=seal if target is None else None)
    opened = f"{source.url} takes writes again" if seal is not None else f"{source.url} was not sealed"
    return f"{opened}; {target.url} is empty" if emptied and target is not None else opened


async def _once(step: Callable[..., Awaitable[T]], *args: Any) -> T:
    return await step(*args)


def _check_source(source: Store, target: Store, seal: dict[str, Any] | None) -> None:
    if seal is None:
        return
    if "token" not in seal:
        raise CopyError(f"{source.url} is sealed: {seal['reason']}")
    if seal["target"] != target.url:
        if seal["phase"] == MOVED_PHASE:
            raise CopyError(f"{source.url}: {seal['reason']}")
        raise CopyError(
            f"{source.url} is being copied to {seal['target']}: go on with that, by naming it so, "
            "or give it up with --abort"
        )


@dataclass(frozen=True)
class _Target:
    copying: dict[str, Any] | None
    copied: dict[str, Any] | None
    empty: bool


def _check_target(target: Store, state: _Target, cluster: str) -> None:
    if state.copying is not None:
        if state.copying["cluster"] != cluster:
            raise CopyError(
                f"{target.url} holds an unfinished copy of another store, {state.copying['source']}: "
                "give that up with --abort, or name another target"
            )
    elif not state.empty:
        raise CopyError(
            f"{target.url} is not empty: name a place where no store is, such as a prefix of its own (?prefix=TEXT)"
        )


# -- Steps: each is one transaction that may be repeated without harm.


async def _read_store(store: Store) -> str:
    """The id of the cluster whose store this is."""
    prefix = store.engine.prefix

    async def look(tr: Transaction) -> tuple[bytes | None, bytes | None, bytes | None]:
        raw, copying = tr.get(Keyspace(prefix).cluster), tr.get(prefix + COPYING)
        return await raw, await copying, await foreign_key(tr, prefix)

    raw, copying, foreign = await store.engine.read(look)
    if copying is not None:
        raise CopyError(f"{store.url} is itself an unfinished copy, of {seal_members(copying)['source']}")
    if raw is None:
        raise CopyError(f"there is no store in {store.url}")
    if foreign is not None:
        raise CopyError(f"{store.url} holds more than a store, for instance the key {foreign!r}: move that elsewhere")
    cluster = cluster_codec.decode(raw)
    if cluster.format > FORMAT:
        raise CopyError(f"{store.url} has keyspace format {cluster.format}, this program knows up to {FORMAT}")
    return cluster.uuid.hex()


async def _read_members(store: Store, key: bytes) -> dict[str, Any] | None:
    raw = await store.engine.read(_get, store.engine.prefix + key)
    return None if raw is None else seal_members(raw)


async def _read_target(store: Store) -> _Target:
    return await store.engine.read(_look_at_target, store.engine.prefix)


async def _look_at_target(tr: Transaction, prefix: bytes) -> _Target:
    copying, copied = tr.get(prefix + COPYING), tr.get(prefix + COPIED)
    first = tr.get_range(prefix, prefix + OWN, limit=1)
    members = [None if raw is None else seal_members(raw) for raw in (await copying, await copied)]
    return _Target(members[0], members[1], not await first)


async def _change_seal(
    store: Store, token: str | None, members: dict[str, Any] | None, seen: dict[str, Any] | None = None
) -> None:
    """Seal a store that has no seal (`token` None), or change or clear (`members` None) the one with this token, and
    with the members `seen`, if they are given."""
    await store.engine.transact_past_seal(_set_seal, store, token, members, seen)


async def _set_seal(
    tr: Transaction,
    store: Store,
    token: str | None,
    members: dict[str, Any] | None,
    seen: dict[str, Any] | None,
) -> None:
    key = store.engine.prefix + SEALED
    raw = await tr.get(key)
    found = seal_members(raw) if raw is not None else None
    if found == members:
        return
    if (None if found is None else found.get("token")) != token or (seen is not None and found != seen):
        what = "is open" if found is None else f"is sealed: {found['reason']}"
        raise CopyError(f"{store.url} {what}. Another command changed its seal meanwhile; this one stops")
    if members is None:
        tr.clear(key)
    else:
        tr.set(key, sealed_value(**members))
    tr.bump_metadata_version()


async def _change_phase(store: Store, token: str, phase: str, reason: str = "") -> None:
    members = await _read_members(store, SEALED)
    if members is not None and members.get("token") == token:
        members = {**members, "phase": phase, "reason": reason or members["reason"]}
    await _change_seal(store, token, members or {"reason": reason, "phase": phase, "token": token})


async def _claim_target(store: Store, claim: bytes, cluster: str) -> None:
    await store.engine.transact_past_seal(_set_claim, store, claim, cluster)


async def _set_claim(tr: Transaction, store: Store, claim: bytes, cluster: str) -> None:
    prefix = store.engine.prefix
    state = await _look_at_target(tr, prefix)
    _check_target(store, state, cluster)
    tr.set(prefix + COPYING, claim)
    if state.copying is not None and state.copying["token"] != seal_members(claim)["token"]:
        tr.set(prefix + CURSOR, json.dumps(STALE).encode())
    if state.copying is None:
        for key in (CURSOR, COPIED, CLOCK_FLOOR):
            tr.clear(prefix + key)
        tr.set(prefix + SEALED, sealed_value(f"it is being filled from {seal_members(claim)['source']}"))
        tr.bump_metadata_version()


async def _put_rows(store: Store, claim: bytes, rows: list[Row]) -> None:
    await store.engine.transact_past_seal(_set_rows, store, claim, rows)


async def _set_rows(tr: Transaction, store: Store, claim: bytes, rows: list[Row]) -> None:
    await _check_claim(tr, store, claim)
    prefix = store.engine.prefix
    for key, value in rows:
        tr.set(prefix + key, value)


async def _put_cursor(store: Store, claim: bytes, cursor: bytes) -> None:
    await store.engine.transact_past_seal(_set_cursor, store, claim, cursor)


async def _set_cursor(tr: Transaction, store: Store, claim: bytes, cursor: bytes) -> None:
    await _check_claim(tr, store, claim)
    tr.set(store.engine.prefix + CURSOR, cursor)


async def _open_target(store: Store, claim: bytes, copied: bytes, floor_ns: int) -> None:
    await store.engine.transact_past_seal(_set_open, store, claim, copied, floor_ns)


async def _set_open(tr: Transaction, store: Store, claim: bytes, copied: bytes, floor_ns: int) -> None:
    prefix = store.engine.prefix
    if await tr.get(prefix + COPIED) == copied:
        return
    await _check_claim(tr, store, claim)
    for key in (COPYING, CURSOR, SEALED):
        tr.clear(prefix + key)
    tr.set(prefix + COPIED, copied)
    tr.set(prefix + CLOCK_FLOOR, floor_ns.to_bytes(8, "big"))
    tr.bump_metadata_version()


async def _check_claim(tr: Transaction, store: Store, claim: bytes) -> None:
    if await tr.get(store.engine.prefix + COPYING) != claim:
        raise CopyError(f"{store.url} has been taken over by another run of this command; this one stops")


async def _seize_target(tr: Transaction, prefix: bytes, token: str, cluster: str, claim: bytes) -> bool:
    """Take an unfinished copy away from whoever makes it. False: there is none."""
    state = await _look_at_target(tr, prefix)
    if state.copying is None:
        if token and state.copied is not None and state.copied["token"] == token:
            raise CopyError(
                "the copy is complete and the target open; run this without --abort to have the source say so"
            )
        return False
    if state.copying["cluster"] != cluster:
        raise CopyError(f"the target holds an unfinished copy of another store, {state.copying['source']}")
    tr.set(prefix + COPYING, claim)
    return True


async def _forget_target(tr: Transaction, prefix: bytes, claim: bytes) -> None:
    if await tr.get(prefix + COPYING) == claim:
        for key in (COPYING, CURSOR, SEALED):
            tr.clear(prefix + key)
        tr.bump_metadata_version()


async def _clear_rows(store: Store, claim: bytes, persist: Callable[..., Awaitable[Any]], begin: bytes = b"") -> None:
    """Remove every row of an unfinished copy. Its cursor must be stale, or its claim worth nothing."""
    async for page in pages(store.engine):
        await persist(_clear_range, store, claim, begin, page[-1][0] + b"\x00")


async def _clear_range(store: Store, claim: bytes, begin: bytes, end: bytes) -> None:
    await store.engine.transact_past_seal(_unset_range, store, claim, begin, end)


async def _unset_range(tr: Transaction, store: Store, claim: bytes, begin: bytes, end: bytes) -> None:
    await _check_claim(tr, store, claim)
    tr.clear_range(store.engine.prefix + begin, store.engine.prefix + end)


async def _get(tr: Transaction, key: bytes) -> bytes | None:
    return await tr.get(key)


# -- Rows, in the portions in which they are written


async def _windows(source: AsyncIterator[list[Row]]) -> AsyncGenerator[list[list[Row]], None]:
    """Rows in chunks of a transaction each, and these in windows of as many as are under way at a time."""
    window: list[list[Row]] = []
    chunk: list[Row] = []
    size = 0
    async for page in source:
        for row in page:
            grows = 3 * len(row[0]) + len(row[1])
            if chunk and (size + grows > CHUNK_BYTES or len(chunk) == CHUNK_ROWS):
                window.append(chunk)
                chunk, size = [], 0
                if len(window) == IN_FLIGHT:
                    yield window
                    window = []
            chunk.append(row)
            size += grows
    if chunk:
        window.append(chunk)
    if window:
        yield window


async def _next(windows: AsyncIterator[list[list[Row]]]) -> list[list[Row]]:
    return await anext(windows, [])
