"""The console in this process: what becomes of errors that nobody foresaw, and how pages render that a store in good
order never shows."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from tests.admin import scene
from tests.admin.scene import HERE, Scene
from tests.metadata.world import MASTER, open_world
from tigrislike.admin import queues
from tigrislike.admin.desk import Desk
from tigrislike.config import Settings
from tigrislike.console import rendering, serving
from tigrislike.console.page import Page, Visit
from tigrislike.console.serving import Console
from tigrislike.metadata.kv import EngineUnavailable

from .browser import check_page
from .inside import ask, signed_in, text_of

SETTINGS = Settings(region=HERE)


def play(folder: Path, story: Callable[[Console, str], Awaitable[None]], made: list[Scene] | None = None) -> None:
    """A story with a console over a store in memory, and the cookie of somebody who is signed in."""

    async def main() -> None:
        async with open_world("memory", folder) as metadata:
            if made is not None:
                made.append(await scene.build(metadata.engine, MASTER, 1, flood=30))
            await story(Console(Desk(metadata, SETTINGS)), await signed_in(metadata))

    asyncio.run(main())


def page_of(view: Callable[[Visit], Awaitable[Any]], **options: Any) -> Page:
    return Page("GET", "/made-for-the-test", "error.html", view, **options)


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Page], None]:
    """Adds a page to the console's."""

    def add(page: Page) -> None:
        monkeypatch.setattr(serving, "PAGES", [*serving.PAGES, page])

    return add


def test_what_nobody_foresaw_is_in_the_log_and_not_on_the_page(
    tmp_path: Path, shows: Callable[[Page], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(visit: Visit) -> Any:
        raise RuntimeError("a secret detail")

    shows(page_of(broken))

    async def story(console: Console, cookie: str) -> None:
        with caplog.at_level(logging.ERROR):
            response = await ask(console, "/made-for-the-test", cookie)
        assert response.status_code == 500
        html = check_page(text_of(response))
        assert "Something failed" in html.text
        assert "a secret detail" not in text_of(response)
        assert response.headers["x-amz-request-id"] in html.text
        assert "a secret detail" in caplog.text
        assert "x-console-error" not in response.headers

    play(tmp_path, story)


def test_a_view_that_shows_too_little_is_such_an_error(tmp_path: Path, shows: Callable[[Page], None]) -> None:
    async def empty(visit: Visit) -> Any:
        return {}

    shows(page_of(empty))

    async def story(console: Console, cookie: str) -> None:
        assert (await ask(console, "/made-for-the-test", cookie)).status_code == 500

    play(tmp_path, story)


def test_one_place_is_the_present_one(tmp_path: Path) -> None:
    async def story(console: Console, cookie: str) -> None:
        for path, marks in {"/": 1, "/queue": 1, "/queue/dead": 1, "/queue/items": 1, "/nodes": 1, "/no": 0}.items():
            text = text_of(await ask(console, path, cookie))
            places = text[text.index('<nav class="places"') :].partition("</nav>")[0]
            assert places.count("aria-current") == marks, path

    play(tmp_path, story)


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path, shows: Callable[[Page], None]) -> None:
    async def away(visit: Visit) -> Any:
        raise EngineUnavailable("nothing answers at 10.0.0.9")

    shows(page_of(away))

    async def story(console: Console, cookie: str) -> None:
        response = await ask(console, "/made-for-the-test", cookie)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "nothing answers at 10.0.0.9" in text_of(response)

    play(tmp_path, story)


def test_a_page_needs_a_session_unless_its_row_says_otherwise(tmp_path: Path, shows: Callable[[Page], None]) -> None:
    async def plain(visit: Visit) -> Any:
        return Response(f"for {visit.session}", media_type="text/plain")

    shows(page_of(plain))
    shows(Page("GET", "/for-everybody", "", plain, needs_key=False))

    async def story(console: Console, cookie: str) -> None:
        assert (await ask(console, "/made-for-the-test")).status_code == 303
        assert (await ask(console, "/made-for-the-test", cookie)).status_code == 200
        response = await ask(console, "/for-everybody")
        assert (response.status_code, text_of(response)) == (200, "for None")

    play(tmp_path, story)


def test_a_page_that_reads_its_own_body_wants_its_token_in_a_header(
    tmp_path: Path, shows: Callable[[Page], None]
) -> None:
    async def taken(visit: Visit) -> Any:
        assert visit.form == {}
        return Response(await visit.request.body())

    shows(Page("POST", "/take", "", taken, own_body=True))

    async def story(console: Console, cookie: str) -> None:
        csrf = check_page(text_of(await ask(console, "/", cookie))).csrf
        assert (await ask(console, "/take", cookie, "POST", f"csrf={csrf}".encode())).status_code == 403
        response = await ask(console, "/take", cookie, "POST", b"any bytes", x_csrf_token=csrf)
        assert (response.status_code, text_of(response)) == (200, "any bytes")

    play(tmp_path, story)


def test_whoever_goes_away_while_sending_a_form_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(console: Console, cookie: str) -> None:
        with caplog.at_level(logging.ERROR):
            assert (await ask(console, "/queue/pause", cookie, "POST", ClientDisconnect())).status_code == 400
        assert not caplog.records

    play(tmp_path, story)


def test_pages_of_a_store_where_nothing_is_wrong_and_nothing_there(tmp_path: Path) -> None:
    async def story(console: Console, cookie: str) -> None:
        for path in (
            "/",
            "/queue",
            "/queue?by=bucket",
            "/queue/zones",
            "/queue/items",
            "/queue/dead",
            "/nodes",
            "/audit",
        ):
            response = await ask(console, path, cookie)
            assert response.status_code == 200, path
            check_page(text_of(response))
        overview = check_page(text_of(await ask(console, "/", cookie)))
        assert "Everything that is due is being done." in overview.text
        assert (await ask(console, "/slow", cookie)).status_code == 404, "there is no node here"

    play(tmp_path, story)


def test_pages_of_items_in_every_state(tmp_path: Path) -> None:
    made: list[Scene] = []

    async def story(console: Console, cookie: str) -> None:
        for item in (made[0].poisoned, made[0].failing):
            for path in (f"/queue/items/{item}", *(f"/queue/items/{item}/{act}" for act in ("retry", "delay", "drop"))):
                response = await ask(console, path, cookie)
                assert response.status_code == 200, path
                check_page(text_of(response))
        for state in ("due", "delayed", "in_flight", "failing", "dead"):
            page = check_page(text_of(await ask(console, f"/queue/items?state={state}", cookie)))
            assert page.title == "Items · tigrislike"
        zone = text_of(await ask(console, f"/queue/zones/{made[0].stuck_zone}?state=dead", cookie))
        assert "There are none that are dead" in check_page(zone).text

    play(tmp_path, story, made)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, rendering.NONE),
        (0.0123, "12 ms"),
        (1.9, "1 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (4 * 3600 + 12 * 60 + 5, "4 h 12 min"),
        (2 * 86400, "2 d"),
        (90061, "1 d 1 h"),
    ],
)
def test_ages(seconds: float | None, shown: str) -> None:
    assert rendering.age(seconds) == shown


def test_how_numbers_and_moments_look() -> None:
    assert rendering.number(1234567) == "1,234,567"
    assert [rendering.size(each) for each in (None, 0, 1023, 1024, 3 * 2**60)] == [
        rendering.NONE,
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3072.0 PiB",
    ]
    assert [rendering.rate(each) for each in (None, 0, 0.123456, 99.96, 1234.5)] == [
        rendering.NONE,
        "0/s",
        "0.123/s",
        "100/s",
        "1,234/s",
    ]
    assert [rendering.share(1, 3), rendering.share(0, 0)] == ["33%", rendering.NONE]
    assert rendering.time(0) == '<time datetime="1970-01-01T00:00:00Z">1970-01-01 00:00:00 UTC</time>'
    assert [rendering.time(None), rendering.ago(None, 9)] == [rendering.NONE] * 2
    assert [rendering.ago(100, 160), rendering.ago(160, 100)] == ["1 min ago", "in 1 min"]


# --- whatever is asked

ODD = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "iad", "sjc/models", "replicate", "dead", "0", "-1", "00.00", "aa", "é", "\x00", "9" * 30]),
    st.binary(max_size=30).map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("=")),
    st.integers(-(2**70), 2**70).map(lambda number: queues.pack_cursor((number % 2**64, b""))),
    st.tuples(st.binary(max_size=40), st.binary(max_size=40)).map(queues.pack_cursor),
)
NAMES = ["region", "bucket", "task", "zone", "state", "error", "cursor", "sort", "by", "name", "next", "why", "seconds"]


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, str]:
    """A method, a path with a query, and a form, of a page of the console."""
    page = draw(st.sampled_from([each for each in serving.PAGES if not each.own_body]))
    path = re.sub(r"\{\w+\}", lambda _: draw(ODD).replace("/", "").replace("?", "") or "x", page.path)
    given = urlencode(draw(st.dictionaries(st.sampled_from(NAMES), ODD, max_size=4)))
    return (page.method, f"{path}?{given}", "") if page.method == "GET" else (page.method, path, given)


@settings(max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(requests(), max_size=50))
def test_whatever_is_asked_is_answered(caplog: pytest.LogCaptureFixture, asked: list[tuple[str, str, str]]) -> None:
    async def story(console: Console, cookie: str) -> None:
        csrf = check_page(text_of(await ask(console, "/", cookie))).csrf
        for method, path, form in asked:
            body = f"csrf={csrf}&{form}".encode() if method == "POST" else None
            response = await ask(console, path, cookie, method, body)
            assert response.status_code < 500 or response.status_code == 503, (method, path, form)
            if response.headers.get("content-type", "").startswith("text/html"):
                check_page(text_of(response))

    play(Path(), story, [])
