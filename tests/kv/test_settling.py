"""Why unknown commits are settled by keys of the engine's own, and not by a marker inside the record.

A marker is the obvious way: each writer puts an id of its own into the record that it writes, and one who does not
know what became of its commit looks whether the record bears its id. It fails in two ways. A delete leaves no record
to bear one. And a later writer may have replaced the record before the first one looks, which then believes that
nothing came of its commit, and does it again. Each story here happens to both: in `by_marker` it goes wrong, with the
engine it goes right. All run on a real cluster too, with the answer lost after the commit.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tigrislike.metadata.kv import Engine, Faults
from tigrislike.metadata.kv.errors import CommitUnknown, NotCommitted
from tigrislike.metadata.kv.retry import Attempt, Retries, Runner

from .engines import EngineUnderTest

KEY = b"key"

Meanwhile = Callable[[], Awaitable[Any]]
Story = Callable[[Engine, "Settles"], Awaitable[None]]
Settles = Callable[[Callable[..., Awaitable[Any]], Meanwhile], Awaitable[Any]]
"""Runs a transaction function, loses the answer of its first commit, lets something happen, and settles."""


@pytest.fixture(params=["memory", "fdb-adapter", pytest.param("fdb", marks=pytest.mark.fdb)])
def conflicting(request: pytest.FixtureRequest, tmp_path: Any) -> EngineUnderTest:
    """Engines whose commits can have an unknown outcome."""
    return EngineUnderTest(request.param, tmp_path)


def runner_of(kv: Any) -> Runner:
    return kv._writes if hasattr(kv, "_writes") else kv._runner  # type: ignore[no-any-return]


# Records are an id, a colon, and what they say.

ids = itertools.count(1)


def put(text: str, *, if_absent: bool = False) -> Callable[..., Awaitable[str]]:
    marker = b"%d" % next(ids)

    async def put(tr: Any) -> str:
        if if_absent and await tr.get(KEY) is not None:
            return "refused: there is one"
        tr.set(KEY, marker + b":" + text.encode())
        return "stored"

    put.marker = marker  # type: ignore[attr-defined]
    return put


def delete() -> Callable[..., Awaitable[str]]:
    async def delete(tr: Any) -> str:
        if await tr.get(KEY) is None:
            return "there was none"
        tr.clear(KEY)
        return "deleted"

    delete.marker = b"%d" % next(ids)  # type: ignore[attr-defined]
    return delete


def append(letter: str) -> Callable[..., Awaitable[str]]:
    marker = b"%d" % next(ids)

    async def append(tr: Any) -> str:
        _, _, text = (await tr.get(KEY) or b"0:").partition(b":")
        text += letter.encode()
        tr.set(KEY, marker + b":" + text)
        return text.decode()  # type: ignore[no-any-return]

    append.marker = marker  # type: ignore[attr-defined]
    return append


async def text_of(kv: Engine) -> str | None:
    raw = await kv.read(lambda tr: tr.get(KEY))
    return None if raw is None else raw.partition(b":")[2].decode()


def by_marker(kv: Engine, faults: Faults) -> Settles:
    """Settled as a layer above the engine would: is the record that I find the one that I wrote?"""

    async def settle(fn: Callable[..., Awaitable[Any]], meanwhile: Meanwhile) -> Any:
        result = await kv.transact(fn)  # takes effect, but nobody is told
        await meanwhile()
        raw = await kv.read(lambda tr: tr.get(KEY))
        if raw is not None and raw.partition(b":")[0] == fn.marker:  # type: ignore[attr-defined]
            return result
        return await kv.transact(fn)

    return settle


def by_engine(kv: Engine, faults: Faults) -> Settles:
    async def settle(fn: Callable[..., Awaitable[Any]], meanwhile: Meanwhile) -> Any:
        runner = runner_of(kv)
        was_committed = runner._was_committed

        async def after_a_while(done_key: bytes, unknown: CommitUnknown, retries: Retries) -> bool:
            runner._was_committed = was_committed  # type: ignore[method-assign]
            await meanwhile()
            return await was_committed(done_key, unknown, retries)

        runner._was_committed = after_a_while  # type: ignore[method-assign]
        faults.fail_commit(CommitUnknown("injected after the commit"), committed=True)
        return await kv.transact(fn)

    return settle


async def a_delete_and_a_later_put(kv: Engine, settle: Settles) -> None:
    await kv.transact(put("old"))
    assert await settle(delete(), lambda: kv.transact(put("new"))) == "deleted"
    assert await text_of(kv) == "new"  # acknowledged, after the delete took effect, and deleted by nobody


async def a_delete_that_nobody_disturbs(kv: Engine, settle: Settles) -> None:
    async def nothing() -> None: ...

    await kv.transact(put("old"))
    assert await settle(delete(), nothing) == "deleted"


async def a_create_that_is_overwritten(kv: Engine, settle: Settles) -> None:
    async def others() -> None:
        assert await text_of(kv) == "mine"  # others have seen it: it was created
        await kv.transact(put("theirs"))

    assert await settle(put("mine", if_absent=True), others) == "stored"
    assert await text_of(kv) == "theirs"


async def a_put_that_is_overwritten(kv: Engine, settle: Settles) -> None:
    seen = []

    async def others() -> None:
        seen.append(await text_of(kv))
        await kv.transact(put("theirs"))
        seen.append(await text_of(kv))

    assert await settle(put("mine"), others) == "stored"
    seen.append(await text_of(kv))
    assert seen == ["mine", "theirs", "theirs"]  # once replaced it does not come back


async def two_that_append(kv: Engine, settle: Settles) -> None:
    assert await settle(append("a"), lambda: kv.transact(append("b"))) == "a"
    assert await text_of(kv) == "ab"  # each took effect once


STORIES = [
    a_delete_and_a_later_put,
    a_delete_that_nobody_disturbs,
    a_create_that_is_overwritten,
    a_put_that_is_overwritten,
    two_that_append,
]


@pytest.mark.parametrize("story", STORIES)
def test_the_engines_own_keys_settle_it(conflicting: EngineUnderTest, story: Story) -> None:
    faults = Faults()
    conflicting.run(lambda kv: story(kv, by_engine(kv, faults)), faults=faults)


@pytest.mark.parametrize("story", STORIES)
def test_a_marker_in_the_record_gets_it_wrong(conflicting: EngineUnderTest, story: Story) -> None:
    faults = Faults()
    with pytest.raises(AssertionError):
        conflicting.run(lambda kv: story(kv, by_marker(kv, faults)), faults=faults)


def test_a_commit_that_arrives_after_it_was_given_up_is_refused(conflicting: EngineUnderTest) -> None:
    """The answer "unknown" came first, the commit itself later (1039 does not promise otherwise)."""

    async def body(kv: Engine) -> None:
        runner = runner_of(kv)
        begin, was_committed = runner._begin, runner._was_committed
        attempts: list[Attempt] = []

        def kept(kind: bytes, left_s: float | None) -> Attempt:
            attempts.append(begin(kind, left_s))
            return attempts[-1]

        async def then_it_arrives(done_key: bytes, unknown: CommitUnknown, retries: Retries) -> bool:
            first = attempts[0]
            outcome = await was_committed(done_key, unknown, retries)
            with pytest.raises(NotCommitted):
                await first.commit()
            return outcome

        faults.fail_commit(CommitUnknown("injected, still under way", 1039), committed=False)
        runner._begin = kept
        runner._was_committed = then_it_arrives  # type: ignore[method-assign]
        assert await kv.transact(append("a")) == "a"
        assert await text_of(kv) == "a"

    faults = Faults()
    conflicting.run(body, faults=faults)
