"""`tigrislike keys`: access keys."""

from __future__ import annotations

from typing import Annotated

import typer

from tigrislike.cli.base import AS_JSON, DATABASE, ENDPOINT, command, group, stores
from tigrislike.config import Settings

keys = group("keys", "Access keys.")


_KEY = Annotated[str, typer.Argument(help="An access key's id.", metavar="KEY")]


@command(keys, "ls", DATABASE)
def keys_ls(settings: Settings, *, endpoint: ENDPOINT = None, as_json: AS_JSON = False) -> None:
    """Every access key, without its secret."""
    stores(settings, endpoint, lambda commands: commands.keys(as_json))


@command(keys, "create", DATABASE)
def keys_create(
    settings: Settings,
    *,
    bucket: Annotated[str, typer.Option(help="Only this bucket.", metavar="NAME", show_default=False)] = "",
    admin_key: Annotated[
        bool, typer.Option("--admin", help="May also look after the store itself: the admin API.")
    ] = False,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Make an access key for all buckets, or for one. The secret is shown only this once."""
    stores(settings, endpoint, lambda commands: commands.create_key(bucket, admin_key, as_json))


@command(keys, "rotate", DATABASE)
def keys_rotate(
    settings: Settings,
    key: _KEY,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the old key; revoke it later.")] = False,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Replace an access key by a new pair that may do the same. The secret is shown only this once."""
    stores(settings, endpoint, lambda commands: commands.rotate_key(key, keep, as_json))


@command(keys, "revoke", DATABASE)
def keys_revoke(settings: Settings, key: _KEY, *, endpoint: ENDPOINT = None, as_json: AS_JSON = False) -> None:
    """Delete an access key."""
    stores(settings, endpoint, lambda commands: commands.revoke_key(key, as_json))
