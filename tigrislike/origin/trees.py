"""Listing a tree of folders as S3 lists keys: in the order of UTF-8 bytes, by pages, with common prefixes.

Only the folders that a page needs are asked for: those before it are passed over by their names alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing

from .protocol import OriginPage, OriginSummary

# What lies in a folder, which is "" or ends in a slash: objects, and the folders in it in the same spelling.
Children = Callable[[str], Awaitable[tuple[Sequence[OriginSummary], Sequence[str]]]]


async def page(children: Children, prefix: str, after: str, delimiter: str, limit: int) -> OriginPage:
    """A page as `Origin.list` has it."""
    entries: list[OriginSummary] = []
    prefixes: list[str] = []
    # Nothing beneath this is of interest any more.
    passed = rolled_up(after, prefix, delimiter)
    top = prefix[: prefix.rfind("/") + 1]
    ahead = [await _in_order(children, top)]
    while ahead:
        name, entry = next(ahead[-1], ("", None))
        if not name:
            ahead.pop()
            continue
        if passed and name.startswith(passed):
            continue
        if entry is None:
            wanted = name.startswith(prefix) or prefix.startswith(name)
            # All of a folder comes before `after` if the folder does and `after` is not in it.
            if wanted and (name > after or after.startswith(name)):
                ahead.append(await _in_order(children, name))
            continue
        if name <= after or not name.startswith(prefix):
            continue
        if len(entries) + len(prefixes) == limit:
            return OriginPage(
                tuple(entries), tuple(prefixes), max([*prefixes[-1:], *(e.key for e in entries[-1:])], default=after)
            )
        if common := rolled_up(name, prefix, delimiter):
            prefixes.append(common)
            passed = common
        else:
            entries.append(entry)
    return OriginPage(tuple(entries), tuple(prefixes))


def rolled_up(key: str, prefix: str, delimiter: str) -> str:
    """The common prefix that a key is rolled up into in a listing of `prefix`; "" where it stands for itself."""
    if not delimiter or not key.startswith(prefix):
        return ""
    found = key.find(delimiter, len(prefix))
    return key[: found + len(delimiter)] if found >= 0 else ""


async def _in_order(children: Children, folder: str) -> Iterator[tuple[str, OriginSummary | None]]:
    entries, folders = await children(folder)
    named: list[tuple[str, OriginSummary | None]] = [(entry.key, entry) for entry in entries]
    named += [(folder, None) for folder in folders]
    return iter(sorted(named, key=lambda one: one[0]))


# What lies in a folder and beneath it after a key, in the order of keys.
From = Callable[[str, str], AsyncGenerator[OriginSummary, None]]


async def page_of(from_: From, prefix: str, after: str, delimiter: str, limit: int) -> OriginPage:
    """A page as `Origin.list` has it, of a store that lists keys in their order but knows folders only."""
    entries: list[OriginSummary] = []
    prefixes: list[str] = []
    top = prefix[: prefix.rfind("/") + 1]
    passed = rolled_up(after, prefix, delimiter)  # what begins with this is past
    begin = passed + LAST if passed else max(after, _before(prefix) if prefix != top else "")
    while True:
        async with aclosing(from_(top, begin)) as found:
            async for entry in found:
                key = entry.key
                if key > prefix and not key.startswith(prefix):
                    return OriginPage(tuple(entries), tuple(prefixes))
                # A store that knows a place by paths only may begin before it.
                if key <= after or not key.startswith(prefix) or (passed and key.startswith(passed)):
                    continue
                if len(entries) + len(prefixes) == limit:
                    return OriginPage(tuple(entries), tuple(prefixes), after)
                after = passed = rolled_up(key, prefix, delimiter)
                if passed:
                    prefixes.append(passed)
                    begin = passed + LAST
                    break
                entries.append(entry)
                after = key
            else:
                return OriginPage(tuple(entries), tuple(prefixes))


# The last character that there is: behind a prefix and this, nothing that begins with the prefix comes.
LAST = "\U0010ffff"


def _before(prefix: str) -> str:
    """A text right before everything that starts with `prefix`."""
    last = ord(prefix[-1])
    return prefix[:-1] + chr(last - 1) + LAST if last and not 0xD800 <= last - 1 < 0xE000 else prefix[:-1]
