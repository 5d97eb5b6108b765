"""Real nodes for tests: `tigrislike serve` as a process of its own, on a free port, over a directory of the test's.

Which engine keeps their metadata is `tests/clusters.py`'s to say: SQLite in that directory, or FoundationDB.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.clusters import clear_for, engine_under_test, url_for
from tests.leaks import SCAN

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0


@dataclass
class RunningNode:
    """A node that answers requests.

    Attributes:
        endpoint: its URL, on this machine.
        pid: of the supervisor, to which signals go.
        log: the file with everything it printed.
        ca_bundle: PEM file of the authority to trust, None for plain http.
        logs: every file that it writes messages and access records to.
    """

    endpoint: str
    region: str
    access_key_id: str
    secret_access_key: str
    pid: int
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    ca_bundle: str | None = None
    logs: tuple[Path, ...] = ()

    def client(self, **config: Any) -> Any:
        """An S3 client of it, with root's keys, that tries nothing twice unless `config` (botocore's) says so."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name="auto",
            verify=self.ca_bundle,
            config=Config(**{"retries": {"total_max_attempts": 1}, **config}),
        )

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def exports(self) -> dict[str, str]:
        """The environment variables that the node tells its user to export."""
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_DEFAULT_REGION": "auto",
            "AWS_REGION": "auto",
        }
        return variables | ({"AWS_CA_BUNDLE": self.ca_bundle} if self.ca_bundle else {})

    def stop(self) -> int:
        """SIGTERM and wait; the exit status. Killed, with its children, when it does not end."""
        if self.process.poll() is None:
            SCAN.look_at_metrics(self.endpoint)
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
            self._look_for_secrets()
            return status
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the node did not stop:\n{self.log.read_text()}") from None

    def kill(self) -> None:
        """kill -9 to every process of the node at once, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)
        self._look_for_secrets()

    def _look_for_secrets(self) -> None:
        for path in self.logs:
            SCAN.look_at_file(path)

    def children(self) -> dict[int, str]:
        """Process ids of the agent and the workers, as the kernel knows them, oldest first."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    found[int(pid)] = Path(f"/proc/{pid}/stat").read_text()
        return found


def engine_settings(data_dir: Path) -> dict[str, Any]:
    """What `Settings` must be given, beside `data_dir`, for the metadata of this store to be in the engine under test.

    Empty for SQLite. FoundationDB also needs a master key, which is made beside the data directory at first.
    """
    if engine_under_test() == "sqlite":
        return {}
    master_key = data_dir.with_name(data_dir.name + ".master.key")
    if not master_key.exists():
        master_key.parent.mkdir(parents=True, exist_ok=True)
        master_key.touch(mode=0o600)
        master_key.write_text(base64.b64encode(os.urandom(32)).decode())
    return {"metadata": url_for(data_dir), "master_key_file": master_key}


def remove_store(data_dir: Path) -> None:
    """Remove a store of which nothing runs, wherever its metadata are."""
    if engine_under_test() == "fdb":
        clear_for(data_dir)
    shutil.rmtree(data_dir, ignore_errors=True)


def start_node(
    data_dir: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    ca_bundle: str | None = None,
    command: list[str] | None = None,
    facts_to: Path | None = None,
) -> RunningNode:
    """Start a node and wait until it answers requests. The caller stops it.

    Args:
        flags: added to `serve`'s, which name the engine under test; a later flag wins over an earlier one.
        environment: added to this process's, less what it has of TIGRISLIKE_*.
        command: what to run in place of `python -m tigrislike serve`; takes the same flags.
        facts_to: where to keep what the node said when it was ready.

    Raises:
        AssertionError: it ended or hung; with what it printed.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir.with_name(data_dir.name + ".log")
    reader, writer = os.pipe()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TIGRISLIKE_", "AWS_"))}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(command or [sys.executable, "-m", "tigrislike", "serve"]),
                f"--data-dir={data_dir}",
                "--port=0",
                "--workers=2",
                *(f"--{name.replace('_', '-')}={value}" for name, value in engine_settings(data_dir).items()),
                f"--ready-fd={writer}",
                *flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
            env={**inherited, "PYTHONWARNINGS": "default", **(environment or {})},
        )
    os.close(writer)
    try:
        readable, _, _ = select.select([reader], [], [], START_TIMEOUT_S)
        line = os.read(reader, 65536) if readable else b""
    finally:
        os.close(reader)
    if not line:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)
        raise AssertionError(f"the node did not start:\n{log.read_text()}")
    facts = json.loads(line)
    SCAN.keep(facts["secret_access_key"], "secret key")
    _keep_secrets(data_dir, flags, environment or {})
    access_logs = [flag.partition("=")[2] for flag in flags if flag.startswith("--access-log=")]
    if facts_to is not None:
        facts_to.write_bytes(line)
    return RunningNode(
        endpoint=facts["endpoint"],
        region=facts["region"],
        access_key_id=facts["access_key_id"],
        secret_access_key=facts["secret_access_key"],
        pid=process.pid,
        data_dir=data_dir,
        log=log,
        process=process,
        ca_bundle=ca_bundle,
        logs=(log, *(Path(each) for each in access_logs if each not in ("-", "off"))),
    )


def _keep_secrets(data_dir: Path, flags: tuple[str, ...], environment: Mapping[str, str]) -> None:
    """Tell the scan which secrets a node was given, and which its store has."""
    given = dict(flag.lstrip("-").split("=", 1) for flag in flags if "=" in flag)
    given |= {name.removeprefix("TIGRISLIKE_").lower().replace("_", "-"): value for name, value in environment.items()}
    SCAN.keep(given.get("root-secret-key", ""), "secret key")
    SCAN.keep_master_key(given.get("master-key", ""))
    named = [Path(given["master-key-file"])] if "master-key-file" in given else []
    for path in (*named, data_dir / "master.key", data_dir.with_name(data_dir.name + ".master.key")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            SCAN.keep_master_key(path.read_text())


@contextlib.contextmanager
def running_node(data_dir: Path, *flags: str, **options: object) -> Iterator[RunningNode]:
    """A node for the length of a `with` block; however that ends, none of its processes is left."""
    node = start_node(data_dir, *flags, **options)  # type: ignore[arg-type]
    try:
        yield node
    finally:
        try:
            node.stop()
        finally:
            node.kill()
