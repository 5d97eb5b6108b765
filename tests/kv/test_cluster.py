"""The engine on a real cluster: what no stand-in can show. Collected everywhere, skipped where there is no cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tigrislike.metadata.kv import Engine

from .engines import (
    TEST_CLUSTER,
    UNDER_TEST,
    EngineUnderTest,
    NotATestCluster,
    clear_for_a_test,
    on_the_cluster,
)

pytestmark = pytest.mark.fdb


@pytest.fixture
def cluster(tmp_path: Any) -> EngineUnderTest:
    return EngineUnderTest("fdb", tmp_path)


def run(cluster: EngineUnderTest, body: Callable[[Engine], Awaitable[Any]]) -> Any:
    return cluster.run(body)


def test_the_suite_refuses_to_clear_what_is_not_a_tests(cluster: EngineUnderTest) -> None:
    async def somebodys(tr: Any) -> None:
        tr.clear(UNDER_TEST)
        tr.set(b"somebody's", b"data")

    async def body(kv: Engine) -> None:
        await kv.transact(somebodys)
        with pytest.raises(NotATestCluster, match="somebody's"):
            await on_the_cluster(clear_for_a_test)
        await kv.transact(lambda tr: _mark(tr))
        await on_the_cluster(clear_for_a_test)
        assert await kv.read(lambda tr: tr.get(b"somebody's")) is None

    run(cluster, body)


async def _mark(tr: Any) -> None:
    tr.set(TEST_CLUSTER, b"")
