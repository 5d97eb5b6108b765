"""Every kind of fault, over real connections, through a driver that takes lengths on trust: no wrong byte, no hang over
the stated bound, the right error. The clock leaps, so that bounds are exact and nothing is waited for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import pytest

from tests.origin.leaping import run
from tests.origin.lying import Fault, Lying
from tests.origin.plain import Plain
from tigrislike.origin import (
    Attributes,
    Buffer,
    Origin,
    OriginBroken,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
    Written,
)
from tigrislike.origin.breaker import Breaker
from tigrislike.origin.budget import Budget
from tigrislike.origin.egress import Egress
from tigrislike.origin.location import Location
from tigrislike.origin.opening import open_origin
from tigrislike.origin.resilient import RETRIES, RETRIES_AT_LEAST, Limits, Resilient

DATA = Random(6).randbytes(600_000)
START, STOP = 1000, 500_000
LIMITS = Limits(timeout_s=20, silence_s=4, slowest=64 * 1024, attempts=4, concurrency=16)
BOUND_S = LIMITS.timeout_s + (STOP - START) / LIMITS.slowest

Story = Callable[[Lying, Resilient, str], Awaitable[None]]


def now_s() -> float:
    return asyncio.get_running_loop().time()


def s3(server: Lying) -> Origin:
    location = Location(f"s3://{server.bucket}", server.endpoint, "us-east-1", "any", "any")
    return open_origin(location, egress=Egress(allow_private=True))


DRIVERS = {"plain": Plain, "s3": s3}
drivers = pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)


@asynccontextmanager
async def served(
    server: Lying, driver: Callable[[Lying], Origin] = Plain, limits: Limits = LIMITS, **options: Any
) -> AsyncIterator[Resilient]:
    async with server:
        origin = Resilient(driver(server), limits, **{"random": Random(1)} | options)
        try:
            yield origin
        finally:
            await origin.close()
        assert (origin.statistics().running, origin.statistics().waiting) == (0, 0)


async def read(origin: Resilient, etag: str, start: int = START, stop: int = STOP) -> bytes:
    """What is given out is right, whether the end is reached or not."""
    given = bytearray()
    async for piece in origin.read("key", start, stop, size=len(DATA), etag=etag):
        given += piece
        assert given == DATA[start : start + len(given)]
    assert len(given) == stop - start
    return bytes(given)


FAULTS: dict[str, tuple[Fault, type[OriginError]]] = {
    "500": (Fault(status=500), OriginUnavailable),
    "503": (Fault(status=503, retry_after="2"), OriginUnavailable),
    "silent": (Fault(silent=True), OriginUnavailable),
    "slow": (Fault(slow_s=60), OriginUnavailable),
    "drips": (Fault(drip=(1000, 1.0)), OriginUnavailable),
    "stalls": (Fault(stall=100_000), OriginUnavailable),
    "cut": (Fault(cut=100_000), OriginUnavailable),
    "cut at once": (Fault(cut=0), OriginUnavailable),
    "cut, and its end cannot be told": (Fault(cut=100_000, unframed=True), OriginBroken),
    "shorter": (Fault(shorter=1), OriginBroken),
    "nothing": (Fault(shorter=1 << 30), OriginBroken),
    "longer": (Fault(longer=1), OriginBroken),
    "longer, and its end cannot be told": (Fault(longer=100_000, unframed=True), OriginBroken),
    "another range": (Fault(shift=1), OriginBroken),
    "another range, it says": (Fault(content_range=f"bytes 0-10/{len(DATA)}"), OriginBroken),
    "the whole object": (Fault(whole=True), OriginBroken),
}


ONCE = {name: fault for name, (fault, _) in FAULTS.items()} | {
    "stalls before the last byte": Fault(stall=STOP - START - 1),
    "cut before the last byte": Fault(cut=STOP - START - 1),
}


@drivers
@pytest.mark.parametrize("fault", ONCE.values(), ids=ONCE)
def test_what_happens_once_is_got_over(driver: Callable[[Lying], Origin], fault: Fault) -> None:
    async def story() -> None:
        server = Lying()
        async with served(server, driver) as origin:
            etag = server.put("key", DATA).etag
            server.faults.append(fault)
            try:
                assert await read(origin, etag) == DATA[START:STOP]
                assert server.asked("GET") == 2
            except OriginBroken:
                # Too long, when some of it had been given out already: `read` has seen to it that it was right.
                assert fault.longer
                assert server.asked("GET") == 1
            assert now_s() <= BOUND_S
            assert await read(origin, etag) == DATA[START:STOP]
            counts = origin.statistics()
            assert counts.unavailable + counts.broken == 1

    run(story(), sockets=True)


@drivers
@pytest.mark.parametrize(("fault", "error"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_end_is_an_error_within_the_bound(
    driver: Callable[[Lying], Origin], fault: Fault, error: type[OriginError]
) -> None:
    async def story() -> None:
        server = Lying()
        async with served(server, driver) as origin:
            etag = server.put("key", DATA).etag
            server.always = fault
            with pytest.raises((OriginUnavailable, OriginBroken)) as raised:
                await read(origin, etag)
            # The S3 driver counts too, and calls an answer that ends early broken, however it came to end.
            assert isinstance(raised.value, error) or (driver is s3 and fault.cut is not None)
            assert now_s() <= BOUND_S
            assert server.asked("GET") <= LIMITS.attempts

    run(story(), sockets=True)


@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(silent=True), Fault(slow_s=60)], ids=["500", "silent", "slow"]
)
def test_so_it_is_for_what_has_no_body(fault: Fault) -> None:
    fault = Fault(
        methods=frozenset({"HEAD", "PUT", "DELETE"}), status=fault.status, silent=fault.silent, slow_s=fault.slow_s
    )

    async def body() -> AsyncIterator[Buffer]:
        yield DATA

    async def story() -> None:
        server = Lying()
        async with served(server, breaker=Breaker(in_a_row=100), retries=Budget(1, 100)) as origin:
            server.put("key", DATA)
            server.always = fault
            for ask in (
                lambda: origin.head("key"),
                lambda: origin.delete("key"),
                lambda: origin.put("key", body(), len(DATA), Attributes()),
            ):
                began_s = now_s()
                with pytest.raises(OriginUnavailable):
                    await ask()
                assert now_s() - began_s <= LIMITS.timeout_s + len(DATA) / LIMITS.slowest
            server.always = Fault()
            server.faults.extend([fault, fault])
            assert (await origin.head("key")).size == len(DATA)

    run(story(), sockets=True)


def test_another_version_is_none_to_be_had() -> None:
    async def story() -> None:
        server = Lying()
        async with served(server) as origin:
            etag = server.put("key", DATA).etag
            server.faults.append(Fault(etag="another"))
            with pytest.raises(OriginChanged):
                await read(origin, etag)
            with pytest.raises(OriginChanged):
                await read(origin, "another")
            assert server.asked("GET") == 2
            assert origin.statistics().state == "closed"

    run(story(), sockets=True)


@drivers
@pytest.mark.parametrize("at", [0, 1, 100_000, STOP - START - 1])
def test_an_object_that_changes_in_the_middle_is_never_spliced(driver: Callable[[Lying], Origin], at: int) -> None:
    async def story() -> None:
        server = Lying()
        async with served(server, driver) as origin:
            etag = server.put("key", DATA).etag
            server.faults.append(Fault(change=(at, DATA[::-1])))
            with pytest.raises(OriginChanged):
                await read(origin, etag)
            found = await origin.head("key")
            assert found.etag != etag
            pieces = [bytes(one) async for one in origin.read("key", 0, 9, size=len(DATA), etag=found.etag)]
            assert b"".join(pieces) == DATA[::-1][:9]

    run(story(), sockets=True)


def test_answers_are_passed_on() -> None:
    async def story() -> None:
        server = Lying()
        async with served(server, breaker=Breaker(in_a_row=1)) as origin:
            with pytest.raises(OriginMissing):
                await origin.head("none")
            with pytest.raises(OriginMissing):
                await anext(cast("AsyncGenerator[Buffer, None]", origin.read("none", 0, 1, size=1, etag="e")))
            server.put("key", DATA)
            server.faults.append(Fault(status=403, methods=frozenset({"HEAD"})))
            with pytest.raises(OriginRefused):
                await origin.head("key")
            counts = origin.statistics()
            assert (counts.missing, counts.refused, counts.state) == (2, 1, "closed")

    run(story(), sockets=True)


def test_one_request_in_ten_failing_costs_nobody_anything() -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"{seed=}")

    async def story() -> None:
        server = Lying(seed)
        async with served(server, random=Random(seed)) as origin:
            etag = server.put("key", DATA).etag
            server.always = Fault(status=500, probability=0.1)
            failed = 0
            for at in range(500):
                try:
                    await read(origin, etag, at, at + 100)
                except OriginUnavailable:
                    failed += 1  # four failures in a row
            counts = origin.statistics()
            assert failed <= 5  # one in ten thousand: six are not chance
            assert counts.requests == server.asked("GET") == 500 + counts.retries
            assert counts.retries == counts.unavailable - failed <= 500 * RETRIES + RETRIES_AT_LEAST
            assert (counts.retries_denied, counts.bytes_read) == (0, (500 - failed) * 100)

    run(story(), sockets=True)


def test_an_origin_goes_away_and_comes_back() -> None:
    async def story() -> None:
        server = Lying()
        async with served(server) as origin:
            etag = server.put("key", DATA).etag
            server.faults.append(Fault(drip=(100_000, 1.0)))
            reading = asyncio.create_task(read(origin, etag))
            await asyncio.sleep(2.5)
            await server.go_away()
            with pytest.raises(OriginUnavailable):
                await reading
            assert now_s() <= 2.5 + BOUND_S
            assert origin.statistics().bytes_read == 300_000
            with pytest.raises(OriginUnavailable):
                await origin.head("key")
            while origin.statistics().state != "open":
                with pytest.raises(OriginUnavailable):
                    await origin.head("key")
            # From here on nobody waits.
            began_s, requests = now_s(), origin.statistics().requests
            for _ in range(100):
                with pytest.raises(OriginUnavailable) as raised:
                    await read(origin, etag)
                assert raised.value.retry_after_s > 0
            assert (now_s(), origin.statistics().requests) == (began_s, requests)
            await server.come_back()
            await asyncio.sleep(raised.value.retry_after_s)
            assert await read(origin, etag) == DATA[START:STOP]
            assert origin.statistics().state == "closed"

    run(story(), sockets=True)


def test_a_slow_origin_does_not_take_all_sockets() -> None:
    async def story() -> None:
        server = Lying()
        async with served(server) as origin:
            etag = server.put("key", DATA).etag
            server.always = Fault(slow_s=3)
            tasks = [asyncio.create_task(read(origin, etag, at, at + 1000)) for at in range(64)]
            await asyncio.sleep(1)
            assert server.connections == LIMITS.concurrency
            assert origin.statistics().waiting == 64 - LIMITS.concurrency
            await asyncio.gather(*tasks)
            assert now_s() == pytest.approx(12.0)

    run(story(), sockets=True)


def test_a_late_first_byte_is_hedged_and_the_loser_hangs_up() -> None:
    async def story() -> None:
        server = Lying()
        async with served(server) as origin:
            etag = server.put("key", DATA).etag
            server.always = Fault(slow_s=0.1)
            for _ in range(100):
                await read(origin, etag, 0, 1)
            server.faults.append(Fault(silent=True))
            began_s = now_s()
            assert await read(origin, etag) == DATA[START:STOP]
            assert now_s() - began_s == pytest.approx(0.2)
            counts = origin.statistics()
            assert (counts.hedges, counts.hedges_won, counts.retries) == (1, 1, 0)

    run(story(), sockets=True)


def test_the_way_there_and_back_without_faults() -> None:
    async def body() -> AsyncIterator[Buffer]:
        yield DATA[:1000]
        yield DATA[1000:]

    async def story() -> None:
        server = Lying()
        async with served(server) as origin:
            written = await origin.put("a/key", body(), len(DATA), Attributes())
            assert written == Written(server.objects["a/key"].etag, verified=True)
            assert (await origin.head("a/key")).etag == written.etag
            page = await origin.list("", delimiter="/")
            assert (page.entries, page.prefixes, page.after) == ((), ("a/",), "")
            await origin.delete("a/key")
            assert server.objects == {}

    run(story(), sockets=True)
