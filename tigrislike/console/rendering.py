"""Templates, and how numbers, times and sizes look in them.

Everything is escaped, and a name that a template is not given is an error. Static files are read once, and their
addresses have a digest of their content, so that browsers may keep them for ever.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tigrislike.admin.wording import duration

from .page import segment, url
from .preview import visible

_TYPES: Final = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


NONE: Final = "\N{EN DASH}"
"""Where there is nothing to show."""


@dataclass(frozen=True)
class Static:
    """A file that pages refer to."""

    name: str
    content: bytes
    media_type: str
    digest: str


def load_static() -> dict[str, Static]:
    """The static files by their names."""
    found = {}
    for file in files(__package__).joinpath("static").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = Static(file.name, content, media_type, hashlib.sha256(content).hexdigest()[:16])
    return found


class Templates:
    """The console's templates."""

    def __init__(self, static: Mapping[str, Static], **given: Any) -> None:
        """`given`: what every template knows."""
        self._given = {"static": lambda name: url(f"/static/{name}", v=static[name].digest), **given}

    @functools.cached_property
    def _environment(self) -> Environment:
        """Made when the first page is: a process that shows none starts without."""
        environment = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.filters.update(
            age=age,
            ago=ago,
            number=number,
            rate=rate,
            segment=segment,
            size=size,
            time=time,
            share=share,
            visible=visible,
        )
        environment.globals.update(self._given, url=url)
        # Not imported by each template, for a block that is rendered alone knows nothing of imports.
        environment.globals["parts"] = environment.get_template("parts.html").module
        environment.globals["plots_of"] = environment.get_template("plots.html").module
        return environment

    @property
    def names(self) -> list[str]:
        return sorted(name for name in self._environment.list_templates() if name.endswith(".html"))

    def page(self, name: str, context: Mapping[str, Any]) -> str:
        return self._environment.get_template(name).render(context)

    def live(self, name: str, context: Mapping[str, Any]) -> str | None:
        """The block of a page that is refreshed while it is looked at; None where it has none."""
        template = self._environment.get_template(name)
        block = template.blocks.get("live")
        return None if block is None else "".join(block(template.new_context(dict(context))))


# --- how things look


def number(value: int | float) -> str:
    """1234567 as ``1,234,567``."""
    return f"{value:,}"


def rate(value: float | None) -> str:
    """Items a second; a dash where it is not known."""
    if value is None:
        return NONE
    return f"{value:,.0f}/s" if value >= 100 or value == 0 else f"{value:.3g}/s"


def share(part: float, whole: float) -> str:
    """``42%``; a dash of nothing."""
    return f"{100 * part / whole:.0f}%" if whole else NONE


def size(value: int | float | None) -> str:
    """Bytes: ``3.2 GiB``; a dash where it is not known."""
    if value is None:
        return NONE
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024 or unit == "PiB":
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def age(seconds: float | None) -> str:
    """How long; a dash where there is nothing."""
    return NONE if seconds is None else duration(seconds)


def time(at_s: float | None) -> Markup | str:
    """A moment (Unix seconds) as a ``<time>``, in UTC; a dash where there is none."""
    if at_s is None:
        return NONE
    at = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    shown = at.strftime("%Y-%m-%d %H:%M:%S")
    return Markup('<time datetime="{}">{} UTC</time>').format(at.strftime("%Y-%m-%dT%H:%M:%SZ"), escape(shown))


def ago(at_s: float | None, now_s: float) -> str:
    """How long ago a moment was, or in how long it will be."""
    if at_s is None:
        return NONE
    return f"{age(now_s - at_s)} ago" if at_s <= now_s else f"in {age(at_s - now_s)}"
