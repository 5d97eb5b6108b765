"""Nodes in several regions over one database, as processes of their own, and everything that can befall them.

A node's name begins with its region's: "a", or "a1" and "a2". The nodes speak to each other through a link
(`lab/link.py`), which tells regions apart by the address that their connections come from, or by the network namespace;
clients speak to the nodes past it. All share one database of the engine under test, from which a region can be cut off
(`lab/database.py`), and each has its own data directory and address, which it keeps when it is killed, emptied and
started again, and a wall clock of its own (`stepped_node.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError

from lab.database import Cluster, Database, SqliteFile
from lab.link import call
from tests.chaos.runs import assert_store_is_whole
from tests.crash.test_kill import until
from tests.nodes import RunningNode, engine_settings, start_node
from tests.regions import stepped_node
from tigrislike.metadata import MasterKey, Metadata
from tigrislike.metadata.errors import MetadataError
from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.records import Content, Item
from tigrislike.replication.membership import BEAT_S, Members
from tigrislike.replication.removing import remove_node

T = TypeVar("T")

FLAGS = ("--workers=1", "--access-log=off", "--replicate-after=3", "--reclaim-grace=0s", "--sweep-interval=1s")

DATABASE = "database"
"""The region of the link that the database is in, with no node."""

MOVING_S = 60
"""Within which all nodes that run have been seen to beat."""

LASTING = frozenset({"decay"})
"""Tasks that wait for days by design."""


class Placed(NamedTuple):
    """Where an object is, and the names of the nodes that hold all of it durably; "?": one that runs no more."""

    content_id: bytes
    content: Content
    nodes: list[str]


class Regions:
    """A store of several nodes. Make it with `regions`.

    Attributes:
        nodes: those that run, by name.
    """

    def __init__(self, directory: Path, names: Sequence[str], flags: Sequence[str]) -> None:
        self.directory = directory
        self.names = tuple(names)
        self.regions = tuple(dict.fromkeys(name[0] for name in names))
        self.nodes: dict[str, RunningNode] = {}
        self._flags = (*FLAGS, *flags)
        self._addresses = {region: f"127.0.{number}.1" for number, region in enumerate(self.regions, 1)}
        ports = _free_ports(2 * len(names))
        self._ports = dict(zip(names, ports, strict=False))
        self._link_ports = dict(zip(names, ports[len(names) :], strict=True))
        self._control = directory / "link"
        self._database: Database
        if settings := engine_settings(directory / "metadata"):
            self._database = Cluster(settings["metadata"], DATABASE, self.regions, self._control)
            self._master_key: Path = settings["master_key_file"]
        else:
            self._database = SqliteFile(directory, None, 0)
            self._master_key = directory / "master.key"
            MasterKey.create_file(self._master_key)
        self._link = self._start_link()
        for name in names:
            self.set_clock(name, 0)

    def _start_link(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lab.link", f"--control={self._control}"]
        command += [f"--region={region}={address}" for region, address in self._addresses.items()]
        command += [f"--region={DATABASE}=127.0.0.254", *self._database.link_flags]
        command += [
            f"--node={name[0]}=127.0.0.1:{self._link_ports[name]}=127.0.0.1:{self._ports[name]}" for name in self.names
        ]
        link = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert link.stdout is not None
        assert link.stdout.readline() == b"ready\n"
        return link

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
        self._link.kill()
        self._link.communicate()
        self._database.close()

    # --- nodes

    def data_dir(self, name: str) -> Path:
        return self.directory / name

    def flags(self, name: str) -> tuple[str, ...]:
        """Which store a node is of, for `serve` and for other commands."""
        return (
            f"--region={name[0]}",
            f"--metadata={self._database.url_from(name[0])}",
            f"--master-key-file={self._master_key}",
        )

    def start(self, name: str) -> None:
        """Start a node, where it was before."""
        node = start_node(
            self.data_dir(name),
            *self.flags(name),
            f"--port={self._ports[name]}",
            f"--advertise=http://127.0.0.1:{self._link_ports[name]}",
            f"--peer-source-address={self._addresses[name[0]]}",
            *self._flags,
            command=[*self._database.command(name[0]), *stepped_node.COMMAND],
            environment={stepped_node.VARIABLE: str(self._clock_file(name))},
        )
        if self._database.command(name[0]):
            node.endpoint = f"http://127.0.0.1:{self._link_ports[name]}"  # the only way in for clients
        self.nodes[name] = node

    def start_all(self) -> None:
        with ThreadPoolExecutor(len(self.names)) as threads:
            list(threads.map(self.start, self.names))
        self.meet()

    def stop(self, name: str) -> None:
        assert self.nodes.pop(name).stop() == 0

    def kill(self, name: str) -> None:
        self.nodes.pop(name).kill()

    def empty(self, name: str) -> None:
        """Lose the disk of a node that does not run: started again, it is another node."""
        shutil.rmtree(self.data_dir(name) / "cache")

    def meet(self) -> None:
        """Wait until every node counts on every other to take copies, as writes to as many homes show."""
        everywhere = f"homes={len(self.nodes)}"
        for name in self.nodes:
            s3 = self.client(name)
            bucket = f"meeting-{name}"
            with contextlib.suppress(ClientError):
                create_bucket(s3, bucket, durability=everywhere)
            until(lambda s3=s3, bucket=bucket: succeeds(s3.put_object, Bucket=bucket, Key="k", Body=bytes(70_000)),  # type: ignore[misc]
                  f"{name} knows all others")  # fmt: skip
            s3.delete_object(Bucket=bucket, Key="k")

    def set_clock(self, name: str, off_s: float) -> None:
        """Set the wall clock of a node, which may run, wrong by so much; 0 sets it right."""
        stepped_node.set_clock(self._clock_file(name), int(off_s * 1e9))

    def _clock_file(self, name: str) -> Path:
        return self.directory / f"clock-{name}"

    def node_id(self, name: str) -> bytes:
        return bytes.fromhex(json.loads((self.data_dir(name) / "cache" / "format.json").read_text())["node"])

    def client(self, name: str, *, timeout_s: float = 30) -> BaseClient:
        """One that asks a node once and takes its first answer."""
        node = self.nodes[name]
        return node.client(connect_timeout=5, read_timeout=timeout_s, max_pool_connections=4)

    # --- the wide area

    def cut(self, region: str, *, established: str = "reset", arriving: str = "refuse") -> None:
        """Cut a region's nodes off from those of all others."""
        for other in self.regions:
            if other != region:
                state = {"established": established, "arriving": arriving}
                call(self._control, "partition", source=region, destination=other, **state)

    def cut_database(self, region: str) -> None:
        self._database.cut(region)

    def heal(self, region: str) -> None:
        """End both kinds of cuts."""
        self._database.heal(region)
        for other in self.regions:
            if other != region:
                call(self._control, "heal", source=region, destination=other)

    def crossed_bytes(self, source: str, destination: str) -> int:
        crossed: int = call(self._control, "crossed_bytes", source=source, destination=destination)
        return crossed

    # --- what the database and the disks say

    def ask(self, question: Callable[[Metadata], Awaitable[T]]) -> T:
        """Ask the database itself, from nowhere."""

        async def asked() -> T:
            engine = await open_engine(self._database.url)
            try:
                master = MasterKey.read_file(self._master_key)
                metadata = await Metadata.open(
                    engine, master_key=master, node_id=bytes(16), region="nowhere", reclaim_grace_s=0
                )
                async with contextlib.aclosing(metadata):
                    await metadata.refresh()
                    return await question(metadata)
            finally:
                await engine.close()

        return asyncio.run(asked())

    def placed(self, bucket: str, key: str) -> Placed | None:
        """Where an object lies; None where there is none."""
        return self.all_placed({(bucket, key)})[bucket, key]

    def all_placed(self, objects: set[tuple[str, str]]) -> dict[tuple[str, str], Placed | None]:
        names = {self.node_id(name): name for name in self.nodes}

        async def find(metadata: Metadata) -> dict[tuple[str, str], Placed | None]:
            found: dict[tuple[str, str], Placed | None] = {}
            for bucket, key in objects:
                try:
                    content_id = (await metadata.find_object(await metadata.bucket(bucket), key)).version.content
                    content = await metadata.content(content_id)
                except MetadataError:
                    content = None
                found[bucket, key] = None
                if content is not None:
                    whole = sorted(names.get(home.node, "?") for home in content.homes if home.whole)
                    found[bucket, key] = Placed(content_id, content, whole)
            return found

        return self.ask(find)

    def owed(self) -> list[Item]:
        """Everything that is left in the queue, dead letters too, but for what waits for days."""

        async def collect(metadata: Metadata) -> list[Item]:
            found: list[Item] = []
            for zone in await metadata.queue.zones():
                for rows in (await metadata.queue.items(zone), await metadata.queue.letters(zone)):
                    found += [item for _, item in rows if item.task not in LASTING]
            return found

        return self.ask(collect)

    def remove_lost(self) -> None:
        """Remove from the store, as an operator does, the nodes whose disks are gone."""
        running = {self.node_id(name) for name in self.nodes}

        async def remove(metadata: Metadata) -> None:
            members = Members(metadata)
            deadline_s = time.monotonic() + MOVING_S
            while not running <= {each.node for each in members.takers()}:
                assert time.monotonic() < deadline_s, "a node that runs does not beat"
                await asyncio.sleep(BEAT_S / 4)
                await members.refresh()
            for each in members.all():
                if each.node not in running:
                    async for _ in remove_node(metadata, members, each.node):
                        pass

        self.ask(remove)

    def lost(self) -> set[tuple[str, str]]:
        """The objects, as bucket and key, that `tigrislike admin check` says no node has."""
        name = next(iter(self.nodes))
        command = [sys.executable, "-m", "tigrislike", "admin", "check", "--json", f"--data-dir={self.data_dir(name)}"]
        command += [f"--metadata={self._database.url}", f"--master-key-file={self._master_key}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 3), done.stderr
        (contents,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "contents"]
        return {(each["bucket"], each["key"]) for each in contents["facts"]["objects"]}

    def files(self, name: str, blob_id: bytes | None = None, under: str = "home") -> list[Path]:
        """Block files of a node, of one blob or all: in `home`, `cache` or `incoming`."""
        pattern = f"*{blob_id.hex() if blob_id is not None else ''}*"
        return [path for path in (self.data_dir(name) / "cache" / under).rglob(pattern) if path.is_file()]

    def assert_whole(self, name: str) -> None:
        """fsck has nothing to say of the database and of a node's disk."""
        assert_store_is_whole(self.nodes[name], *self.flags(name))


@contextlib.contextmanager
def regions(directory: Path, *names: str, flags: Sequence[str] = ()) -> Iterator[Regions]:
    """Nodes that know each other, for the length of a `with` block."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        store = Regions(directory, names, flags)
    except PermissionError as error:
        pytest.skip(f"regions over FoundationDB take the right to make network namespaces: {error}")
    try:
        store.start_all()
        yield store
    finally:
        store.close()


def create_bucket(s3: BaseClient, name: str, *, policy: str = "", durability: str = "") -> None:
    """Make a bucket with the headers that boto3 does not know."""
    extra = {"X-Tigris-Regions": policy, "X-Tigrislike-Durability": durability}

    def add(params: dict[str, Any], **_: object) -> None:
        params["headers"].update({header: value for header, value in extra.items() if value})

    s3.meta.events.register("before-call.s3.CreateBucket", add)
    try:
        s3.create_bucket(Bucket=name)
    finally:
        s3.meta.events.unregister("before-call.s3.CreateBucket", add)


def succeeds(request: Callable[..., object], **arguments: object) -> bool:
    try:
        request(**arguments)
    except (ClientError, BotoCoreError):
        return False
    return True


def read(s3: BaseClient, bucket: str, key: str) -> tuple[bytes, str]:
    """An object's bytes, and the region that they are said to come from."""
    answer = s3.get_object(Bucket=bucket, Key=key)
    with contextlib.closing(answer["Body"]) as body:
        return body.read(), answer["ResponseMetadata"]["HTTPHeaders"]["x-tigris-served-from"]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, that the kernel gives to no connection, and that no other worker of this run of
    tests takes: a node finds its own free again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000, 12) + worker
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return list(dict.fromkeys(ports)) if len(set(ports)) == count else _free_ports(count)
