"""`tigrislike cache`: what is on this node's disk, and what is to be."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tigrislike.cli.base import AS_JSON, CACHE, command, fail, group
from tigrislike.config import Settings

if TYPE_CHECKING:
    from tigrislike.admin.cache_commands import Command


cache = group("cache", "What is on this node's disk, and what is to be.")


PLACE = Annotated[
    str,
    typer.Argument(help="The live objects whose keys begin so: s3://BUCKET or s3://BUCKET/PREFIX.", metavar="S3_URL"),
]


def _cache(settings: Settings, command: Callable[[ModuleType], Command]) -> NoReturn:
    """Carry out a command of `cache_commands`, which is given to `command` once it is imported."""
    from tigrislike.admin import cache_commands

    try:
        status = cache_commands.run(settings, command(cache_commands))
    except (cache_commands.CacheError, ValueError) as error:
        fail(str(error))
    raise typer.Exit(status)


@command(cache, "stat", CACHE)
def cache_stat(settings: Settings, *, as_json: AS_JSON = False) -> None:
    """How full the cache is, what is pinned, and when every block was last verified."""
    _cache(settings, lambda commands: commands.stat(as_json))


@command(cache, "ls", CACHE)
def cache_ls(settings: Settings, place: PLACE, *, as_json: AS_JSON = False) -> None:
    """How much of each object is on this disk, durably (home) or as a copy that may be evicted (cache)."""
    _cache(settings, lambda commands: commands.ls(commands.Target.parse(place), as_json))


@command(cache, "warm", CACHE)
def cache_warm(settings: Settings, place: PLACE, *, as_json: AS_JSON = False) -> None:
    """Fetch objects and pin them, so that they are here when they are needed.

    What is here already is not fetched again, so an interrupted run is gone on with by running it again. Exits 1 where
    an object could not be fetched.
    """
    _cache(settings, lambda commands: commands.warm(commands.Target.parse(place), as_json))


@command(cache, "pin", CACHE)
def cache_pin(settings: Settings, place: PLACE, *, as_json: AS_JSON = False) -> None:
    """Keep objects in the cache, whatever else is read: what is here now, and what will be fetched."""
    _cache(settings, lambda commands: commands.pin(commands.Target.parse(place), as_json))


@command(cache, "unpin", CACHE)
def cache_unpin(settings: Settings, place: PLACE, *, as_json: AS_JSON = False) -> None:
    """Let objects be evicted again when their turn comes."""
    _cache(settings, lambda commands: commands.unpin(commands.Target.parse(place), as_json))


@command(cache, "evict", CACHE)
def cache_evict(settings: Settings, place: PLACE, *, as_json: AS_JSON = False) -> None:
    """Drop objects from the cache at once, but for pinned ones. What only this node holds stays, and what is being read
    is read to its end."""
    _cache(settings, lambda commands: commands.evict(commands.Target.parse(place), as_json))


@command(cache, "scrub", CACHE)
def cache_scrub(settings: Settings, *, as_json: AS_JSON = False) -> None:
    """Read and verify every block on this disk now, at most at --scrub-rate.

    Goes on with a pass that the node or an earlier run has begun. Exits 1 where a block is damaged for good.
    """
    _cache(settings, lambda commands: commands.scrub(as_json))
