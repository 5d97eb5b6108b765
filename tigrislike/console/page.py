"""What a page of the console is: a row of a table, and a function that is given a `Visit`.

A view looks and acts through `Visit.call` only, which is `admin.api.perform`, so that whatever it changes is in the
audit log. It returns what its template is given (a dictionary, or `Shown`), where to go on (`Went`), or a response of
its own. Whatever it refuses it raises as an `AdminError`, which becomes a page of its status and message.

Who may see a page, the session, the CSRF token, the Origin, all headers, and what becomes of errors are `serving`'s.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from tigrislike.admin.api import ENDPOINTS, perform
from tigrislike.admin.desk import AdminError, Desk
from tigrislike.metadata.auditing import Actor

from .session import Session

PREFIX: Final = "/_tigrislike/console"

Context = Mapping[str, Any]
"""What a template is given."""


@dataclass(frozen=True)
class Went:
    """What was asked for is done: the browser goes on to `to` (an address as `url` gives it), where `notice` is shown
    once."""

    to: str
    notice: str = ""


@dataclass(frozen=True)
class Shown:
    """A page of another status than 200, or with headers of its own."""

    context: Context
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Visit:
    """A request for a page, by somebody who may see it.

    Attributes:
        params: what the page's path has in place of its ``{names}``, decoded.
        query, form: what was given and is not blank; of several of a name the last one. `form` is empty where the
            page reads its body by itself (`Page.own_body`), from `request`.
        session: None only on pages that need no key.
        actor: who acts, for the audit log.
    """

    desk: Desk
    page: Page
    request: Request
    params: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, str]
    session: Session | None
    actor: Actor

    async def call(self, name: str, **arguments: Any) -> Any:
        """The result of an endpoint of the admin API. Arguments that are None are left out, and text becomes what the
        endpoint wants.

        Raises:
            AdminError: it was refused.
            MetadataError, EngineError: it failed.
        """
        endpoint = ENDPOINTS[name]
        given = {key: value for key, value in arguments.items() if value is not None}
        return await perform(self.desk, endpoint, endpoint.arguments(given, strict=False), self.actor)

    def needed(self, name: str) -> str:
        """A field of the form, or of the query. Raises AdminError: InvalidArgument, where it was not given."""
        value = self.form.get(name) or self.query.get(name)
        if not value:
            raise AdminError("InvalidArgument", f"{name} was not given")
        return value


View = Callable[[Visit], Awaitable["Context | Shown | Went | Response"]]


@dataclass(frozen=True)
class Page:
    """A page, or something to do.

    Attributes:
        method: ``GET`` (a HEAD is answered too), or ``POST`` for what changes something.
        path: below `PREFIX`, with ``{names}`` for what varies between slashes.
        template: what shows what the view returns; a page with a ``live`` block is refreshed while it is looked at.
        nav: its name among the places to go to, where it is one; `group` is their heading.
        needs_key: whether it is for those who are signed in.
        own_body: whether the view reads the body itself; its CSRF token then comes in the header ``X-CSRF-Token``.
    """

    method: str
    path: str
    template: str
    view: View
    nav: str = ""
    needs_key: bool = True
    own_body: bool = False
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path))
        object.__setattr__(self, "pattern", re.compile(pattern, re.DOTALL))


def url(path: str, /, **query: Any) -> str:
    """The address of a path of the console: ``url("/queue/items", region="iad")``. What is None or empty is left out;
    a part that varies is put in with `segment`."""
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return PREFIX + path + ("?" + urlencode(given, quote_via=quote) if given else "")


def segment(text: str) -> str:
    """Text as a part of a path between slashes."""
    return quote(text, safe="")
