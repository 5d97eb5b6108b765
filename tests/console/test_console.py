"""The console of a running node, over real sockets: who gets in, what they see, what they do, and what is refused."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.admin.scene import FLOOD, HERE, MODELS, STUCK, WHY
from tests.chaos import cut_off_node
from tests.nodes import RunningNode, running_node
from tigrislike.admin.api import PREFIX as API
from tigrislike.admin.client import RemoteApi
from tigrislike.console.page import PREFIX, segment
from tigrislike.console.views import PAGES

from .browser import POLICY, Browser, query_of
from .conftest import Scenery

REFUSED = "This key and secret do not open the console."


def call(node: RunningNode, name: str, **arguments: Any) -> Any:
    api = RemoteApi(node.endpoint, node.access_key_id, node.secret_access_key)
    try:
        return asyncio.run(api.call(name, **arguments))
    finally:
        api.close()


# --- signing in and out


def test_signing_in_and_out(scenery: Scenery, browser: Browser) -> None:
    answer = browser.get("/queue/zones?region=sjc")
    assert answer.status == 303
    assert answer.to == "/sign-in?next=" + quote("/queue/zones?region=sjc", safe="")
    form = browser.follow(answer)
    assert form.status == 200
    node = scenery.node
    answer = browser.send(form, "/sign-in", key_id=node.access_key_id, secret=node.secret_access_key)
    assert answer.to == "/queue/zones?region=sjc"
    (cookie,) = answer.headers["set-cookie"].split("; ", 1)[1:]
    assert set(cookie.split("; ")) == {"HttpOnly", "Max-Age=43199", f"Path={PREFIX}", "SameSite=strict"} or set(
        cookie.split("; ")
    ) == {"HttpOnly", "Max-Age=43200", f"Path={PREFIX}", "SameSite=strict"}
    page = browser.follow(answer)
    assert (page.status, page.html.title) == (200, "Zones of sjc · tigrislike")
    kept = browser.another()
    answer = browser.send(page, "/sign-out")
    assert "You are signed out." in browser.follow(answer).html.text
    assert browser.cookies == {}
    assert browser.get("/").status == 303
    assert kept.get("/").status == 200, "what a copy of the cookie opens is said in the docs"


def test_over_https_the_cookie_is_of_this_host_alone(tls_store: RunningNode) -> None:
    browser = Browser(tls_store.endpoint, tls_store.ca_bundle)
    answer = browser.sign_in(tls_store.access_key_id, tls_store.secret_access_key)
    name, *rest = answer.headers["set-cookie"].split("; ")
    assert name.startswith("__Host-tigrislike-console=")
    assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} < set(rest)
    page = browser.follow(answer)
    assert page.status == 200
    host = tls_store.endpoint.partition("://")[2]
    assert browser.post("/sign-out", {"csrf": page.html.csrf}, Origin=f"http://{host}").status == 403
    assert browser.send(page, "/sign-out").status == 303


def test_behind_a_proxy_that_ends_tls_the_cookie_is_for_https_alone(scenery: Scenery) -> None:
    browser = Browser(scenery.node.endpoint)
    host = scenery.node.endpoint.partition("://")[2]
    fields = {"key_id": scenery.node.access_key_id, "secret": scenery.node.secret_access_key}
    answer = browser.post("/sign-in", fields, Origin=f"https://{host}")
    assert answer.status == 303
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def test_whoever_has_no_admin_key_is_told_the_same(scenery: Scenery) -> None:
    node = scenery.node
    plain, scoped = call(node, "create_key"), call(node, "create_key", bucket=MODELS)
    revoked = call(node, "create_key", admin=True)
    call(node, "revoke_key", key_id=revoked.key_id)
    said = set()
    for key_id, secret in [
        ("tid_nobody", "s" * 40),
        ("", ""),
        (node.access_key_id, "s" * 40),
        (node.access_key_id, ""),
        (plain.key_id, plain.secret),
        (scoped.key_id, scoped.secret),
        (revoked.key_id, revoked.secret),
        ("k" * 5000, "s" * 5000),
        ("\u00e9\x00\ud7ff", "\u00e9" * 40),
    ]:
        browser = scenery.browser()
        answer = browser.sign_in(key_id, secret)
        assert answer.status in (403, 429)
        if answer.status == 403:
            assert not browser.cookies
            assert secret == "" or secret not in answer.text
            said.add(answer.text.replace(f'value="{key_id}"', "").replace(quote(key_id), "").partition("<form")[0])
    assert len(said) == 1
    assert REFUSED in said.pop()


def test_only_the_consoles_pages_are_gone_to_after_signing_in(scenery: Scenery) -> None:
    for after in (
        "//evil.example/",
        "https://evil.example/",
        "/../../bucket/page.html",
        "/queue/zones/..",
        "/queue/zones/%2e%2e",
        "/queue/zones/x\r\nSet-Cookie: a=b",
        "/nothing",
        "/sign-out",
        "\\\\evil.example",
    ):
        answer = scenery.browser().sign_in(scenery.node.access_key_id, scenery.node.secret_access_key, after)
        assert answer.to == "/", after
    answer = scenery.browser().sign_in(scenery.node.access_key_id, scenery.node.secret_access_key, "/queue?by=task")
    assert answer.to == "/queue?by=task"


@pytest.mark.parametrize("cookie", ["", "x", "A" * 100, "A" * 5000, "é", '"', "=;=", "%00"])
def test_what_is_no_session_opens_nothing(scenery: Scenery, browser: Browser, cookie: str) -> None:
    browser.cookies["tigrislike-console"] = quote(cookie) if not cookie.isascii() else cookie
    answer = browser.get("/")
    assert answer.status == 303
    assert answer.to.startswith("/sign-in")


def test_a_changed_session_opens_nothing(scenery: Scenery, operator: Browser) -> None:
    cookie = operator.cookies["tigrislike-console"]
    for at in range(0, len(cookie), 7):
        changed = operator.another()
        changed.cookies["tigrislike-console"] = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
        answer = changed.get("/")
        assert answer.to == "/sign-in?why=over"
        assert "Your session is over" in changed.follow(answer).html.text


def test_a_key_that_is_revoked_is_signed_out_at_once(scenery: Scenery) -> None:
    key = call(scenery.node, "create_key", admin=True)
    browser = scenery.browser()
    page = browser.follow(browser.sign_in(key.key_id, key.secret))
    assert key.key_id in page.html.text
    call(scenery.node, "revoke_key", key_id=key.key_id)
    for _ in range(4):  # of both workers
        assert browser.another().get("/").status == 303
        assert browser.another().get("/", X_Live="1").status == 401
        assert browser.another().send(page, "/sign-out").to == "/sign-in?why=over"


def test_the_session_opens_neither_the_admin_api_nor_s3(scenery: Scenery, operator: Browser) -> None:
    for path in (API + "overview", f"/{MODELS}", "/"):
        connection = http.client.HTTPConnection(operator.host, timeout=30)
        connection.request(
            "GET", path, headers={"Cookie": f"tigrislike-console={operator.cookies['tigrislike-console']}"}
        )
        assert connection.getresponse().status == 403, path
        connection.close()


# --- who may change something


def test_what_changes_something_has_to_come_from_a_page_of_the_session(scenery: Scenery, operator: Browser) -> None:
    page = operator.get("/")
    csrf = page.html.csrf
    ours = {"region": STUCK, "csrf": csrf}
    other = scenery.operator().get("/").html.csrf
    assert other != csrf
    before = [each.id for each in call(scenery.node, "audit", limit=1).entries]
    refused: list[tuple[dict[str, str], dict[str, str | None]]] = [
        ({"region": STUCK}, {}),
        (ours | {"csrf": ""}, {}),
        (ours | {"csrf": other}, {}),
        (ours | {"csrf": csrf[:-1]}, {}),
        (ours | {"csrf": "é"}, {}),
        (ours, {"Origin": None}),
        (ours, {"Origin": "null"}),
        (ours, {"Origin": "http://evil.example"}),
        (ours, {"Origin": f"http://{operator.host}.evil.example"}),
        (ours, {"Origin": f"ftp://{operator.host}"}),
        (ours, {"Origin": "http://["}),
        (ours, {"Sec_Fetch_Site": "cross-site"}),
        (ours, {"Sec_Fetch_Site": "same-site"}),
        (ours, {"Sec_Fetch_Site": "none"}),
    ]
    for fields, headers in refused:
        answer = operator.post("/queue/pause", fields, **headers)
        assert (answer.status, "Refused" in answer.text) == (403, True), (fields, headers)
    assert scenery.browser().post("/sign-in", {}, Origin="http://evil.example").status == 403
    assert call(scenery.node, "paused").destinations == []
    assert [each.id for each in call(scenery.node, "audit", limit=1).entries] == before
    # Behind a proxy that ends TLS the Origin is https, and browsers without Sec-Fetch-Site exist.
    https = {"Origin": f"https://{operator.host}", "Sec_Fetch_Site": None}
    assert operator.post("/theme", {"csrf": csrf}, **https).status == 303  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"a=b", "", 415),
        (b"a=%ff", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"a=b&" * 300, "application/x-www-form-urlencoded", 400),
        (b"a=" + b"b" * 70_000, "application/x-www-form-urlencoded", 413),
    ],
)
def test_a_form_that_makes_no_sense(scenery: Scenery, operator: Browser, body: bytes, kind: str, status: int) -> None:
    assert operator.ask("POST", "/queue/pause", body, Content_Type=kind).status == status


def test_pages_that_are_not_there(scenery: Scenery, browser: Browser, operator: Browser) -> None:
    for who in (browser, operator):
        answer = who.get("/nothing")
        assert (answer.status, "there is no such page" in answer.html.text) == (404, True)
        assert who.get("/line%0Aend").status == 404
        assert who.get("/static/../serving.py").status == 404
        assert who.get("/static/nothing.js").status == 404
        assert who.get("s").status == 404
    answer = operator.ask("DELETE", "/queue")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    assert operator.ask("POST", "/static/console.css").status == 405
    assert operator.get("/queue/items/00.00/explode").status == 404
    assert browser.ask("GET", PREFIX).to == "/"
    head = operator.ask("HEAD", "/")
    assert (head.status, head.body) == (200, b"")


def test_static_files_are_kept_by_browsers_for_as_long_as_they_are_the_same(scenery: Scenery, browser: Browser) -> None:
    page = browser.get("/sign-in").text
    for name, kind in (("console.css", "text/css"), ("console.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        address = page[page.index(f"{PREFIX}/static/{name}") :].partition('"')[0]
        answer = browser.get(address)
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert browser.get(address, If_None_Match=answer.headers["etag"]).status == 304
        assert browser.get(f"/static/{name}?v=older").headers["cache-control"] == "no-cache"


# --- looking


def test_every_page_that_is_linked_is_there(scenery: Scenery, operator: Browser) -> None:
    csrf = operator.get("/").html.csrf
    uploaded = operator.ask("POST", f"/buckets/{MODELS}/upload?key=a%2Fb&replace=1", b"bytes", X_CSRF_Token=csrf)
    assert uploaded.status == 201
    call(scenery.node, "create_key")
    seen, visited = {f"{PREFIX}/"}, Counter[str]()
    waiting = list(seen)
    while waiting:
        address = waiting.pop(0)
        path = address.partition("?")[0].removeprefix(PREFIX)
        page = next(each for each in PAGES if each.method == "GET" and each.pattern.fullmatch(path))
        visited[page.path] += 1
        if visited[page.path] > 6:
            continue
        answer = operator.get(address)
        assert answer.status == 200, address
        if not answer.headers["content-type"].startswith("text/html"):
            continue  # an object's bytes
        assert "Undefined" not in answer.text
        for link in answer.html.links:
            if link not in seen:
                seen.add(link)
                waiting.append(link)
    missing = {page.path for page in PAGES if page.method == "GET"} - set(visited)
    assert not missing, "no link leads there"


def test_the_oldest_item_that_is_stuck_is_two_clicks_away(scenery: Scenery, operator: Browser) -> None:
    overview = operator.get("/")
    assert "Due for 4 h" in overview.html.text
    zone = operator.get(next(link for link in overview.html.links if link.endswith(scenery.scene.stuck_zone)))
    assert zone.html.title == f"Zone {STUCK}/{MODELS} · tigrislike"
    item = operator.get(next(link for link in zone.html.links if "/queue/items/" in link))
    assert item.status == 200
    assert "due" in item.html.text


def test_a_dead_letter_is_found_read_retried_and_done(scenery: Scenery, operator: Browser) -> None:
    letters = operator.get("/queue/dead?region=" + HERE)
    item = operator.get(next(link for link in letters.html.links if scenery.scene.poisoned in link))
    assert WHY in item.html.text
    assert item.html.text.count("PeerUnavailable") == 4, "the latest error, and each of the runs"
    asked = operator.get(f"/queue/items/{scenery.scene.poisoned}/retry")
    assert "with all its attempts anew" in asked.html.text
    answer = operator.send(asked, f"/queue/items/{scenery.scene.poisoned}/retry")
    until_s = time.monotonic() + 30
    page = operator.follow(answer)
    assert "It is being retried." in page.html.text
    while page.status != 404 and time.monotonic() < until_s:
        page = operator.get(answer.to, X_Live=None)
    assert page.status == 404
    assert "It is gone" in page.html.text
    assert "It is being retried." not in page.html.text, "a notice is shown once"
    assert operator.get(answer.to, X_Live="1").status == 404


def test_a_page_that_is_looked_at_asks_for_what_changed(scenery: Scenery, operator: Browser) -> None:
    zone = f"/queue/zones/{scenery.scene.stuck_zone}"
    first = operator.get("/settings", X_Live="1")
    assert first.status == 404, "it does not change by itself"
    first = operator.get(zone, X_Live="1")
    assert first.status == 200
    assert "<html" not in first.text
    assert float(first.headers["x-again-after"]) >= 5
    etag = first.headers["etag"]
    answers = [operator.get("/queue/items?region=nowhere", X_Live="1") for _ in range(2)]
    assert answers[0].text == answers[1].text
    again = operator.get("/queue/items?region=nowhere", X_Live="1", If_None_Match=answers[0].headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == answers[0].headers["etag"] != etag


def test_a_filter_that_makes_no_sense_says_so(scenery: Scenery, operator: Browser) -> None:
    for path, said in (
        ("/queue/zones?region=nowhere", "there is no region 'nowhere'"),
        ("/queue/items?zone=no%2Fsuch", "there is no zone 'no/such'"),
        ("/queue/dead?bucket=nothing", "there is no bucket 'nothing'"),
        ("/queue/items?state=odd", "Invalid enum value 'odd'"),
    ):
        answer = operator.get(path)
        assert (answer.status, said in answer.html.text) == (200, True), path
    assert operator.get("/queue?by=colour").status == 400
    assert operator.get("/queue/zones?cursor=abc").status == 200
    assert operator.get("/audit?cursor=abc").status == 400


def test_lists_go_on_where_they_ended(scenery: Scenery, operator: Browser) -> None:
    path, found = "/queue/items?region=ams", set()
    while path:
        page = operator.get(path)
        links = page.html.links
        found |= {link for link in links if link.startswith(f"{PREFIX}/queue/items/")}
        path = next((link for link in links if "cursor" in query_of(link)), "")
    assert len(found) == scenery.scene.flood + 24


# --- acting


def entries(node: RunningNode, count: int) -> list[tuple[str, str, dict[str, Any], str]]:
    rows = call(node, "audit", limit=count).entries
    return [(row.who, row.action, json.loads(row.arguments), row.outcome) for row in rows]


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value not in (None, 1000)}


def test_everything_that_is_done_is_in_the_audit_log(scenery: Scenery) -> None:
    node = scenery.node
    key = call(node, "create_key", admin=True)
    operator = scenery.browser()
    operator.sign_in(key.key_id, key.secret)
    flooded = scenery.scene.flooded_zone
    page = operator.get(f"/queue/zones/{flooded}")
    item, other = [
        link.rpartition("/")[2] for link in page.html.links if link.startswith(f"{PREFIX}/queue/items/{flooded}")
    ][:2]
    done: list[tuple[str, str, dict[str, str], str, str]] = [
        (f"/queue/items/{item}/delay", "", {"seconds": "3600"}, "It is delayed by an hour.", "delay"),
        (f"/queue/items/{item}/retry", "", {}, "It is being retried.", "retry"),
        (f"/queue/items/{other}/drop", "", {}, "was dropped.", "drop"),
        ("/queue/pause", f"zone={flooded}", {}, f"Paused: zone ams/{FLOOD}.", "pause"),
        ("/queue/resume", f"zone=ams/{FLOOD}", {}, f"Resumed: zone ams/{FLOOD}.", "resume"),
        ("/queue/pause", "region=ams", {}, "Paused: region ams.", "pause"),
        ("/queue/resume", "region=ams", {}, "Resumed: region ams.", "resume"),
        ("/queue/pause", "task=replicate", {}, "Paused: task replicate.", "pause"),
        ("/queue/resume", "task=replicate", {}, "Resumed: task replicate.", "resume"),
        ("/queue/dead/retry", "region=ams", {}, "0 dead letters are being retried.", "retry_dead"),
    ]
    for path, query, changed, said, action in done:
        asked = operator.get(f"{path}?{query}" if query else path)
        assert asked.status == 200, path
        answer = operator.send(asked, path, **changed)
        landed = operator.follow(answer)
        assert said in landed.html.text, path
        assert landed.status == 200
        ((who, noted, arguments, outcome),) = entries(node, 1)
        assert (who, noted, outcome) == (key.key_id, action, "done")
        assert set(given(arguments)) <= {"item", "seconds", "zone", "region", "task"}
    assert entries(node, 10)[8][2] == {"item": item}
    shown = operator.get("/audit").html.text
    assert shown.count(key.key_id) >= len(done)
    paused = call(node, "paused")
    assert (paused.zones, paused.destinations, paused.tasks) == ([], [], [])


def test_what_is_paused_is_on_the_first_page(scenery: Scenery, operator: Browser) -> None:
    operator.send(operator.get(f"/queue/pause?zone={scenery.scene.flooded_zone}"), "/queue/pause")
    try:
        overview = operator.get("/")
        assert f"Zone ams/{FLOOD}" in overview.html.text
        resume = next(link for link in overview.html.links if "/queue/resume" in link)
        assert query_of(resume) == {"zone": f"ams/{FLOOD}"}
        zone = operator.follow(operator.send(operator.get(resume), "/queue/resume"))
        assert f"Resumed: zone ams/{FLOOD}." in zone.html.text
    finally:
        call(scenery.node, "resume", zone=scenery.scene.flooded_zone)


def test_what_cannot_be_done_says_why(scenery: Scenery, operator: Browser) -> None:
    csrf = operator.get("/").html.csrf
    back = f"http://{operator.host}{PREFIX}/queue/dead?region=iad"
    for path, fields, status, said in (
        ("/queue/items/00.00/retry", {}, 404, "there is no item 00.00"),
        ("/queue/items/00.00/delay", {}, 400, "seconds was not given"),
        ("/queue/items/00.00/delay", {"seconds": "many"}, 400, "Expected `float`"),
        ("/queue/items/00.00/explode", {}, 404, "there is no such page"),
        ("/queue/pause", {}, 400, "name one zone, region or task"),
        ("/queue/pause", {"task": "juggle"}, 404, "there is no task 'juggle'"),
        ("/queue/resume", {"region": "nowhere"}, 404, "there is no region 'nowhere'"),
        ("/queue/pause", {"zone": "no/such"}, 404, "there is no zone 'no/such'"),
        ("/queue/dead/retry", {"bucket": "nothing"}, 404, "there is no bucket 'nothing'"),
    ):
        answer = operator.post(path, {"csrf": csrf, **fields}, Referer=back)
        assert (answer.status, said in answer.html.text) == (status, True), (path, answer.html.text)
        assert f"{PREFIX}/queue/dead?region=iad" in answer.html.links
    elsewhere = operator.get("/nothing", Referer=f"http://evil.example{PREFIX}/queue")
    assert f"{PREFIX}/queue" not in [link for link in elsewhere.html.links if link.endswith("x")]


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


def test_nothing_that_others_wrote_becomes_part_of_a_page(scenery: Scenery, operator: Browser) -> None:
    """`Browser` fails where a script, a style, a handler or a foreign address is in a page."""
    node = scenery.node
    found = operator.get("/queue/items?" + f"error={quote(HOSTILE)}&bucket={quote(HOSTILE)}").html.text
    assert HOSTILE.partition('"')[0] in found
    operator.get("/queue/zones/" + segment(HOSTILE))
    gone = operator.get("/queue/items/" + segment(HOSTILE.replace("/", "")))
    assert "<script>alert(1)<script>" in gone.html.text
    assert operator.get("/settings?name=" + quote(HOSTILE)).status == 200
    assert operator.get("/queue/pause?task=" + quote(HOSTILE)).status == 200
    assert operator.post("/queue/pause", {"task": HOSTILE, "csrf": operator.get("/").html.csrf}).status == 404
    assert HOSTILE.partition('"')[0] in operator.get("/audit").html.text, "the arguments of what was refused"
    assert scenery.browser().get("/sign-in?next=" + quote(HOSTILE) + "&why=" + quote(HOSTILE)).status == 200
    answer = scenery.browser().sign_in(HOSTILE, "x", HOSTILE)
    assert answer.status in (403, 429)
    connection = http.client.HTTPConnection(operator.host, timeout=30)
    connection.request("GET", f"/{MODELS}/" + quote(HOSTILE))
    connection.getresponse().read()
    connection.close()
    slow = [operator.get("/slow") for _ in range(2)]
    assert all(node.secret_access_key not in each.text for each in slow)


def test_the_theme_is_kept(scenery: Scenery, operator: Browser) -> None:
    page = operator.get("/")
    assert "data-theme" not in page.text.partition(">")[2].partition(">")[0]
    landed = operator.follow(operator.send(page, "/theme", theme="dark"))
    assert '<html lang="en" data-theme="dark">' in landed.text
    landed = operator.follow(operator.send(landed, "/theme", theme="purple"))
    assert '<html lang="en">' in landed.text


# --- on a node of one worker, with a listener of its own, whose database can be cut off


@dataclass
class Apart:
    node: RunningNode
    own: Browser
    cut: Path


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp("apart")
    ready, cut = folder / "ready", folder / "cut"
    with running_node(
        folder / "data",
        "--admin-listen=127.0.0.1:0",
        "--workers=1",
        command=cut_off_node.COMMAND,
        environment={cut_off_node.VARIABLE: str(cut)},
        facts_to=ready,
    ) as node:
        yield Apart(node, Browser(json.loads(ready.read_text())["admin_endpoint"]), cut)


def test_with_a_listener_of_its_own_it_is_nowhere_else(apart: Apart) -> None:
    assert apart.own.sign_in(apart.node.access_key_id, apart.node.secret_access_key).status == 303
    assert apart.own.get("/").status == 200
    connection = http.client.HTTPConnection(apart.own.host, timeout=30)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert (response.status, response.headers["location"]) == (307, f"{PREFIX}/")
    connection.close()
    for path in ("/", "/sign-in", "/static/console.css"):
        connection = http.client.HTTPConnection(f"127.0.0.1:{apart.node.port}", timeout=30)
        connection.request("GET", PREFIX + path)
        response = connection.getresponse()
        assert response.status == 404, path
        assert "content-security-policy" not in {name.lower() for name in response.headers}
        connection.close()


def test_a_store_that_is_out_of_reach_is_a_page_too(apart: Apart) -> None:
    operator = apart.own.another()
    operator.sign_in(apart.node.access_key_id, apart.node.secret_access_key)
    assert operator.get("/").status == 200
    apart.cut.write_text("")
    answer = operator.get("/")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "The store is out of reach" in answer.html.text
    assert operator.sign_in(apart.node.access_key_id, apart.node.secret_access_key).status == 503
    assert operator.get("/static/console.css").status == 200
    apart.cut.unlink()
    page = operator.get("/")
    while page.status == 503:
        page = operator.get("/")
    assert page.status == 200, "whoever was signed in still is"


def test_attempts_are_bounded_for_each_client(apart: Apart) -> None:
    browser = apart.own.another()
    for _ in range(12):  # who knows the secret may come as often as they like
        assert browser.sign_in(apart.node.access_key_id, apart.node.secret_access_key).status == 303
    statuses = Counter(browser.sign_in(apart.node.access_key_id, "wrong-secret").status for _ in range(15))
    assert statuses[403] in (9, 10), "one may have been lost to the database"
    answer = browser.sign_in(apart.node.access_key_id, apart.node.secret_access_key)
    assert answer.status == 429, "or it would tell what the secret is"
    assert "Too many attempts" in answer.html.text
    assert 0 < int(answer.headers["retry-after"]) <= 30
    assert browser.get("/").status == 200, "whoever is signed in stays so"
    log = apart.node.log.read_text()
    assert "somebody at 127.0.0.1 failed to sign in" in log
    assert f"{apart.node.access_key_id} signed in from 127.0.0.1" in log
    assert "wrong-secret" not in log


# --- and in the log


def test_every_answer_is_told_apart_in_the_access_log(scenery: Scenery, operator: Browser) -> None:
    answer = operator.get("/nodes")
    refused = operator.post("/queue/pause", {"task": "replicate"})
    wanted = {answer.headers["x-amz-request-id"]: None, refused.headers["x-amz-request-id"]: "Refused"}
    until_s = time.monotonic() + 10
    found: dict[str, Any] = {}
    while len(found) < 2 and time.monotonic() < until_s:
        lines = [json.loads(line) for line in scenery.node.log.read_text().splitlines() if line.startswith("{")]
        found = {line["request_id"]: line for line in lines if line.get("request_id") in wanted}
    for request_id, error in wanted.items():
        assert found[request_id]["operation"] == "Console"
        assert found[request_id]["access_key"] == scenery.node.access_key_id
        assert found[request_id].get("error") == error
    assert set(POLICY) <= set(refused.headers)
