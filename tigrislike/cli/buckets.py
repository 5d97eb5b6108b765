"""`tigrislike storage` and `tigrislike buckets`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigrislike.cli.base import ADDRESS, AS_JSON, DATABASE, ENDPOINT, STORE, ca_bundle, command, fail, group, stores
from tigrislike.config import Settings

if TYPE_CHECKING:
    from tigrislike.storage import Storage


storage = group("storage", "Buckets with a key pair of their own.")
buckets = group("buckets", "How a bucket's objects are kept and read.")


_READ_MODE_HELP = (
    "`strong`: reads see every write that is over; `bounded=10s`: reads may be that old, and go on while the "
    "database is out of reach."
)
_REGIONS_HELP = (
    "Where its objects are kept: a region, several (`iad,sjc`: a write is acknowledged once two of them have it), a "
    "geography (`usa`, `eur`), or `global`: where they are written and where they are read."
)
_DURABILITY_HELP = (
    "Where an object is before a write is acknowledged: `local`, on one node, or `homes=N`, on N of them; "
    "`origin back` sets those that an origin takes part in."
)


@command(storage, "create", STORE + ADDRESS)
def storage_create(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Name of the bucket to make.", metavar="NAME")],
    *,
    public: Annotated[bool, typer.Option("--public", help="Anyone may read its objects, without a key.")] = False,
    read_mode: Annotated[str, typer.Option(help=_READ_MODE_HELP, metavar="MODE")] = "strong",
    regions: Annotated[str, typer.Option(help=_REGIONS_HELP, metavar="REGIONS")] = "global",
    durability: Annotated[str, typer.Option(help=_DURABILITY_HELP, metavar="DURABILITY")] = "local",
    env_file: Annotated[
        Path | None,
        typer.Option(help="Write the variables to this new file, readable by you only, not to the screen."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object in place of NAME=VALUE lines.")
    ] = False,
    shadow_name: Annotated[
        str, typer.Option(help="Look through to this bucket of another service; see `origin set`.", metavar="BUCKET")
    ] = "",
    shadow_endpoint: Annotated[str, typer.Option(help="URL of that service.", metavar="URL")] = "",
    shadow_region: Annotated[str, typer.Option(help="Its region.", metavar="REGION")] = "",
    shadow_access_key: Annotated[
        str, typer.Option(help="A key that may read it.", metavar="KEY", envvar="SHADOW_ACCESS_KEY")
    ] = "",
    shadow_secret_key: Annotated[
        str,
        typer.Option(
            help="Its secret, which others on this machine may see in a command line: better in the environment.",
            metavar="SECRET",
            envvar="SHADOW_SECRET_KEY",
        ),
    ] = "",
    shadow_write_through: Annotated[
        bool,
        typer.Option("--shadow-write-through", help="Write and delete there too what is written and deleted here."),
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Ask the server at this URL, with root's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
            "TIGRISLIKE_ROOT_ACCESS_KEY and TIGRISLIKE_ROOT_SECRET_KEY); else use the local store.",
            metavar="URL",
        ),
    ] = None,
) -> None:
    """Make a bucket and a key pair that may use this bucket and nothing else.

    Prints BUCKET_NAME, AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, which every AWS
    SDK and tool understands. The secret is shown only this once.
    """
    from tigrislike.storage import Shadow, StorageError, create_local, create_remote, new_private_file

    shadow: Shadow | None = None
    if shadow_name:
        shadow = Shadow(
            shadow_name, shadow_endpoint, shadow_region, shadow_access_key, shadow_secret_key, shadow_write_through
        )
    elif shadow_endpoint or shadow_region or shadow_write_through:
        fail("--shadow-name is missing: which bucket is it to look through to?")

    def create() -> Storage:
        policies = {"regions": regions, "durability": durability, "read_mode": read_mode}
        if endpoint is None:
            return create_local(settings, name, public=public, shadow=shadow, **policies)
        keys = _root_keys(settings)
        return create_remote(endpoint, *keys, name, public=public, shadow=shadow, ca_bundle=ca_bundle(), **policies)

    if env_file is not None and as_json:
        fail("--env-file and --json are both given: which one?")
    try:
        if env_file is None:
            made = create()
            typer.echo(json.dumps(made.variables, indent=2) if as_json else made.lines, nl=as_json)
        else:
            with new_private_file(env_file) as texts:
                made = create()
                texts.append(made.lines)
            typer.echo(f"bucket {made.bucket} made; its variables are in {env_file}", err=True)
    except StorageError as error:
        fail(str(error))


def _root_keys(settings: Settings) -> tuple[str, str]:
    if settings.root_access_key:
        return settings.root_access_key, settings.root_secret_key
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key_id or not secret:
        fail(
            "--endpoint needs root's keys: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as the server prints them"
        )
    return key_id, secret


@command(buckets, "set", STORE)
def buckets_set(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Name of the bucket.", metavar="NAME")],
    *,
    regions: Annotated[str | None, typer.Option(help=_REGIONS_HELP, metavar="REGIONS", show_default=False)] = None,
    durability: Annotated[
        str | None, typer.Option(help=_DURABILITY_HELP, metavar="DURABILITY", show_default=False)
    ] = None,
    read_mode: Annotated[str | None, typer.Option(help=_READ_MODE_HELP, metavar="MODE", show_default=False)] = None,
) -> None:
    """Change how a bucket's objects are kept and read; what is not named stays as it is.

    Prints what is so now, as NAME=VALUE lines. Running nodes need no restart.
    """
    from tigrislike.admin.buckets import BucketError, change

    given: dict[str, object] = {"region_policy": regions, "durability": durability, "read_mode": read_mode}
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        fail("nothing to change: name at least one setting of the bucket")
    try:
        bucket = change(settings, name, changes)
    except BucketError as error:
        fail(str(error))
    typer.echo(f"regions={bucket.region_policy or 'global'}\ndurability={bucket.durability}")
    typer.echo(f"read-mode={bucket.read_mode}")


@command(buckets, "ls", DATABASE)
def buckets_ls(
    settings: Settings,
    prefix: Annotated[str, typer.Argument(help="Those whose names begin so.", metavar="PREFIX")] = "",
    *,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Every bucket: its policies, how much is in it, and what is owed for it."""
    stores(settings, endpoint, lambda commands: commands.buckets(prefix, as_json))


@command(buckets, "show", DATABASE)
def buckets_show(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Name of the bucket.", metavar="NAME")],
    *,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """One bucket, and which regions hold its objects."""
    stores(settings, endpoint, lambda commands: commands.bucket(name, as_json))


@command(buckets, "inventory", DATABASE)
def buckets_inventory(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Name of the bucket.", metavar="NAME")],
    file: Annotated[Path, typer.Argument(help="The Parquet file to write; a new one.", metavar="FILE")],
    *,
    prefix: Annotated[str, typer.Option(help="Objects whose keys begin so.", metavar="PREFIX")] = "",
    versions: Annotated[
        bool, typer.Option("--versions", help="Every version and delete marker, not current objects alone.")
    ] = False,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Write what a bucket holds to a Parquet file, with the columns of an S3 inventory."""
    stores(settings, endpoint, lambda commands: commands.inventory(name, file, prefix, versions, as_json))
