"""A browser without scripts: cookies, links and forms over real sockets, which looks at everything it is sent.

Every answer has the headers that the console promises, and every page is well-formed HTML in which nothing runs or
looks different but by the console's own files.
"""

from __future__ import annotations

import dataclasses
import http.client
import ssl
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from tests.leaks import SCAN
from tigrislike.console.page import PREFIX

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
POLICY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

SANDBOX = "sandbox; default-src 'none'"
"""What is sent with bytes of objects, which are no pages."""


@dataclass
class Form:
    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)


class Html(HTMLParser):
    """What a page has in it. Raises AssertionError where it is not as pages of the console are."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.forms: list[Form] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.title = ""
        self.text = ""
        self.tags: list[str] = []
        self.csrf = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"
        assert len(self.ids) == len(set(self.ids)), "an id is there twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"an attribute is there twice: {tag} {attrs}"
        assert tag not in ("style", "iframe", "object", "embed", "base"), tag
        for name, value in given.items():
            assert not name.startswith("on"), f"{tag} {name}"
            assert name != "style", f"{tag} has a style of its own"
            if name in ("href", "src", "action", "formaction"):
                assert value.startswith((PREFIX + "/", "#")), f"{tag} {name}={value}"
        if tag == "script":
            assert "src" in given, "a script in the page"
        self.tags.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "body":
            self.csrf = given.get("data-csrf", "")
        if tag == "a" and given["href"].startswith(PREFIX):
            self.links.append(given["href"])
        if tag == "form":
            self.forms.append(Form(given.get("method", "get"), given["action"]))
        unticked = given.get("type") == "checkbox" and "checked" not in given
        if tag in ("input", "select") and "name" in given and "form" in self._open and not unticked:
            self.forms[-1].fields[given["name"]] = given.get("value", "")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}>"
        assert self._open[-1] == tag, f"</{tag}> within <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-2:] == ["head", "title"]:
            self.title += data
        elif self._open and self._open[-1] == "script":
            assert not data.strip(), "a script in the page"
        else:
            self.text += data


def check_page(text: str) -> Html:
    html = Html(text)
    assert html.title.endswith(" · tigrislike"), f"{html.title!r}: {text[:1500]}"
    assert len(html.title) > len(" · tigrislike")
    assert html.tags.count("h1") == 1, html.title
    assert html.tags.count("main") == 1
    for form in html.forms:
        if form.method == "post" and not form.action.endswith("/sign-in"):
            assert form.fields["csrf"] == html.csrf != ""
    return html


def check_bytes(answer: Answer) -> None:
    """Bytes of an object are a download, or an image that can hold no script; and sandboxed all the same."""
    for name, value in {**POLICY, "content-security-policy": SANDBOX, "cache-control": "no-store"}.items():
        assert answer.headers[name] == value, name
    if answer.status == 304:
        return
    kind = answer.headers["content-type"]
    if kind not in ("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"):
        assert kind == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment; ")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def html(self) -> Html:
        return check_page(self.text)

    @property
    def to(self) -> str:
        """Where it leads, below the console's prefix."""
        location = self.headers["location"]
        assert location.startswith(PREFIX), location
        return location.removeprefix(PREFIX)


@dataclass
class Browser:
    """Somebody with a browser, at an endpoint."""

    endpoint: str
    ca_bundle: str | None = None
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).netloc

    def another(self) -> Browser:
        """A copy, with the same cookies."""
        return dataclasses.replace(self, cookies=dict(self.cookies))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str | None) -> Answer:
        """An answer; headers that are None are not sent."""
        sent = {"Origin": self.endpoint, "Sec-Fetch-Site": "same-origin"} if method == "POST" else {}
        if body:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        for name, value in headers.items():
            sent.pop(name.replace("_", "-"), None)
            if value is not None:
                sent[name.replace("_", "-")] = value
        if self.endpoint.startswith("https"):
            trusted = ssl.create_default_context(cafile=self.ca_bundle)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(self.host, timeout=30, context=trusted)
        else:
            connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path if path.startswith(PREFIX) else PREFIX + path, body, sent)
            response = connection.getresponse()
            answer = Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
            for value in response.headers.get_all("set-cookie") or ():
                for name, morsel in SimpleCookie(value).items():
                    if morsel["max-age"] == "0":
                        self.cookies.pop(name, None)
                    else:
                        SCAN.keep(morsel.value, "session cookie")
                        self.cookies[name] = morsel.value
        finally:
            connection.close()
        SCAN.look(answer.body, f"the console's answer to {method} {path}", signatures=False)
        self.check(answer, method)
        return answer

    def check(self, answer: Answer, method: str) -> None:
        if answer.headers["content-security-policy"] == SANDBOX:
            check_bytes(answer)
            return
        for name, value in POLICY.items():
            assert answer.headers[name] == value, name
        assert answer.headers["x-amz-request-id"]
        if answer.headers.get("content-type", "").startswith("text/html"):
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            if method != "HEAD" and b"<html" in answer.body:
                check_page(answer.text)

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, fields: dict[str, str], **headers: str | None) -> Answer:
        return self.ask("POST", path, urlencode(fields).encode(), **headers)

    def sign_in(self, key_id: str, secret: str, after: str = "") -> Answer:
        return self.post("/sign-in", {"key_id": key_id, "secret": secret, "next": after})

    def follow(self, answer: Answer) -> Answer:
        assert answer.status == 303, answer.text
        return self.get(answer.to)

    def send(self, page: Answer, action: str, **changed: str) -> Answer:
        """Send the form of a page that goes to `action`, with some fields changed."""
        (form,) = [each for each in page.html.forms if urlsplit(each.action).path == PREFIX + action]
        assert form.method == "post"
        return self.post(action, {**form.fields, **changed})


def query_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(urljoin("http://x/", link)).query))
