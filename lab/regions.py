"""Three regions on this machine, 80 ms apart, with the database in the first: processes, wires, and who asks them.

Each region is a loopback address and a node. Nodes reach each other through the link (`link.py`), which is what
`--advertise` names; clients reach the node of their region directly, or unhindered through the link where their region
is a namespace. How far the database is, and what cuts it off, is said in `database.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import botocore.config
import botocore.session

from lab.database import Cluster, Database, SqliteFile
from lab.link import call
from tigrislike.metadata.secrets import MasterKey

ADDRESSES: Final = {"a": "127.0.1.1", "b": "127.0.2.1", "c": "127.0.3.1"}
ONE_WAY_S: Final = 0.04
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 20.0


class LabError(Exception):
    """A process of the laboratory did not do what it was started for."""


@dataclass
class Node:
    """A region's node: its process while it runs, and the keys that it printed; `endpoint` is for clients."""

    region: str
    address: str
    port: int
    advertised: int
    data_dir: Path
    endpoint: str
    process: subprocess.Popen[bytes] | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.data_dir / "cache"


class Regions:
    """The regions for the length of a `with` block; whatever ends it, no process is left.

    Args:
        root: an empty directory for everything that they keep.
        flags: of `serve`, of every node.
        cluster_file: of the FoundationDB cluster that has the metadata; None: SQLite.
    """

    def __init__(self, root: Path, *flags: str, cluster_file: Path | None = None) -> None:
        self.root = root
        self.master_key = root / "master.key"
        MasterKey.create_file(self.master_key)
        self.served: Counter[str] = Counter()
        """Bytes of objects that clients got, by the region that they asked."""
        self.nodes: dict[str, Node] = {}
        self._flags = flags
        self._control = root / "link.sock"
        home, *far = ADDRESSES
        self.database: Database
        if cluster_file is None:
            self.database = SqliteFile(root, home, 2 * ONE_WAY_S)
        else:
            url = f"fdb://{quote(str(cluster_file.absolute()))}?prefix=lab-{secrets.token_hex(6)}/"
            self.database = Cluster(url, home, far, self._control)
        for region, address in ADDRESSES.items():
            port, advertised = free_port(address), free_port("127.0.0.1")
            apart = bool(self.database.command(region))
            endpoint = f"http://127.0.0.1:{advertised}" if apart else f"http://{address}:{port}"
            self.nodes[region] = Node(region, address, port, advertised, root / region, endpoint)
        self._link: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Regions:
        try:
            self._start_link()
            for node in self.nodes.values():
                self.start(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process; those that do not stop in time are killed."""
        running = [node.process for node in self.nodes.values()] + [self._link]
        for process in running:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in running:
            if process is not None:
                _end(process)
        self.database.close()

    # --- nodes

    def start(self, node: Node) -> None:
        """Start a node and wait until it answers requests. Raises LabError, with the end of its log."""
        node.data_dir.mkdir(exist_ok=True)
        log = self.root / f"{node.region}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
        reader, writer = os.pipe()
        with log.open("ab") as output:
            node.process = subprocess.Popen(
                [
                    *self.database.command(node.region),
                    *(sys.executable, "-m", "tigrislike", "serve"),
                    f"--metadata={self.database.url_from(node.region)}",
                    f"--master-key-file={self.master_key}",
                    f"--data-dir={node.data_dir}",
                    f"--region={node.region}",
                    f"--host={node.address}",
                    f"--port={node.port}",
                    f"--advertise=http://127.0.0.1:{node.advertised}",
                    f"--peer-source-address={node.address}",
                    f"--ready-fd={writer}",
                    *self._flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(writer,),
                start_new_session=True,  # Ctrl-C is for the laboratory, which then stops its nodes
                env=inherited,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as ready:
            line = ready.readline() if select.select([reader], [], [], START_TIMEOUT_S)[0] else b""
        if not line:
            raise LabError(f"the node of region {node.region} did not start:\n{log.read_text()[-2000:]}")
        node.facts = json.loads(line)

    def lose(self, node: Node) -> None:
        """Stop a node and throw away every block that it had: what is started there next is another node."""
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        _end(node.process)
        shutil.rmtree(node.cache)

    # --- wires

    @property
    def wires(self) -> list[tuple[str, str]]:
        return [(one, other) for one in self.nodes for other in self.nodes if one < other]

    def bandwidth(self, bytes_per_s: float) -> None:
        """Of each direction between any two regions."""
        for source, destination in self.wires:
            call(self._control, "set", source=source, destination=destination, bytes_per_s=bytes_per_s)

    def crossed_bytes(self, source: str, destination: str) -> int:
        crossed: int = call(self._control, "crossed_bytes", source=source, destination=destination)
        return crossed

    def crossed(self) -> dict[str, int]:
        """Bytes over each wire so far, by "source-destination"."""
        pairs = [pair for wire in self.wires for pair in (wire, wire[::-1])]
        return {f"{source}-{destination}": self.crossed_bytes(source, destination) for source, destination in pairs}

    def _start_link(self) -> None:
        regions = [f"--region={region}={address}" for region, address in ADDRESSES.items()]
        nodes = [
            f"--node={node.region}=127.0.0.1:{node.advertised}={node.address}:{node.port}"
            for node in self.nodes.values()
        ]
        with (self.root / "link.log").open("ab") as output:
            self._link = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "lab.link",
                    f"--control={self._control}",
                    *regions,
                    *nodes,
                    *self.database.link_flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        assert self._link.stdout is not None
        ready = select.select([self._link.stdout], [], [], START_TIMEOUT_S)[0]
        if not ready or self._link.stdout.readline() != b"ready\n":
            raise LabError(f"the link did not start:\n{(self.root / 'link.log').read_text()[-2000:]}")
        for source, destination in self.wires:
            call(self._control, "set", source=source, destination=destination, latency_s=ONE_WAY_S)

    # --- clients

    def client(self, region: str) -> Client:
        return Client(self, self.nodes[region])


@dataclass(frozen=True)
class Answer:
    """What a GET came to: 200, 503 or whatever; seconds until the last byte; the region that the bytes came from."""

    status: int
    took_s: float
    served_from: str
    body: bytes


class Client:
    """A client in one region."""

    def __init__(self, regions: Regions, node: Node) -> None:
        self._regions = regions
        self._region = node.region
        self.s3 = botocore.session.Session().create_client(
            "s3",
            endpoint_url=node.endpoint,
            aws_access_key_id=node.facts["access_key_id"],
            aws_secret_access_key=node.facts["secret_access_key"],
            region_name="auto",
            config=botocore.config.Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, read_timeout=60
            ),
        )

    def create_bucket(self, bucket: str, **headers: str) -> None:
        """Args: headers, with `_` for `-`."""

        def add(params: dict[str, Any], **_: object) -> None:
            params["headers"].update({name.replace("_", "-"): value for name, value in headers.items()})

        self.s3.meta.events.register("before-call.s3.CreateBucket", add, unique_id="headers")
        self.s3.create_bucket(Bucket=bucket)
        self.s3.meta.events.unregister("before-call.s3.CreateBucket", unique_id="headers")

    def put(self, bucket: str, key: str, body: bytes) -> int:
        """The status."""
        return self._status(lambda: self.s3.put_object(Bucket=bucket, Key=key, Body=body))

    def get(self, bucket: str, key: str) -> Answer:
        began_s = time.monotonic()
        got: dict[str, Any] = {}
        body = b""

        def get() -> dict[str, Any]:
            nonlocal body
            got.update(self.s3.get_object(Bucket=bucket, Key=key))
            body = got["Body"].read()
            return got

        status = self._status(get)
        headers = got.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        self._regions.served[self._region] += len(body)
        return Answer(status, time.monotonic() - began_s, headers.get("x-tigris-served-from", ""), body)

    def presign_put(self, bucket: str, key: str) -> str:
        url: str = self.s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=600)
        return url

    def _status(self, ask: Callable[[], Any]) -> int:
        try:
            status: int = ask()["ResponseMetadata"]["HTTPStatusCode"]
        except self.s3.exceptions.ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return status


def picture(regions: Sequence[str], served: Counter[str], crossed: dict[str, int]) -> str:
    """Where bytes went, as a matrix: a row for each region that sent, a column for each that received."""
    lines = ["from \\ to  " + "".join(f"{region:>12}" for region in regions) + "     clients"]
    for source in regions:
        cells = [crossed.get(f"{source}-{destination}") for destination in regions]
        row = "".join(f"{'-' if cell is None else megabytes(cell):>12}" for cell in cells)
        lines.append(f"{source:<11}{row}{megabytes(served[source]):>12}")
    return "\n".join(lines)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def free_port(address: str) -> int:
    with contextlib.closing(socket.create_server((address, 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that was told to stop; if it takes too long, kill it with its children."""
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
