"""Sessions: what opens one, what ends it, and how often somebody may try."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metadata.world import MASTER, NODE, open_kind, play
from tigrislike.console import page, session
from tigrislike.console.session import Attempts, Sessions
from tigrislike.metadata import MasterKey, Metadata
from tigrislike.metadata.kv import ManualClock

HOUR_NS = 3600 * 10**9


def test_a_session_ends_with_its_time(tmp_path: Path) -> None:
    clock = ManualClock()

    async def story(metadata: Metadata) -> None:
        sessions = Sessions(metadata, 3600.0)
        key = await metadata.create_access_key("root", admin=True)
        opened = await sessions.sign_in(key.key_id, key.secret)
        assert opened is not None
        cookie = sessions.cookie(opened)
        assert sessions.left_s(opened) == 3600
        clock.advance(HOUR_NS - 1)
        assert await sessions.current(cookie) == opened
        clock.advance(1)
        assert await sessions.current(cookie) is None
        assert sessions.left_s(opened) == 0

    play("memory", tmp_path, story, clock=clock)


def test_only_admin_keys_open_one(tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        sessions = Sessions(metadata, 3600.0)
        admin = await metadata.create_access_key("root", admin=True)
        plain = await metadata.create_access_key("root")
        root, _ = await metadata.ensure_root()
        assert await sessions.sign_in(plain.key_id, plain.secret) is None
        assert await sessions.sign_in(admin.key_id, plain.secret) is None
        assert await sessions.sign_in("tid_nobody", "") is None
        assert await sessions.sign_in(root.key_id, root.secret) is not None

    play("memory", tmp_path, story)


def test_another_secret_of_the_same_key_ends_it(tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        sessions = Sessions(metadata, 3600.0)
        root, _ = await metadata.ensure_root("tid_operator", "first-secret")
        opened = await sessions.sign_in(root.key_id, root.secret)
        assert opened is not None
        assert await sessions.current(sessions.cookie(opened)) == opened
        await metadata.ensure_root("tid_operator", "second-secret")
        assert await sessions.current(sessions.cookie(opened)) is None

    play("memory", tmp_path, story)


def test_every_process_with_the_master_key_accepts_it_and_no_other(tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        key = await metadata.create_access_key("root", admin=True)
        ours = Sessions(metadata, 3600.0)
        opened = await ours.sign_in(key.key_id, key.secret)
        assert opened is not None
        assert await Sessions(metadata, 60.0).current(ours.cookie(opened)) == opened
        async with open_kind("memory", tmp_path) as engine:
            elsewhere = await Metadata.open(engine, master_key=MasterKey(bytes(32)), node_id=NODE, region="there")
            await elsewhere.ensure_root(key.key_id, key.secret)
            theirs = Sessions(elsewhere, 3600.0)
            assert await theirs.current(ours.cookie(opened)) is None
            assert theirs.token(opened) != ours.token(opened)
        assert key.secret not in ours.cookie(opened)
        assert MASTER.derive("console sessions") != MASTER.derive("console tokens")

    play("memory", tmp_path, story)


def test_a_token_and_a_notice_belong_to_one_session(tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        sessions = Sessions(metadata, 3600.0)
        key = await metadata.create_access_key("root", admin=True)
        one, other = [await sessions.sign_in(key.key_id, key.secret) for _ in range(2)]
        assert one is not None
        assert other is not None
        assert sessions.is_token(one, sessions.token(one))
        assert not sessions.is_token(one, sessions.token(other))
        notice = sessions.notice(one, "done " * 1000)
        assert sessions.noticed(one, notice) == ("done " * 1000)[:1000]
        assert sessions.noticed(other, notice) == ""
        assert sessions.noticed(one, sessions.cookie(one)) == "", "a session is no notice"
        assert await sessions.current(notice) is None, "nor the other way round"

    play("memory", tmp_path, story)


def _with_sessions(folder: Path, story: Callable[[Sessions, str], Awaitable[None]]) -> None:
    async def prepared(metadata: Metadata) -> None:
        sessions = Sessions(metadata, 3600.0)
        key = await metadata.create_access_key("root", admin=True)
        opened = await sessions.sign_in(key.key_id, key.secret)
        assert opened is not None
        await story(sessions, sessions.cookie(opened))

    play("memory", folder, prepared)


def test_a_cookie_with_one_character_changed_opens_nothing(tmp_path: Path) -> None:
    async def story(sessions: Sessions, cookie: str) -> None:
        assert await sessions.current(cookie) is not None
        for at, character in enumerate(cookie[:-1]):  # of the last one, some bits are none of the message
            changed = cookie[:at] + ("A" if character != "A" else "B") + cookie[at + 1 :]
            assert await sessions.current(changed) is None, at
        for length in range(len(cookie)):
            assert await sessions.current(cookie[:length]) is None

    _with_sessions(tmp_path, story)


@settings(max_examples=10)
@given(st.lists(st.text() | st.text("AZaz09-_"), max_size=100))
def test_whatever_is_sent_as_a_cookie_opens_nothing_and_breaks_nothing(texts: list[str]) -> None:
    async def story(sessions: Sessions, cookie: str) -> None:
        for text in texts:
            assert await sessions.current(text) is None

    _with_sessions(Path(), story)


# --- attempts


class Time:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_so_many_attempts_may_fail_and_then_one_every_so_often() -> None:
    time = Time()
    attempts = Attempts(most=3, every_s=10.0, clock_s=time)
    assert [attempts.take("a", "key") for _ in range(4)] == [0, 0, 0, 10.0]
    assert attempts.take("b", "key") == 0, "another client"
    assert attempts.take("a", "other key") == 0, "somebody else behind the same proxy"
    time.now_s += 9
    assert attempts.take("a", "key") == 1.0
    time.now_s += 1
    assert [attempts.take("a", "key") for _ in range(2)] == [0, 10.0]
    time.now_s += 1000
    assert [attempts.take("a", "key") for _ in range(4)] == [0, 0, 0, 10.0], "no more than that are saved up"


def test_an_attempt_that_succeeds_does_not_count() -> None:
    attempts = Attempts(most=2, every_s=10.0, clock_s=Time())
    for _ in range(20):
        assert attempts.take("a", "key") == 0
        attempts.give_back("a", "key")
    attempts.give_back("never seen", "key")


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=200))
def test_in_no_stretch_of_time_more_attempts_fail_than_are_allowed(steps: list[tuple[float, bool]]) -> None:
    time = Time()
    attempts = Attempts(most=5, every_s=10.0, clock_s=time)
    failed: list[float] = []
    for rest_s, succeeds in steps:
        time.now_s += rest_s
        if attempts.take("a", "key") > 0:
            continue
        if succeeds:
            attempts.give_back("a", "key")
        else:
            failed.append(time.now_s)
    for first, began_s in enumerate(failed):
        for count, at_s in enumerate(failed[first:], 1):
            assert count <= 5 + (at_s - began_s) / 10 + 1e-6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("", "", True),
        ("unix", "10.0.0.1", False),
    ],
)
def test_who_has_one_address_of_a_network_has_them_all(one: str, other: str, same: bool) -> None:
    attempts = Attempts(most=1, every_s=10.0, clock_s=Time())
    attempts.take(one, "key")
    assert (attempts.take(other, "key") > 0) == same


def test_no_more_clients_are_remembered_than_there_is_room_for() -> None:
    attempts = Attempts(most=1, every_s=10.0, clients=3, clock_s=Time())
    for client in "abcd":
        attempts.take(client, "key")
    assert attempts.take("a", "key") == 0, "the oldest is forgotten"
    assert attempts.take("d", "key") > 0


def test_secrets_are_compared_in_constant_time() -> None:
    """Nothing in the module compares a secret, a digest or a token by `==`."""
    for module in (session, page):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                text = ast.unparse(node)
                assert not any(word in text for word in ("secret", "check", "token", "digest")), text
