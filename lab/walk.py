"""A walk through three regions: what each step shows, in words and in figures.

Each step is a method that says what it does and measures it; the figures are what `--json` writes, and what
`tests/lab/test_walk.py` holds against what physics allows.
"""

from __future__ import annotations

import http.client
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

from lab.observer import Observer
from lab.regions import ONE_WAY_S, Client, LabError, Regions, megabytes, picture

BODY_BYTES: Final = 4_000_000
SMALL_BYTES: Final = 64 * 1024
"""Beyond what is kept in the database beside an object's record: its bytes are a file."""

REPLICATE_AFTER: Final = 3
GETS: Final = 20
CLIENTS: Final = 64

Figures = dict[str, Any]


class Walk:
    """Args:
    objects: of 64 KiB each, which converge on three regions.
    bytes_per_s: of each direction of a wire, while they do.
    """

    def __init__(
        self, regions: Regions, say: Callable[[str], None], *, objects: int, bytes_per_s: float, within_s: float
    ) -> None:
        self._regions = regions
        self._say = say
        self._objects = objects
        self._bytes_per_s = bytes_per_s
        self._within_s = within_s
        self._observer = Observer(regions.database.url, regions.master_key)
        self._body = os.urandom(BODY_BYTES)
        self.figures: Figures = {"round_trip_ms": 2000 * ONE_WAY_S}

    def run(self) -> Figures:
        """All steps in order. Raises LabError: something was not as it has to be."""
        with self._observer:
            self._meet()
            self._fetch()
            self._become_home()
            self._lose_the_origin()
            self._read_near_and_far()
            self._cut_off()
            self._converge()
        return self.figures

    # --- steps

    def _meet(self) -> None:
        """Wait until every node has seen the others beat: until then nobody is asked for bytes."""
        self._client("a").create_bucket("walk")
        # A write that has to be on three nodes is refused by a node that knows of fewer.
        self._client("a").create_bucket("meet", X_Tigrislike_Durability="homes=3")
        deadline_s = time.monotonic() + self._within_s
        for region in self._regions.nodes:
            while (status := self._client(region).put("meet", region, self._body[:SMALL_BYTES])) != 200:
                self._expect(time.monotonic() < deadline_s, f"{region} knows of the other regions ({status})")
                time.sleep(0.2)

    def _fetch(self) -> None:
        self._title(f"An object of {megabytes(BODY_BYTES)} is put in a and read in b")
        self._expect(self._client("a").put("walk", "model", self._body) == 200, "a takes the object")
        gets = []
        for which in ("first", "second"):
            before = self._regions.crossed_bytes("a", "b")
            answer = self._client("b").get("walk", "model")
            crossed = self._regions.crossed_bytes("a", "b") - before
            self._expect(answer.body == self._body, f"b serves the bytes that a took ({answer.status})")
            self._say(
                f"  GET in b, the {which}: {1000 * answer.took_s:.0f} ms, X-Tigris-Served-From: {answer.served_from}, "
                f"{megabytes(crossed)} came from a"
            )
            gets.append({"ms": 1000 * answer.took_s, "served_from": answer.served_from, "crossed_bytes": crossed})
        self.figures["gets"] = gets

    def _become_home(self) -> None:
        self._title(f"Read {REPLICATE_AFTER} times, it gets a home in b")
        before = self._observer.homes()["b"]
        began_s = time.monotonic()
        for _ in range(REPLICATE_AFTER - 2):
            self._client("b").get("walk", "model")
        self._expect(self._observer.wait_for({"b": before + 1}, self._within_s), "b becomes a home")
        took_s = time.monotonic() - began_s
        self._say(f"  b holds it durably {took_s:.1f} s after the read that was one too many")
        self.figures["home_after_s"] = took_s

    def _lose_the_origin(self) -> None:
        self._title("The node of a is stopped, and its disk wiped")
        node = self._regions.nodes["a"]
        self._regions.lose(node)
        answer = self._client("b").get("walk", "model")
        self._expect(answer.body == self._body, f"b serves the object without a ({answer.status})")
        self._say(f"  GET in b: {answer.status}, X-Tigris-Served-From: {answer.served_from}")
        self.figures["without_origin"] = {"status": answer.status, "served_from": answer.served_from}
        self._regions.start(node)
        self._say("  a is started again, as a new and empty node")

    def _read_near_and_far(self) -> None:
        self._title("The bytes are in b, the database is 80 ms away: strong and bounded reads")
        body = self._body[:SMALL_BYTES]
        for mode in ("strong", "bounded=30s"):
            bucket = mode.partition("=")[0]
            client = self._client("b")
            client.create_bucket(bucket, X_Tigrislike_Read_Mode=mode)
            self._expect(client.put(bucket, "key", body) == 200, "b takes an object")
            self._expect(client.get(bucket, "key").body == body, "b serves it")
            took_ms = [1000 * client.get(bucket, "key").took_s for _ in range(GETS)]
            self.figures[f"{bucket}_ms"] = {"median": statistics.median(took_ms), "least": min(took_ms)}
            self._say(f"  {mode:<12} median of {GETS} GETs of 64 KiB: {statistics.median(took_ms):.1f} ms")

    def _cut_off(self) -> None:
        self._title("b is cut off from the database")
        client = self._client("b")
        self._regions.database.cut("b")
        statuses: Figures = {}
        statuses["bounded_get"] = client.get("bounded", "key").status
        statuses["strong_get"] = client.get("strong", "key").status
        statuses["put"] = client.put("bounded", "other", b"x")
        for name, status in statuses.items():
            self._say(f"  {name.replace('_', ' '):<12} {status}")
        self._regions.database.heal("b")
        began_s = time.monotonic()
        while (status := client.put("bounded", "other", b"x")) != 200:
            self._expect(time.monotonic() - began_s < self._within_s, f"b takes writes again ({status})")
            time.sleep(0.05)
        statuses["healed_after_s"] = time.monotonic() - began_s
        self._say(f"  healed: the first PUT is taken {statuses['healed_after_s']:.1f} s later")
        self.figures["cut_off"] = statuses

    def _converge(self) -> None:
        count, size = self._objects, self._objects * SMALL_BYTES
        ideal_s = size / self._bytes_per_s
        self._title(
            f"{count:,} objects of 64 KiB, put in a by {CLIENTS} clients, are to be at home in a, b and c; "
            f"each wire carries {self._bytes_per_s / 1e6:g} MB/s"
        )
        client = self._client("a")
        client.create_bucket("everywhere", X_Tigris_Regions="a,b,c")
        urls = [client.presign_put("everywhere", f"{number:06}") for number in range(count)]
        before = self._observer.homes()
        wanted = {region: before[region] + count for region in self._regions.nodes}
        crossed = self._regions.crossed()
        self._regions.bandwidth(self._bytes_per_s)
        began_s = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as clients:
            putting = clients.map(lambda mine: _put_all(mine, self._body), [urls[n::CLIENTS] for n in range(CLIENTS)])
            statuses = [status for each in putting for status in each]
        put_s = time.monotonic() - began_s
        self._expect(statuses == [200] * count, f"a takes all objects ({set(statuses)})")
        self._expect(self._observer.wait_for(wanted, self._within_s), f"all homes are there ({self._observer.homes()})")
        took_s = time.monotonic() - began_s
        moved = {wire: self._regions.crossed()[wire] - crossed[wire] for wire in crossed}
        self._say(f"  the last PUT is acknowledged after {put_s:.1f} s, the last home is there after {took_s:.1f} s")
        self._say(
            f"  {megabytes(size)} to each region at the wire's rate: {ideal_s:.1f} s; ratio {took_s / ideal_s:.2f}"
        )
        self.figures["convergence"] = {
            "objects": count,
            "bytes": size,
            "bytes_per_s": self._bytes_per_s,
            "ideal_s": ideal_s,
            "put_s": put_s,
            "took_s": took_s,
            "ratio": took_s / ideal_s,
            "crossed_bytes": moved,
        }

    # --- around them

    def draw(self) -> str:
        """Where bytes went so far."""
        return picture(list(self._regions.nodes), self._regions.served, self._regions.crossed())

    def _client(self, region: str) -> Client:
        return self._regions.client(region)

    def _title(self, title: str) -> None:
        self._say(f"\n{title}.")

    @staticmethod
    def _expect(truth: bool, what: str) -> None:
        if not truth:
            raise LabError(f"expected and not found: {what}")


def _put_all(urls: Iterable[str], body: bytes) -> list[int]:
    """PUT objects of 64 KiB one after another over one connection; the statuses. Each is other bytes."""
    statuses = []
    connection: http.client.HTTPConnection | None = None
    for url in urls:
        parts = urlsplit(url)
        connection = connection or http.client.HTTPConnection(parts.netloc, timeout=60)
        start = hash(parts.path) % (len(body) - SMALL_BYTES)
        connection.request("PUT", f"{parts.path}?{parts.query}", body[start : start + SMALL_BYTES])
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    if connection is not None:
        connection.close()
    return statuses
