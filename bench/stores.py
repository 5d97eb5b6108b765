"""The stores that are measured: this one with the defaults a user gets, and its peers as their own guides start them.

Every store listens on loopback, keeps its data under one temporary directory, has the same key pair, and must refuse
a wrong secret and a request without a signature before it counts. Whether it refuses a body whose SHA-256 is not the
signed one is noted beside its numbers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from bench import processes
from bench.processes import StoreFailed
from bench.signing import Signer, call

ACCESS_KEY = "BENCHBENCHBENCHBENCH"
SECRET_KEY = "bench-bench-bench-bench-bench-bench-benc"
READY_S = 60.0
REPOSITORY = Path(__file__).parent.parent
PEER_PROGRAMS = Path(sys.executable).parent  # where the extra `bench` puts them


@dataclass(frozen=True)
class Store:
    """A running store, or one bucket of it with another durability."""

    name: str
    title: str
    durability: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    bucket: str = "bench"
    writes_only: bool = False  # the same server as another entry, whose reads are measured there
    range_status: int = 206
    notes: tuple[str, ...] = ()
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    _signers: dict[str, Signer] = field(default_factory=dict)

    @property
    def signer(self) -> Signer:
        if "" not in self._signers:
            self._signers[""] = Signer(f"127.0.0.1:{self.port}", self.access_key, self.secret_key)
        return self._signers[""]

    def cpu_s(self) -> float:
        return processes.cpu_s(self.process.pid)

    def settled_cpu_s(self) -> float:
        return processes.settled_cpu_s(self.process.pid)

    def create_bucket(self, name: str) -> None:
        """Creates a bucket, waiting for a store that listens before it is ready. Raises StoreFailed."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                answer = call(self.signer, "PUT", f"/{name}", timeout_s=READY_S)
                if answer.status == 200:
                    return
                last, may_pass = f"{answer.status} {answer.body[:300]!r}", answer.status in (500, 503)
            except OSError as error:
                last, may_pass = repr(error), self.process.poll() is None
            if not may_pass or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
                raise StoreFailed(f"{self.name}: creating {name} was answered {last}\n{tail}")
            time.sleep(0.2)

    def checked(self) -> Store:
        """This store, noting what it was seen to verify. Raises StoreFailed if that is not even the signature."""
        path = f"/{self.bucket}/signature-check"
        wrong = replace(self.signer, secret_key="wrong", _keys={})
        # rclone answers 400 to a request without a signature; all that matters here is that none is served.
        expect = {
            "a right signature": (call(self.signer, "PUT", path, body=b"right"), {200}),
            "its GET": (call(self.signer, "GET", path), {200}),
            "a wrong secret on GET": (call(wrong, "GET", path), {403}),
            "a wrong secret on PUT": (call(wrong, "PUT", path, body=b"x"), {403}),
            "no signature": (call(self.signer, "GET", path, anonymous=True), {400, 401, 403}),
        }
        for what, (answer, statuses) in expect.items():
            if answer.status not in statuses:
                got = f"{answer.status} {answer.body[:200]!r}"
                raise StoreFailed(f"{self.name}: {what} was answered {got}, not with one of {statuses}")
        wrong_digest = call(self.signer, "PUT", path, body=b"changed", payload_sha256="0" * 64)
        verified = "refused" if wrong_digest.status == 400 else f"accepted ({wrong_digest.status})"
        return replace(self, notes=(*self.notes, f"body with a wrong SHA-256: {verified}"))


@contextmanager
def _server(
    command: list[str], directory: Path, ports: list[int], env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = directory / "log"
    process = processes.start(command, log, env=env, cwd=directory)
    try:
        processes.wait_for_ports(process, ports, log)
        yield process, log
    finally:
        processes.stop(process)


def _program(name: str) -> str:
    path = PEER_PROGRAMS / name
    if not path.exists():
        raise StoreFailed(f"{path} is missing: `make bench` installs it, and so does `pip install -e '.[bench]'`")
    return str(path)


@contextmanager
def tigrislike(
    directory: Path,
    *,
    arguments: tuple[str, ...] = (),
    module: str = "tigrislike",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[list[Store]]:
    """This store, from this very checkout, with the defaults a user gets; `module` may wrap it."""
    (port,) = processes.free_ports(1)
    command = [sys.executable, "-m", module, "serve", "--data-dir", str(directory / "data")]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    keys = {"TIGRISLIKE_ROOT_ACCESS_KEY": ACCESS_KEY, "TIGRISLIKE_ROOT_SECRET_KEY": SECRET_KEY}
    with _server(command, directory, [port], {**keys, "PYTHONPATH": str(REPOSITORY), **environment}) as (process, log):
        store = Store(
            name="tigrislike",
            title="tigrislike",
            durability="every 200 after fdatasync of bytes and commit of records (SQLite WAL, synchronous=FULL)",
            port=port,
            process=process,
            log=log,
        )
        store.create_bucket(store.bucket)
        yield [store.checked()]


@contextmanager
def seaweedfs(directory: Path, weed: str = "") -> Iterator[list[Store]]:
    """`weed server -s3`, twice: as it comes, and a bucket under `fs.configure -fsync`. `weed`: where the program is."""
    weed = weed or _program("weed")
    s3, master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = processes.free_ports(8)
    identities = directory / "identities.json"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identity = {"name": "bench", "credentials": credentials, "actions": ["Admin"]}
    identities.write_text(json.dumps({"identities": [identity]}))
    (directory / "data").mkdir()
    command = [weed, "server", "-s3", f"-dir={directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false"]
    # Small volumes, and enough of them for three buckets: the default of 8 volumes of 30 GB fits one bucket.
    command += ["-master.volumeSizeLimitMB=1024", "-volume.max=100"]
    command += [f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", f"-filer.port={filer}"]
    command += [f"-filer.port.grpc={filer_grpc}", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}"]
    command += [f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with _server(command, directory, [master, volume, filer, s3]) as (process, log):
        store = Store(
            name="seaweedfs",
            title="SeaweedFS `weed server -s3`",
            durability="no sync before 200 (its default)",
            port=s3,
            process=process,
            log=log,
        )
        store.create_bucket(store.bucket)
        synced = replace(
            store,
            name="seaweedfs-fsync",
            title="SeaweedFS, `fs.configure -fsync`",
            durability="volume file synced before 200; the filer's records (leveldb) are not",
            bucket="bench-fsync",
            writes_only=True,
            _signers={},
        )
        store.create_bucket(synced.bucket)
        configure = f"fs.configure -locationPrefix=/buckets/{synced.bucket}/ -fsync -apply\n"
        shell = [weed, "shell", f"-master=127.0.0.1:{master}.{master_grpc}", f"-filer=127.0.0.1:{filer}.{filer_grpc}"]
        done = subprocess.run(shell, input=configure, text=True, capture_output=True, timeout=60, cwd=directory)
        if not re.search(r'"fsync":\s*true', done.stdout):
            raise StoreFailed(f"SeaweedFS did not take fs.configure -fsync: {done.stdout[-600:]} {done.stderr[-300:]}")
        yield [store.checked(), synced.checked()]


@contextmanager
def juicefs(directory: Path) -> Iterator[list[Store]]:
    """MinIO's S3 front end as `juicefs gateway` carries it, over Badger metadata and a directory of blocks."""
    program = _program("juicefs")
    port, metrics = processes.free_ports(2)
    meta = f"badger://{directory / 'meta'}"  # the cheaper of its embedded engines: SQLite costs three times the CPU
    layout = ["--storage", "file", "--bucket", f"{directory / 'blocks'}/", "--trash-days", "0"]
    create = [program, "format", meta, "bench", *layout]
    subprocess.run(create, check=True, capture_output=True, timeout=60, cwd=directory)
    command = [program, "gateway", meta, f"127.0.0.1:{port}", "--multi-buckets", "--keep-etag", "--no-banner"]
    command += ["--no-usage-report", "--backup-meta", "0", "--metrics", f"127.0.0.1:{metrics}"]
    command += ["--cache-dir", str(directory / "cache"), "--log", str(directory / "gateway.log")]
    env = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "HOME": str(directory)}
    with _server(command, directory, [port], env) as (process, log):
        store = Store(
            name="juicefs",
            title="MinIO front end, `juicefs gateway`",
            durability="no sync before 200 (write-back is off, but neither block files nor Badger's log are synced)",
            port=port,
            process=process,
            log=log,
        )
        store.create_bucket(store.bucket)
        yield [store.checked()]


@contextmanager
def rclone(directory: Path) -> Iterator[list[Store]]:
    """`rclone serve s3` over a directory."""
    (port,) = processes.free_ports(1)
    (directory / "data").mkdir()
    command = [_program("rclone"), "serve", "s3", str(directory / "data"), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command += ["--config", str(directory / "rclone.conf"), "--cache-dir", str(directory / "cache")]
    with _server(command, directory, [port]) as (process, log):
        store = Store(
            name="rclone",
            title="`rclone serve s3`",
            durability="no sync before 200, and no switch for one",
            port=port,
            process=process,
            log=log,
            range_status=200,  # with the right bytes and Content-Range, so only the status is excused
        )
        store.create_bucket(store.bucket)
        yield [store.checked()]


STORES: dict[str, Callable[[Path], AbstractContextManager[list[Store]]]] = {
    "tigrislike": tigrislike,
    "seaweedfs": seaweedfs,
    "juicefs": juicefs,
    "rclone": rclone,
}
PEERS = tuple(name for name in STORES if name != "tigrislike")
