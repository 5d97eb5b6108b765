"""Fixtures for every test: running nodes. Which engine is under test, and whether there is a cluster for the tests that
need one. And the rule that no test is skipped unless the project says so."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import clusters, leaks
from tests.nodes import RunningNode, running_node

SKIPS = pytest.StashKey[list[tuple[str, str]]]()

TOLD = "told"
"""The property of a test (`record_property`) whose values are printed at the end of the run."""

# An example that takes long, or is slow to be drawn, says only that the machine is busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--console-pictures", metavar="FOLDER", help="keep the pictures that docs/console.md shows there")


# -- FoundationDB ----------------------------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> str:
    reason = clusters.no_cluster()
    with_cluster = f"what needs it is skipped: {reason}" if reason else "its cluster answers"
    return f"metadata engine: {clusters.engine_under_test()}; FoundationDB: {with_cluster}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if clusters.engine_under_test() == "sqlite":
        return
    left_out = [item for item in items if item.get_closest_marker("sqlite") is not None]
    items[:] = [item for item in items if item.get_closest_marker("sqlite") is None]
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Skipped here, not by a mark on each item, so that the summary has one line for all of them.
    if item.get_closest_marker("fdb") is not None and clusters.cluster_file() is None:
        pytest.skip(clusters.SKIP_REASON)


# -- Nodes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def plain_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node over plain http, shared by all tests of the session: make buckets of your own in it."""
    with running_node(tmp_path_factory.mktemp("store") / "data") as node:
        yield node


@pytest.fixture(scope="session")
def store(plain_store: RunningNode) -> RunningNode:
    """The same, by the name that a directory may give parameters to: the node does not start anew with each of them."""
    return plain_store


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """PEM files of a certificate for this machine, its key, and the authority that signed it."""
    import trustme

    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost", "*.localhost")
    paths = directory / "cert.pem", directory / "key.pem", directory / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(paths[0])
    issued.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return paths


@pytest.fixture(scope="session")
def tls_store(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path, Path]) -> Iterator[RunningNode]:
    """A node over https; `ca_bundle` is the authority to trust."""
    cert, key, authority = certificate
    flags = (f"--tls-cert={cert}", f"--tls-key={key}")
    with running_node(tmp_path_factory.mktemp("store") / "data", *flags, ca_bundle=str(authority)) as node:
        yield node


@pytest.fixture(params=["http", "https"])
def either_store(request: pytest.FixtureRequest) -> RunningNode:
    """The test runs twice: over http and over https."""
    node: RunningNode = request.getfixturevalue("store" if request.param == "http" else "tls_store")
    return node


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test fails, what its fixtures' nodes wrote last is told too."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if not dataclasses.is_dataclass(value):
                continue
            for node in [value, *(getattr(value, each.name) for each in dataclasses.fields(value))]:
                if isinstance(node, RunningNode):
                    lines = node.log.read_text(errors="replace").splitlines()[-40:]
                    report.sections.append((f"Log of {name}, {node.endpoint}", "\n".join(lines)))
    return report


# -- Skips -----------------------------------------------------------------------------------------------------------
# With ALLOWED_SKIPS=FILE a run fails when a test is skipped that no line of the file allows. A line is a pattern over
# test ids, a space, and the reason: a skip that nobody decided on is a hole in the net. The pattern `@fdb` is every
# test that was skipped for want of a FoundationDB cluster.


def _allowed(path: Path) -> list[str]:
    patterns = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition(" ")
            if not reason.strip():
                raise pytest.UsageError(f"{path}: {pattern} has no reason")
            patterns.append(pattern)
    return patterns


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SKIPS] = []
    config.pluginmanager.register(leaks, "leaks")
    try:
        clusters.engine_under_test()
    except clusters.NoCluster as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        config.stash[SKIPS].append((report.nodeid, str(report.longrepr)))


class _CollectionSkips:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.config.stash[SKIPS].append((report.nodeid, str(report.longrepr)))


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_CollectionSkips(session.config))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if clusters.engine_under_test() == "fdb":
        clusters.clear()
    unexpected = _unexpected_skips(session.config)
    if unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == TOLD:
                terminalreporter.write_line(str(value))
    for test, reason in _unexpected_skips(config):
        terminalreporter.write_line(f"UNEXPECTED SKIP {test}: {reason}", red=True)


def _unexpected_skips(config: pytest.Config) -> list[tuple[str, str]]:
    path = os.environ.get("ALLOWED_SKIPS")
    if not path:
        return []
    patterns = _allowed(Path(path))
    return [
        (test, reason)
        for test, reason in config.stash[SKIPS]
        if not any(fnmatch.fnmatchcase(test, pattern) for pattern in patterns)
        and not ("@fdb" in patterns and clusters.SKIP_REASON in reason)
    ]
