"""Clients of several regions at once, faults in a seeded order, and what must be true of it all afterwards.

Each client has keys of its own, so that it alone knows what was written last; it asks any region, does one thing at a
time and never repeats anything. A write that was not acknowledged may or may not have happened: until the next one
that is acknowledged, a key has several possible values.

Values are made from a name (`body_of`), so that the record keeps names only; the name is the object's metadata too.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError

from tests.regions.regions import Placed, Regions, create_bucket

POLICIES: dict[str, dict[str, str]] = {
    "local": {},
    "twice": {"durability": "homes=2"},
    "dual": {"policy": "a,b"},
}
"""Buckets: of the first an object may be lost with the disk of the node that took it, of the others none may."""

SIZES = (64 << 10, 200 << 10, 1 << 20)
PART = 5 << 20
"""The least size of a part but the last."""

MIX = {"put": 40, "delete": 15, "get": 40, "multipart": 1}
ABSENT = ""
LOST = "The bytes of this object are lost: the nodes that held them were removed from the store."

SETTLE_S = 90.0
"""Within which everything is in its place again after the last fault."""


def body_of(name: str) -> bytes:
    """The value that `name`, "SIZE/anything", stands for."""
    return random.Random(name).randbytes(int(name.partition("/")[0]))


@dataclass
class Slot:
    """What is known of one key: the names of the values it may have now; `ABSENT` among them if it may be absent."""

    bucket: str
    key: str
    possible: set[str] = field(default_factory=lambda: {ABSENT})


class Client(threading.Thread):
    """One client, until `ends` is set. `wrong` is what it saw and must not have, `refusal` what the last read said that
    showed nothing."""

    def __init__(self, store: Regions, number: int, seed: int, ends: threading.Event) -> None:
        super().__init__(name=f"client {number}")
        self._store = store
        self._rng = random.Random(f"{seed} client {number}")
        self._ends = ends
        self._count = 0
        self._clients: dict[tuple[str, int], BaseClient] = {}
        self.slots = [Slot(bucket, f"{number}-{key}") for bucket in POLICIES for key in range(6)]
        self.wrong: list[str] = []
        self.refusal = ""
        self.answers: Counter[str] = Counter()

    def run(self) -> None:
        while not self._ends.is_set():
            node = self._store.nodes.get(name := self._rng.choice(self._store.names))
            if node is None:
                self._ends.wait(0.05)
                continue
            with contextlib.suppress(KeyError):  # it has stopped meanwhile
                s3 = self._clients.get((name, node.pid)) or self._store.client(name, timeout_s=20)
                self._clients[name, node.pid] = s3
                action = self._rng.choices(list(MIX), list(MIX.values()))[0]
                self.act(s3, action, self._rng.choice(self.slots))
            self._ends.wait(self._rng.expovariate(20))

    def act(self, s3: BaseClient, action: str, slot: Slot) -> None:
        match action:
            case "get":
                self.look(s3, slot)
            case "delete":
                self._write(slot, ABSENT, lambda: s3.delete_object(Bucket=slot.bucket, Key=slot.key))
            case "put":
                name = self._fresh(self._rng.choice(SIZES))
                body = body_of(name)
                self._write(slot, name, lambda: s3.put_object(Bucket=slot.bucket, Key=slot.key, Body=body))
            case "multipart":
                name = self._fresh(PART + SIZES[0])
                self._write(slot, name, lambda: self._multipart(s3, slot, body_of(name)))

    def look(self, s3: BaseClient, slot: Slot) -> str | None:
        """Read a key; what it showed, or None where it showed nothing. What is wrong with that is noted."""
        try:
            answer = s3.get_object(Bucket=slot.bucket, Key=slot.key)
            with contextlib.closing(answer["Body"]) as stream:
                body = stream.read()
        except (ClientError, BotoCoreError, OSError) as error:
            if not isinstance(error, ClientError) or error.response["Error"]["Code"] != "NoSuchKey":
                self.answers[f"get {_told(error)}"] += 1
                self.refusal = str(error)
                return None
            seen = ABSENT
        else:
            found = [name for name in slot.possible if name != ABSENT and body_of(name) == body]
            seen = found[0] if found else "bytes that nobody wrote last"
        self.answers["get"] += 1
        if seen not in slot.possible:
            self.wrong.append(f"{slot.bucket}/{slot.key} shows {seen!r}, possible: {slot.possible}")
        return seen

    def _write(self, slot: Slot, name: str, write: Callable[[], object]) -> None:
        what = "put" if name else "delete"
        try:
            write()
        except (ClientError, BotoCoreError, OSError) as error:
            self.answers[f"{what} {_told(error)}"] += 1
            slot.possible.add(name)
        else:
            self.answers[what] += 1
            slot.possible = {name}

    def _multipart(self, s3: BaseClient, slot: Slot, body: bytes) -> None:
        at = {"Bucket": slot.bucket, "Key": slot.key}
        upload = s3.create_multipart_upload(**at)["UploadId"]
        pieces = {1: body[:PART], 2: body[PART:]}
        sent = [
            {"PartNumber": n, "ETag": s3.upload_part(**at, UploadId=upload, PartNumber=n, Body=piece)["ETag"]}
            for n, piece in pieces.items()
        ]
        s3.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": sent})

    def _fresh(self, size: int) -> str:
        self._count += 1
        return f"{size}/{self.name}/{self._count}"


def _told(error: Exception) -> str:
    if isinstance(error, ClientError):
        return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return type(error).__name__


class Faults:
    """The faults of a run, each begun and ended by one call.

    Attributes:
        happened: how often each did.
        wiped: contents that had no home but on disks that were lost.
    """

    KINDS: ClassVar = {"cut": 3, "cut_database": 2, "kill": 3, "empty": 1, "step_clock": 2, "start_skewed": 1}
    """Names of methods, and how often each is chosen."""

    def __init__(self, store: Regions, clients: list[Client], rng: random.Random) -> None:
        self._store = store
        self._clients = clients
        self._rng = rng
        self._waiting = threading.Event()
        self.happened: Counter[str] = Counter()
        self.wiped: set[bytes] = set()
        self._gone: set[bytes] = set()

    def go_on(self, seconds: float) -> None:
        """Let the load run."""
        self._waiting.wait(seconds)

    def each_once(self) -> Iterator[None]:
        """Every kind of fault, in a random order."""
        for kind in self._rng.sample(list(self.KINDS), len(self.KINDS)):
            self._happens(kind)
            yield

    def last(self) -> None:
        """A disk is lost, and what it alone held is not written again before the end."""
        while not self._happens("empty"):
            self.go_on(1)

    def one(self) -> None:
        self._happens(self._rng.choices(list(self.KINDS), list(self.KINDS.values()))[0])

    def _happens(self, kind: str) -> bool:
        """Let a fault befall some node. False: it was put off."""
        if kind == "empty" and amiss(self._store, self._clients, regions=False):
            # One disk at a time: only once what an earlier one held has its homes again.
            self.happened["empty, put off"] += 1
            return False
        self.happened[kind] += 1
        getattr(self, kind)(self._rng.choice(self._store.names))
        return True

    def cut(self, name: str) -> None:
        kinds = {"established": self._rng.choice(["freeze", "reset"]), "arriving": self._rng.choice(["hang", "refuse"])}
        self._say(f"region {name[0]} cut off from the others: {kinds}")
        self._store.cut(name[0], **kinds)
        self.go_on(self._rng.uniform(1, 5))
        self._store.heal(name[0])

    def cut_database(self, name: str) -> None:
        self._say(f"region {name[0]} cut off from the database")
        self._store.cut_database(name[0])
        self.go_on(self._rng.uniform(1, 5))
        self._store.heal(name[0])

    def kill(self, name: str) -> None:
        self._say(f"node {name} killed and started again")
        self._store.kill(name)
        self.go_on(self._rng.uniform(0, 2))
        self._store.start(name)

    def empty(self, name: str) -> None:
        killed = self._rng.random() < 0.5
        self._say(f"node {name} {'is killed and ' if killed else ''}loses its disk")
        (self._store.kill if killed else self._store.stop)(name)
        self._gone.add(self._store.node_id(name))
        for there in placed_of(self._store, self._clients).values():
            if there is not None and {home.node for home in there.content.homes} <= self._gone:
                self.wiped.add(there.content_id)
        self._store.empty(name)
        self._store.start(name)

    def step_clock(self, name: str) -> None:
        """While it runs. Every other time the node is killed meanwhile, with what its clock made it do half done."""
        off_s = self._off_s()
        self._say(f"the clock of node {name} is set {off_s:+,.0f} s off")
        self._store.set_clock(name, off_s)
        self.go_on(self._rng.uniform(1, 8))
        killed = self._rng.random() < 0.5
        if killed:
            self._say(f"node {name} killed, its clock set right, and started again")
            self._store.kill(name)
        self._store.set_clock(name, 0)
        if killed:
            self._store.start(name)

    def start_skewed(self, name: str) -> None:
        """A node whose clock is off is refused for as long as it is."""
        off_s = self._off_s()
        self._say(f"node {name} killed and started with its clock {off_s:+,.0f} s off")
        self._store.kill(name)
        self._store.set_clock(name, off_s)
        with pytest.raises(AssertionError, match=r"s (behind|ahead of) the other nodes': set it right first"):
            self._store.start(name)
        self._store.set_clock(name, 0)
        self._store.start(name)

    def _off_s(self) -> float:
        return self._rng.choice([-1, 1]) * self._rng.uniform(3550, 3650)

    def _say(self, what: str) -> None:
        print(f"  {time.strftime('%H:%M:%S')} {what}", flush=True)


@contextlib.contextmanager
def load(store: Regions, seed: int, count: int) -> Iterator[list[Client]]:
    """Clients that are at work for the length of a `with` block, and have ended after it."""
    first = store.client(store.names[0])
    for bucket, policies in POLICIES.items():
        create_bucket(first, bucket, **policies)
    ends = threading.Event()
    clients = [Client(store, number, seed, ends) for number in range(count)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        ends.set()
        for client in clients:
            client.join(120)


def placed_of(store: Regions, clients: list[Client]) -> dict[tuple[str, str], Placed | None]:
    return store.all_placed({(slot.bucket, slot.key) for client in clients for slot in client.slots})


def amiss(store: Regions, clients: list[Client], *, regions: bool = True) -> dict[tuple[str, str], Placed]:
    """Objects that nodes which run do not hold as their policies say: at least twice and, where these name `regions`,
    in all of them and nowhere else."""
    found = {}
    for where, there in placed_of(store, clients).items():
        if there is None or where[0] == "local":
            continue
        holders = [name for name in there.nodes if name != "?"]
        policy = set(there.content.regions) if regions else set()
        if len(holders) < 2 or (policy and {name[0] for name in holders} != policy):
            found[where] = there
    return found


def until_settled(store: Regions, clients: list[Client]) -> None:
    """Wait until all homes are what the policies say, remove nodes that are gone for good, and see the queue empty."""
    _until(lambda: not amiss(store, clients), lambda: f"homes: {amiss(store, clients)}")
    store.remove_lost()
    _until(lambda: not store.owed(), lambda: f"owed: {store.owed()}")
    assert not amiss(store, clients)
    assert not [there for there in placed_of(store, clients).values() if there is not None and "?" in there.nodes]


def _until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while not condition():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.2)


def judge(store: Regions, clients: list[Client], wiped: set[bytes]) -> None:
    """Everything that must be true once all is whole again and the clients have ended."""
    print("  answers:", dict(sum((client.answers for client in clients), Counter())))
    assert not any(client.is_alive() for client in clients)
    assert not [wrong for client in clients for wrong in client.wrong]
    store.meet()
    until_settled(store, clients)
    readers = [store.client(name) for name in store.nodes]
    placed = placed_of(store, clients)
    lost: set[tuple[str, str]] = set()
    for client in clients:
        for slot in client.slots:
            there = placed[slot.bucket, slot.key]
            seen = {client.look(s3, slot) for s3 in readers}
            if there is not None and not there.nodes:
                assert slot.bucket == "local", f"{slot} is lost: {there}"
                assert there.content_id in wiped, f"{slot} is lost, and its disk was not: {there}"
                assert None in seen, f"{slot} is at home nowhere"  # caches may still have it
                assert LOST in client.refusal
                lost.add((slot.bucket, slot.key))
            else:
                assert None not in seen, f"{slot} cannot be read: {there}"
                assert len(seen) == 1, f"{slot} shows {seen}"
    assert not [wrong for client in clients for wrong in client.wrong]

    def still_lost() -> set[tuple[str, str]]:
        """All but what a node has made its own since: of which it had a copy in its cache, and was asked for it."""
        now = placed_of(store, clients)
        return {where for where in lost if (there := now[where]) is not None and not there.nodes}

    # It watches for some seconds who beats, and on a machine with much else to do a node may miss that.
    _until(lambda: store.lost() == still_lost(), lambda: f"check lists otherwise: {store.lost() ^ still_lost()}")
    found = lost - still_lost()
    for client in clients:
        for slot in client.slots:
            if (slot.bucket, slot.key) in found:
                seen = {client.look(s3, slot) for s3 in readers}
                assert len(seen) == 1, f"{slot} came home again, and shows {seen}"
                assert None not in seen, f"{slot} came home again, and cannot be read"
    assert not [wrong for client in clients for wrong in client.wrong]
    print(f"  {len(lost)} objects of one home were lost with their disks; caches had {len(found)} of them")
    for name in store.nodes:
        store.assert_whole(name)
