"""Stores that the origin tests share: make keys of your own in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.origin import servers
from tests.origin.servers import GoogleServer, S3Server


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    with servers.google(tmp_path_factory.mktemp("google")) as server:
        yield server
