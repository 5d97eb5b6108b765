"""The FoundationDB cluster that tests may use, if there is one, and places in it that are a test's own.

A cluster is found by the environment variable TIGRISLIKE_TEST_FDB alone, never by FoundationDB's own FDB_CLUSTER_FILE:
tests write and clear, and what a developer's shell points at may be in use. Every place is a fresh random prefix, so
that any number of tests live in one cluster, beside whatever else it holds.

With TIGRISLIKE_TEST_ENGINE=fdb the nodes of `tests/nodes.py` keep their metadata there, and so the tests that use nodes
run unchanged over FoundationDB. `python -m tests.clusters` says in one line whether the cluster answers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

CLUSTER_VARIABLE = "TIGRISLIKE_TEST_FDB"
ENGINE_VARIABLE = "TIGRISLIKE_TEST_ENGINE"

SKIP_REASON = f"no FoundationDB cluster answers: set {CLUSTER_VARIABLE} to the cluster file of one that tests may use"

PREFIX = "tigrislike-test/"
"""What all keys of tests that use `fresh_url` or `url_for` begin with."""

ANSWER_TIMEOUT_S = 4.0

_TIMED_OUT = 1031
_RUN = secrets.token_hex(6)


class NoCluster(Exception):
    """There is no cluster for tests; the message is one line that says why."""


def cluster_file() -> Path | None:
    """The cluster file of a cluster that answers, None where none was named or it does not answer."""
    return None if no_cluster() else Path(os.environ[CLUSTER_VARIABLE]).absolute()


@functools.cache
def no_cluster() -> str:
    """Why there is no cluster to test with, in one line; empty if there is one. Asked once per process."""
    named = os.environ.get(CLUSTER_VARIABLE)
    if not named:
        return f"{CLUSTER_VARIABLE} is not set"
    path = Path(named).absolute()
    if not path.is_file():
        return f"{CLUSTER_VARIABLE}={named}: there is no such file"
    try:
        native = _transaction(path)  # by name: the client gives up what a transaction waits for once it is collected
        native.get_read_version().wait()
    except Exception as error:  # the binding's errors have no base class of their own
        if getattr(error, "code", None) == _TIMED_OUT:
            return f"{CLUSTER_VARIABLE}={named}: the cluster does not answer within {ANSWER_TIMEOUT_S:.0f} s"
        return f"{CLUSTER_VARIABLE}={named}: {_one_line(error)}"
    return ""


def engine_under_test() -> str:
    """`sqlite`, or `fdb` where TIGRISLIKE_TEST_ENGINE says so.

    Raises:
        NoCluster: it says so and there is no cluster, or it says something else.
    """
    engine = os.environ.get(ENGINE_VARIABLE) or "sqlite"
    if engine not in ("sqlite", "fdb"):
        raise NoCluster(f"{ENGINE_VARIABLE}={engine}: expected sqlite or fdb")
    if engine == "fdb" and (reason := no_cluster()):
        raise NoCluster(f"{ENGINE_VARIABLE}=fdb needs a cluster: {reason}")
    return engine


@contextlib.contextmanager
def fresh_url() -> Iterator[str]:
    """A metadata URL of a place that is empty; it is cleared when the `with` block ends.

    Raises:
        NoCluster: none answers. Mark the test `fdb`, and it is skipped instead.
    """
    if reason := no_cluster():
        raise NoCluster(reason)
    prefix = f"{PREFIX}{_RUN}/{secrets.token_hex(6)}/"
    try:
        yield _url(prefix)
    finally:
        clear(prefix)


def url_for(data_dir: Path) -> str:
    """The metadata URL for a store in `data_dir`: the same one for as long as this process lives."""
    return _url(_prefix_for(data_dir))


def clear_for(data_dir: Path) -> None:
    """Clear what a store in `data_dir` has put into the cluster."""
    clear(_prefix_for(data_dir))


def _prefix_for(data_dir: Path) -> str:
    return f"{PREFIX}{_RUN}/{hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:16]}/"


def clear(prefix: str = f"{PREFIX}{_RUN}/") -> None:
    """Clear all that lies under `prefix`; by default everything that this process's tests have put there."""
    begin = prefix.encode()
    native = _transaction(Path(os.environ[CLUSTER_VARIABLE]))
    while True:
        native.clear_range(begin, begin[:-1] + bytes([begin[-1] + 1]))
        try:
            native.commit().wait()
            return
        except Exception as error:
            native.on_error(error).wait()  # raises it, unless the same may be tried again


def _url(prefix: str) -> str:
    path = Path(os.environ[CLUSTER_VARIABLE]).absolute()
    return f"fdb://{quote(str(path))}?prefix={quote(prefix)}"


def _transaction(path: Path) -> Any:
    from tigrislike.metadata.kv.fdb_client import load_binding

    native = load_binding().open(str(path)).create_transaction()
    native.options.set_timeout(int(ANSWER_TIMEOUT_S * 1000))
    return native


def _one_line(error: Exception) -> str:
    description = getattr(error, "description", None)
    text = description.decode() if isinstance(description, bytes) else str(error)
    return " ".join(text.split()) or type(error).__name__


def main() -> int:
    """Say whether the cluster answers; 0 if it does."""
    reason = no_cluster()
    print(f"FoundationDB: {reason}" if reason else f"FoundationDB: {os.environ[CLUSTER_VARIABLE]} answers")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
