"""`python -m bench.origins`: what it costs to read from an S3 origin, with this store's driver and with libraries.

    python -m bench.origins [--weed PROGRAM] [--mib 1024] [--rounds 5] [--at-once 8]

One object of SeaweedFS on loopback, read in ranges of 8 MiB, several at once, each range's length compared and its
bytes given to whoever asked, as a fill of the cache would have them. CPU is user and system time of this process with
all its threads, so the store's is not in it. Rounds are interleaved; the median is printed with the spread.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pyarrow.fs
import uvloop
from obstore.store import S3Store

from bench.blocks import MIB, Table
from bench.processes import end_in_order
from bench.stores import Store, seaweedfs
from tigrislike.origin import Attributes, Egress, Location, Origin, open_origin

RANGE = 8 * MIB
KEY = "object"

ReadRange = Callable[[int, int], Awaitable[int]]


async def written(origin: Origin, size: int) -> str:
    """Write the object; its ETag."""
    piece = os.urandom(MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield piece

    return (await origin.put(KEY, pieces(), size, Attributes())).etag


async def read_all(read: ReadRange, size: int, at_once: int) -> None:
    starts = iter(range(0, size, RANGE))  # one for all workers: each takes the next

    async def worker() -> None:
        for start in starts:
            stop = min(size, start + RANGE)
            assert await read(start, stop) == stop - start

    await asyncio.gather(*(worker() for _ in range(at_once)))


def of_driver(origin: Origin, size: int, etag: str) -> ReadRange:
    async def read(start: int, stop: int) -> int:
        return sum([len(piece) async for piece in origin.read(KEY, start, stop, size=size, etag=etag)])

    return read


def of_obstore(store: S3Store, etag: str, *, stream: bool) -> ReadRange:
    async def whole(start: int, stop: int) -> int:
        return len(await obstore.get_range_async(store, KEY, start=start, end=stop))

    async def pieces(start: int, stop: int) -> int:
        answer = await obstore.get_async(store, KEY, options={"range": (start, stop), "if_match": f'"{etag}"'})
        return sum([len(piece) async for piece in answer.stream(min_chunk_size=MIB)])

    return pieces if stream else whole


def of_arrow(filesystem: pyarrow.fs.FileSystem, bucket: str, threads: ThreadPoolExecutor) -> ReadRange:
    file = filesystem.open_input_file(f"{bucket}/{KEY}")

    async def read(start: int, stop: int) -> int:
        loop = asyncio.get_running_loop()
        return len(await loop.run_in_executor(threads, lambda: file.read_at(stop - start, start)))

    return read


async def measure(store: Store, size: int, rounds: int, at_once: int) -> Table:
    endpoint = f"http://127.0.0.1:{store.port}"
    location = Location(f"s3://{store.bucket}", endpoint, "us-east-1", store.access_key, store.secret_key)
    origin = open_origin(location, egress=Egress(allow_private=True))
    table = Table()
    try:
        etag = await written(origin, size)
        with ThreadPoolExecutor(at_once) as threads:
            readers = dict(_readers(store, endpoint, origin, size, etag, threads))
            for label in itertools.chain(*itertools.repeat(readers, rounds)):
                with table.measure(label, size):
                    await read_all(readers[label], size, at_once)
    finally:
        await origin.close()
    return table


def _readers(
    store: Store, endpoint: str, origin: Origin, size: int, etag: str, threads: ThreadPoolExecutor
) -> Iterator[tuple[str, ReadRange]]:
    yield "this store's driver (aiohttp)", of_driver(origin, size, etag)
    native = S3Store(
        store.bucket,
        endpoint=endpoint,
        access_key_id=store.access_key,
        secret_access_key=store.secret_key,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    yield "obstore, get_range", of_obstore(native, etag, stream=False)
    yield "obstore, If-Match and a stream", of_obstore(native, etag, stream=True)
    arrow = pyarrow.fs.S3FileSystem(
        access_key=store.access_key,
        secret_key=store.secret_key,
        region="us-east-1",
        scheme="http",
        endpoint_override=endpoint.removeprefix("http://"),
    )
    yield "pyarrow.fs, read_at in threads", of_arrow(arrow, store.bucket, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weed", default="", help="where the program is; default: where `make bench` puts it")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory() as directory, seaweedfs(Path(directory), options.weed) as (store, *_):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            table = runner.run(measure(store, options.mib * MIB, options.rounds, options.at_once))
        table.print()


if __name__ == "__main__":
    main()
