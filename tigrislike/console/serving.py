"""The console over HTTP: the one place that says who sees a page, and what every answer carries.

- A page needs a session (`session`), unless its row says otherwise; without one a browser is sent to sign in.
- What changes something is a POST whose Origin is this host's, that no other site began (``Sec-Fetch-Site``), and
  that has the session's CSRF token.
- Nothing but the console's own files is loaded or run by its pages, nothing may frame them, and no cache keeps them.
- Errors are pages; what nobody foresaw says no more than the request's id.

The session's cookie opens nothing but the console: the admin API and S3 want signatures.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from tigrislike.admin.desk import AdminError, Desk
from tigrislike.metadata.auditing import Actor
from tigrislike.metadata.kv import EngineError
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.request import new_request_id

from .page import PREFIX, Context, Page, Shown, Visit, Went, url
from .rendering import Templates, load_static
from .session import Attempts, Session, Sessions
from .views import PAGES

log = logging.getLogger("tigrislike.console")

OPERATION: Final = "Console"
"""What these requests are called in the access log."""

_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_MAX_FORM: Final = 64 * 1024
_MAX_FIELDS: Final = 200
_SIGN_IN: Final = "/sign-in"
_THEME: Final = "tigrislike-theme"
_THEMES: Final = ("light", "dark")
_YEAR_S: Final = 365 * 86400

LIVE_S: Final = 5.0
"""How often a page that is looked at is refreshed; less often where an answer takes long, so that it costs this process
at most one part in `_SHARE` of its time."""
_SHARE: Final = 100

# A page's forms have to name their Origin, which `no-referrer` would withhold (Fetch standard, "append a request Origin
# header"); no other site learns an address from `same-origin` either.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def to_console() -> Route:
    """Where nothing else is served: whoever comes without a path is shown the way."""

    async def lead(_: Request) -> Response:
        return RedirectResponse(url("/"), 307, HEADERS)

    return Route("/", lead)


def console_routes(desk: Desk) -> list[Route]:
    """The routes of the console, for `s3api.app.create_app` or an application of their own."""
    route = Route(PREFIX + "{rest:path}", Console(desk).answer, methods=_METHODS)
    route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)  # a path may have a line end in it
    return [route]


class Refused(AdminError):
    """Somebody else may be acting here: what was sent is not from a page of this session."""

    def __init__(self, message: str) -> None:
        super().__init__("Refused", message, 403)


class SignedOut(Exception):
    """The page needs a session. `over`: there was one."""

    def __init__(self, *, over: bool) -> None:
        super().__init__()
        self.over = over


@dataclass(frozen=True, kw_only=True)
class _SignedIn(Went):
    session: Session


@dataclass(frozen=True)
class _SignedOut(Went):
    pass


@dataclass(frozen=True, kw_only=True)
class _Themed(Went):
    theme: str


class Console:
    """Answers requests; one per process."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._sessions = Sessions(desk.metadata, desk.settings.console_session_s)
        self._attempts = Attempts()
        self._static = load_static()
        self._pages = [
            *PAGES,
            Page("GET", _SIGN_IN, "sign-in.html", self._ask_to_sign_in, needs_key=False),
            Page("POST", _SIGN_IN, "sign-in.html", self._sign_in, needs_key=False),
            Page("POST", "/sign-out", "", self._sign_out),
            Page("POST", "/theme", "", self._set_theme),
        ]
        self._nav = [(page.nav, page.path) for page in PAGES if page.nav]
        self._templates = Templates(self._static, nav=self._nav)

    async def answer(self, http: Request) -> Response:
        exchange = _Exchange(http)
        notes = http.scope.get("access", {})
        notes.update(operation=OPERATION, request_id=exchange.request_id)
        try:
            response = await self._response(exchange)
        except SignedOut as signed_out:
            response = self._to_sign_in(exchange, signed_out)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as exception:
            response = await self._error(exchange, exception)
            notes["error"] = response.headers["X-Console-Error"]
            del response.headers["X-Console-Error"]
        if exchange.session is not None:
            notes["access_key"] = exchange.session.key_id
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers["X-Amz-Request-Id"] = exchange.request_id
        return response

    # --- from a request to a response

    async def _response(self, exchange: _Exchange) -> Response:
        path = exchange.path
        if not path:
            return RedirectResponse(url("/"), 308)
        if path.startswith("/static/"):
            return self._file(exchange)
        exchange.session = await self._sessions.current(exchange.cookie) if exchange.cookie else None
        page, params = self._matched(exchange.method, path)
        if page.needs_key and exchange.session is None:
            raise SignedOut(over=bool(exchange.cookie))
        form = await self._checked_form(exchange, page) if page.method == "POST" else {}
        visit = Visit(
            desk=self._desk,
            page=page,
            request=exchange.http,
            params=params,
            query=exchange.query,
            form=form,
            session=exchange.session,
            actor=Actor(
                exchange.session.key_id if exchange.session is not None else "", exchange.client, exchange.request_id
            ),
        )
        began_s = time.monotonic()
        outcome = await page.view(visit)
        if isinstance(outcome, Response):
            return outcome
        if isinstance(outcome, Went):
            return self._went(exchange, outcome)
        shown = outcome if isinstance(outcome, Shown) else Shown(outcome)
        if exchange.live:
            return await self._live(exchange, page, shown, began_s)
        response = await self._page(exchange, page.template, shown.context, shown.status)
        response.headers.update(shown.headers)
        return response

    def _matched(self, method: str, path: str) -> tuple[Page, dict[str, str]]:
        """Raises AdminError: NotFound, MethodNotAllowed."""
        allowed = []
        for page in self._pages:
            if (match := page.pattern.fullmatch(path)) is not None:
                if page.method == method:
                    return page, match.groupdict()
                allowed.append(page.method)
        if allowed:
            raise AdminError("MethodNotAllowed", f"this page takes {','.join(sorted(allowed))}", 405)
        raise AdminError("NotFound", "there is no such page", 404)

    async def _checked_form(self, exchange: _Exchange, page: Page) -> dict[str, str]:
        """What was posted, by a page of ours. Raises Refused; AdminError: InvalidForm, TooLarge."""
        exchange.demand_same_origin()
        form = {} if page.own_body else await exchange.form()
        if exchange.session is not None and page.path != _SIGN_IN:
            token = exchange.http.headers.get("x-csrf-token") if page.own_body else form.pop("csrf", None)
            if token is None or not self._sessions.is_token(exchange.session, token):
                raise Refused("this form is not of your present session: load the page again")
        return form

    async def _page(
        self, exchange: _Exchange, template: str, context: Mapping[str, Any], status: int = 200
    ) -> Response:
        session = exchange.session
        notice = self._sessions.noticed(session, exchange.notice) if session is not None and exchange.notice else ""
        given = {**self._given(exchange), "notice": notice, **context}
        response = _html(await asyncio.to_thread(self._templates.page, template, given), status)
        if notice:
            exchange.set_cookie(response, exchange.notice_name, "", 0)
        return response

    async def _live(self, exchange: _Exchange, page: Page, shown: Shown, began_s: float) -> Response:
        """Only what changes of a page, or that nothing did; and when to ask again."""
        if shown.status != 200:
            return Response(status_code=shown.status)  # what was looked at is gone, which the whole page says
        given = {**self._given(exchange), "notice": "", **shown.context}
        body = await asyncio.to_thread(self._templates.live, page.template, given)
        if not (body and body.strip()):
            raise AdminError("NotLive", "this page does not change by itself, or what it showed is gone", 404)
        again_s = max(LIVE_S, _SHARE * (time.monotonic() - began_s))
        etag = f'"{hashlib.sha256(body.encode()).hexdigest()[:24]}"'
        headers = {"ETag": etag, "X-Again-After": f"{again_s:.1f}", "Cache-Control": "no-store"}
        if exchange.http.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        response = _html(body)
        response.headers.update(headers)
        return response

    def _given(self, exchange: _Exchange) -> dict[str, Any]:
        """What every page is given."""
        session, here = exchange.session, exchange.path
        return {
            "session": session,
            "place": max((to for _, to in self._nav if here == to or here.startswith(to + "/")), key=len, default=""),
            "csrf": self._sessions.token(session) if session is not None else "",
            "here": exchange.path,
            "address": exchange.address,
            "theme": exchange.theme,
            "now": self._desk.now_ns() / 1e9,
            "region": self._desk.settings.region,
        }

    def _went(self, exchange: _Exchange, went: Went) -> Response:
        response = RedirectResponse(went.to, 303)
        if isinstance(went, _SignedIn):
            exchange.session = went.session
            exchange.set_cookie(
                response, exchange.cookie_name, self._sessions.cookie(went.session), self._sessions.left_s(went.session)
            )
        elif isinstance(went, _SignedOut):
            exchange.set_cookie(response, exchange.cookie_name, "", 0)
        elif isinstance(went, _Themed):
            response.set_cookie(_THEME, went.theme, max_age=_YEAR_S, path=PREFIX, samesite="strict")
        elif went.notice and exchange.session is not None:
            exchange.set_cookie(
                response, exchange.notice_name, self._sessions.notice(exchange.session, went.notice), 60
            )
        return response

    # --- signing in and out

    async def _ask_to_sign_in(self, visit: Visit) -> Context:
        why = {"over": "Your session is over. Sign in again.", "signed-out": "You are signed out."}
        return {"next": visit.query.get("next", ""), "why": why.get(visit.query.get("why", ""), ""), "key_id": ""}

    async def _sign_in(self, visit: Visit) -> Shown | Went:
        after, key_id = visit.form.get("next", ""), visit.form.get("key_id", "").strip()
        wait_s = self._attempts.take(visit.actor.where, key_id)
        if wait_s > 0:
            why = f"Too many attempts have failed. Wait {math.ceil(wait_s)} seconds."
            headers = {"Retry-After": f"{math.ceil(wait_s)}"}
            return Shown({"next": after, "key_id": key_id, "why": why}, 429, headers)
        session = await self._sessions.sign_in(key_id, visit.form.get("secret", "").strip())
        if session is None:
            log.warning("somebody at %s failed to sign in", visit.actor.where)
            why = "This key and secret do not open the console."
            return Shown({"next": after, "key_id": key_id, "why": why}, 403)
        self._attempts.give_back(visit.actor.where, key_id)
        log.info("%s signed in from %s", session.key_id, visit.actor.where)
        return _SignedIn(self._after(after), session=session)

    async def _sign_out(self, visit: Visit) -> Went:
        return _SignedOut(url(_SIGN_IN, why="signed-out"))

    async def _set_theme(self, visit: Visit) -> Went:
        theme = visit.form.get("theme", "")
        return _Themed(self._after(visit.form.get("next", "")), theme=theme if theme in _THEMES else "")

    def _after(self, address: str) -> str:
        """Where to go on: a page of ours, and nothing else."""
        path = unquote(address.partition("?")[0])
        try:
            self._matched("GET", path)
        except AdminError:
            return url("/")
        return PREFIX + address if re.fullmatch(r"/[!-~]*", address) and ".." not in path else url("/")

    def _before(self, exchange: _Exchange) -> str:
        """The page of ours that a request came from, by what the browser says; empty where it is none."""
        base, found, address = exchange.http.headers.get("referer", "").partition(PREFIX)
        ours = found and base.partition("://")[2] == exchange.http.headers.get("host", "")
        return self._after(address) if ours else ""

    def _to_sign_in(self, exchange: _Exchange, signed_out: SignedOut) -> Response:
        if exchange.live:
            return Response(status_code=401)  # a script asks, and has the page loaded again
        # What was to be done is not done after signing in again: nobody would see it.
        after = exchange.address if exchange.method == "GET" and exchange.path != "/" else ""
        response = RedirectResponse(url(_SIGN_IN, next=after, why="over" if signed_out.over else ""), 303)
        if signed_out.over:
            exchange.set_cookie(response, exchange.cookie_name, "", 0)
        return response

    # --- files and errors

    def _file(self, exchange: _Exchange) -> Response:
        static = self._static.get(exchange.path.removeprefix("/static/"))
        if static is None:
            raise AdminError("NotFound", "there is no such file", 404)
        if exchange.method != "GET":
            raise AdminError("MethodNotAllowed", "this path takes GET", 405)
        fresh = exchange.query.get("v") == static.digest
        etag = f'"{static.digest}"'
        headers = {
            "ETag": etag,
            "Cache-Control": "public, max-age=31536000, immutable" if fresh else "no-cache",
        }
        if exchange.http.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(static.content, 200, headers, static.media_type)

    async def _error(self, exchange: _Exchange, exception: Exception) -> Response:
        """A page that says what was refused or failed; its code is in ``X-Console-Error``, for the access log."""
        headers = {}
        if isinstance(exception, AdminError):
            status, code, message = exception.status, exception.code, str(exception)
            if code == "MethodNotAllowed":
                headers["Allow"] = message.rpartition(" ")[2]
        else:
            error = S3Error.of(exception)
            status, code = error.status, error.code
            tells = isinstance(exception, EngineError) and exchange.session is not None
            message = str(exception) if tells else error.message
            if code == "InternalError":
                message = "Something went wrong here that nobody foresaw. The log says more."
                log.error(
                    "request %s %s %r failed",
                    exchange.request_id,
                    exchange.method,
                    exchange.path,
                    exc_info=exception,
                    extra={"request_id": exchange.request_id},
                )
        if status == 503:
            headers["Retry-After"] = "1"
        headers["X-Console-Error"] = code
        context = {
            "status": status,
            "code": code,
            "message": message,
            "request_id": exchange.request_id,
            "back": self._before(exchange),
        }
        response = await self._page(exchange, "error.html", context, status)
        response.headers.update(headers)
        return response


class _Exchange:
    """A request as the console reads it."""

    def __init__(self, http: Request) -> None:
        self.http = http
        self.request_id = new_request_id()
        self.method = "GET" if http.method == "HEAD" else http.method
        self.session: Session | None = None
        raw = str(http.path_params["rest"])
        self.path = raw if raw.startswith("/") or not raw else "/?"  # `consoles` is no page of the console
        self.query = dict(parse_qsl(http.scope["query_string"].decode("latin-1")))
        self.secure = http.scope["scheme"] == "https"
        # A `__Host-` cookie is one that no subdomain can set, and its path has to be `/`.
        self.cookie_name = "__Host-tigrislike-console" if self.secure else "tigrislike-console"
        self.notice_name = "__Host-tigrislike-notice" if self.secure else "tigrislike-notice"
        cookies = http.cookies
        client = http.scope.get("client")
        self.client = str(client[0]) if client else ""
        self.cookie = cookies.get(self.cookie_name, "")
        self.notice = cookies.get(self.notice_name, "")
        theme = cookies.get(_THEME, "")
        self.theme = theme if theme in _THEMES else ""
        self.live = http.headers.get("x-live") == "1" and self.method == "GET"

    @property
    def address(self) -> str:
        """Path and query of a page that was looked at."""
        query = self.http.scope["query_string"].decode("latin-1")
        return self.path + (f"?{query}" if query else "")

    def set_cookie(self, response: Response, name: str, value: str, lasts_s: int) -> None:
        response.set_cookie(
            name,
            value,
            max_age=lasts_s,
            path="/" if self.secure else PREFIX,
            # Where TLS ends at a proxy this is http, and the page that asks is not.
            secure=self.secure or self.http.headers.get("origin", "").startswith("https:"),
            httponly=True,
            samesite="strict",
        )

    def demand_same_origin(self) -> None:
        """Raises Refused: this was not sent by a page of ours."""
        site = self.http.headers.get("sec-fetch-site")
        if site not in (None, "same-origin"):
            raise Refused("this was sent by a page of another site")
        origin, host = self.http.headers.get("origin", ""), self.http.headers.get("host", "")
        try:
            parts = urlsplit(origin)
        except ValueError:
            parts = urlsplit("")
        # Where TLS ends at a proxy, a page's Origin is https and this is http.
        schemes = ("https",) if self.secure else ("http", "https")
        if not host or parts.netloc.lower() != host.lower() or parts.scheme not in schemes or parts.path:
            raise Refused("this was not sent by a page of this console: its Origin is another one, or missing")

    async def form(self) -> dict[str, str]:
        """The fields of a form that are not blank. Raises AdminError: InvalidForm, TooLarge."""
        kind = self.http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise AdminError("InvalidForm", "this takes a form", 415)
        body = bytearray()
        async for piece in self.http.stream():
            body += piece
            if len(body) > _MAX_FORM:
                raise AdminError("TooLarge", "the form is too large", 413)
        try:
            return dict(parse_qsl(body.decode(), errors="strict", max_num_fields=_MAX_FIELDS))
        except ValueError:
            raise AdminError("InvalidForm", "the form makes no sense") from None


def _html(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="text/html")
