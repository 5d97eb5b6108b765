"""`python -m bench.console`: what an open console adds to the server's CPU per operation.

A node has a million items queued in ten thousand zones, of regions that have no node, so that nobody takes them. Eight
connections read objects of 1 KiB as fast as they are answered, in pairs of runs: without a console, and with one whose
overview is open in a browser for all of the run. In place of the browser is a client that asks exactly as the page's
script does: for what changes, with the tag of what it has, and again after as long as the answer says.

Each pair gives a quotient, and the order within pairs turns; the goal is a median of at most 1.05. The exit status is 1
where it is missed or anything was answered wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import statistics
import struct
import sys
import tempfile
import threading
from collections.abc import Sequence
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlencode

from bench.loadgen import LoadGenerator
from bench.machine import machine
from bench.processes import StoreFailed, end_in_order
from bench.scenarios import Bench, Measurement, Scale
from bench.stores import ACCESS_KEY, SECRET_KEY, tigrislike
from tigrislike.metadata import MasterKey, Metadata, owed
from tigrislike.metadata.context import Context
from tigrislike.metadata.homes import REPLICATE, region_destination
from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.kv.engine import Transaction
from tigrislike.metadata.records import Item

SCENARIO = "get-1k-c8"
ZONES = 10_000
REGIONS = ("ams", "fra", "sjc", "syd")
ZONES_AT_ONCE = 20
CONSOLE = "/_tigrislike/console"
FIRST_S = 5.0
"""After which a page's script asks for the first time."""
GOAL = 1.05


async def fill(data_dir: Path, items: int, zones: int) -> None:
    """Queue items as `owed.enqueue` does, a hundred and more in a transaction."""
    master = MasterKey.load(None, data_dir / "master.key", create=True)
    engine = await open_engine(f"sqlite://{data_dir / 'metadata.db'}")
    try:
        metadata = await Metadata.open(engine, master_key=master, node_id=b"node-of-the-test", region="local")

        async def some(tr: Transaction, ctx: Context, numbers: range) -> None:
            for number in numbers:
                zone = owed.zone_of(region_destination(REGIONS[number % len(REGIONS)]), b"%016d" % number)
                for index in range(items // zones):
                    subject = struct.pack(">QQ", number, index)
                    item = Item(REPLICATE, subject, 0, ctx.now_ns(), 1)
                    owed.put_item(tr, ctx, zone, owed.item_id(REPLICATE, subject), None, item)
                owed.count(tr, ctx, zone, REPLICATE, enqueued=items // zones)
                await owed.announce(tr, ctx, zone, 0, None)

        for first in range(0, zones, ZONES_AT_ONCE):
            await engine.transact(some, metadata.context, range(first, min(zones, first + ZONES_AT_ONCE)))
        await engine.checkpoint()
    finally:
        await engine.close()


class OpenConsole:
    """A page of the console that somebody looks at, for the length of a `with` block.

    `answers` counts those to its refreshes, `wrong` has what was no answer.
    """

    def __init__(self, port: int, path: str = "/") -> None:
        self._host, self._path = f"127.0.0.1:{port}", CONSOLE + path
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._cookie = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.answers = 0
        self.wrong: list[str] = []

    def _sign_in(self) -> None:
        """Raises StoreFailed: it does not let us in."""
        form = urlencode({"key_id": ACCESS_KEY, "secret": SECRET_KEY, "next": ""})
        headers = {"Origin": f"http://{self._host}", "Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", CONSOLE + "/sign-in", form, headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 303:
            raise StoreFailed(f"the console answered {answer.status} to a key that is an admin's")
        cookies = SimpleCookie(answer.headers["Set-Cookie"])
        self._cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())

    def __enter__(self) -> OpenConsole:
        self._sign_in()
        self._ask({})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()

    def _look(self) -> None:
        seconds, tag = FIRST_S, ""
        while not self._over.wait(seconds):
            seconds, tag = self._ask({"X-Live": "1"} | ({"If-None-Match": tag} if tag else {}))
            self.answers += 1

    def _ask(self, headers: dict[str, str]) -> tuple[float, str]:
        """When to ask again, and the tag of what was answered."""
        self._connection.request("GET", self._path, headers={"Cookie": self._cookie, **headers})
        answer = self._connection.getresponse()
        answer.read()
        if answer.status not in (200, 304):
            self.wrong.append(f"{answer.status} for {self._path}")
        return float(answer.headers.get("X-Again-After", FIRST_S)), answer.headers.get("ETag", "")


def compare(
    directory: Path, items: int, zones: int, pairs: int, seconds: float, path: str
) -> list[tuple[Measurement, Measurement, int]]:
    """Pairs of a run without a console and one with it, and how often that was refreshed.

    Raises:
        StoreFailed: something was answered wrongly.
    """
    data_dir = directory / "store" / "data"
    data_dir.mkdir(parents=True)
    asyncio.run(fill(data_dir, items, zones))
    (directory / "client").mkdir()
    found = []
    with tigrislike(directory / "store") as (store,):
        bench = Bench(store, LoadGenerator(directory / "client"), Scale(seconds=seconds, objects=(("1k", 1024),)))
        bench.load([SCENARIO])
        with OpenConsole(store.port, path):  # what is made once is made before
            bench.measure(SCENARIO, -1)
        for turn in range(pairs):
            measured: dict[bool, Measurement] = {}
            answers = 0
            for opened in (False, True) if turn % 2 == 0 else (True, False):
                if not opened:
                    measured[opened] = bench.measure(SCENARIO, turn)
                    continue
                console = OpenConsole(store.port, path)
                with console:
                    measured[opened] = bench.measure(SCENARIO, turn)
                answers = console.answers
                if console.wrong:
                    raise StoreFailed(f"the console: {console.wrong}")
            if not all(each.valid for each in measured.values()):
                raise StoreFailed(f"wrong answers: {[each.client.samples for each in measured.values()]}")
            found.append((measured[False], measured[True], answers))
            print(f"pair {turn + 1}: {measured[True].cpu_us / measured[False].cpu_us:.3f}", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--zones", type=int, default=ZONES)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run")
    parser.add_argument("--page", default="/", help="the page that is open, below the console's address")
    chosen = parser.parse_args(arguments)
    print("; ".join(f"{name}: {value}" for name, value in machine().items()))
    with tempfile.TemporaryDirectory(prefix="bench-console-") as directory:
        try:
            found = compare(Path(directory), chosen.items, chosen.zones, chosen.pairs, chosen.seconds, chosen.page)
        except StoreFailed as error:
            print(error, file=sys.stderr)
            return 1
    print("\n| pair | CPU us/op without | with an open console | refreshes | with / without |\n|---|---|---|---|---|")
    for number, (without, with_it, answers) in enumerate(found, 1):
        quotient = with_it.cpu_us / without.cpu_us
        print(f"| {number} | {without.cpu_us:.1f} | {with_it.cpu_us:.1f} | {answers} | {quotient:.3f} |")
    median = statistics.median(with_it.cpu_us / without.cpu_us for without, with_it, _ in found)
    print(f"\nMedian {median:.3f}, goal at most {GOAL}.")
    return int(median > GOAL)


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
