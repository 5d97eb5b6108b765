"""`tigrislike origin`: stores elsewhere, which buckets look through to, or which hold their bytes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tigrislike.cli.base import AS_JSON, BUCKET_NAME, DATABASE, EGRESS, command, fail, group
from tigrislike.config import Settings

if TYPE_CHECKING:
    from tigrislike.admin.backing_commands import Command as BackingCommand
    from tigrislike.admin.origin_commands import Command as OriginCommand
    from tigrislike.metadata.records import OriginPlace


origin = group("origin", "Stores elsewhere, which buckets look through to, or which hold their bytes.")


_PREFIX = Annotated[str, typer.Option(help="Only keys that begin so.", metavar="PREFIX")]
_BACKING = Annotated[
    bool, typer.Option("--backing", help="The origin that holds its bytes durably, not the one it looks through to.")
]


def _origins(
    settings: Settings, command: Callable[[ModuleType], OriginCommand], action: str = "", **arguments: object
) -> NoReturn:
    """Carry out a command of `origin_commands`, which is given to `command` once it is imported; as its `run`."""
    from tigrislike.admin import origin_commands
    from tigrislike.admin.origins import OriginsError

    try:
        status = origin_commands.run(settings, command(origin_commands), action, **arguments)
    except OriginsError as error:
        fail(str(error))
    raise typer.Exit(status)


@command(origin, "set", DATABASE)
def origin_set(
    settings: Settings,
    name: BUCKET_NAME,
    *,
    bucket: Annotated[str, typer.Option(help="The bucket of an S3 service.", metavar="NAME")] = "",
    endpoint: Annotated[str, typer.Option(help="URL of the service, by default AWS's.", metavar="URL")] = "",
    prefix: Annotated[str, typer.Option(help="The folder of it, by default all of it.", metavar="PREFIX")] = "",
    region: Annotated[str, typer.Option(help="The region that requests are signed for.", metavar="REGION")] = "",
    url: Annotated[
        str, typer.Option(help="In place of --bucket and --prefix: gs://, az://, https://, file://, ...", metavar="URL")
    ] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the driver's; may be given again.", metavar="NAME=VALUE")
    ] = None,
    access_key: Annotated[
        str,
        typer.Option(
            help="A key that may read it; its secret comes from --secret-key-file, from ORIGIN_SECRET_KEY, or is "
            "asked for. Without one it is asked as anybody may ask it.",
            metavar="KEY",
            envvar="ORIGIN_ACCESS_KEY",
        ),
    ] = "",
    secret_key_file: Annotated[
        Path | None, typer.Option(help="File that holds the secret and nothing else; - for standard input.")
    ] = None,
    write_through: Annotated[
        bool, typer.Option("--write-through", help="Write and delete there too what is written and deleted here.")
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Have a bucket look through to a store elsewhere: what it does not have is fetched from there when it is read.

    Running nodes need no restart. Given again for the same place, it replaces the credentials.
    """
    from tigrislike.metadata.errors import InvalidArgument
    from tigrislike.metadata.origins import check_endpoint, s3_place
    from tigrislike.metadata.records import OriginPlace

    if bool(bucket) == bool(url):
        fail("one of --bucket and --url says where the origin is")
    if url and prefix:
        fail("--prefix goes with --bucket; a URL has it in its path")
    pairs = [each.partition("=") for each in option or []]
    if any(not name or not equals for name, equals, _ in pairs):
        fail("--option is written NAME=VALUE")
    options = {name: value for name, _, value in pairs}
    secret_key = _origin_secret(secret_key_file) if access_key else ""
    place: OriginPlace
    try:
        if url:
            if endpoint:
                check_endpoint(endpoint)
            place = OriginPlace(url, endpoint, region, access_key, secret_key, options)
        else:
            found = s3_place(bucket, endpoint, region, access_key, secret_key, prefix)
            place = OriginPlace(found.url, found.endpoint, found.region, access_key, secret_key, options)
    except InvalidArgument as error:
        fail(str(error))
    arguments = {**_told(name, place), "write_through": write_through}
    _origins(settings, lambda commands: commands.use(name, place, write_through, as_json), "set_origin", **arguments)


def _told(bucket: str, place: OriginPlace) -> dict[str, object]:
    """What the audit log says of a place: nothing secret, as options of drivers may be, and parts of a URL."""
    options = {"options": sorted(place.options)} if place.options else {}
    url, endpoint = (re.sub(r"(?<=://)[^/]*@|[?#].*", "", each) for each in (place.url, place.endpoint))
    told = {"url": url, "endpoint": endpoint, "region": place.region, "access_key": place.access_key}
    return {"bucket": bucket, **{field: value for field, value in told.items() if value}, **options}


def _origin_secret(file: Path | None) -> str:
    """The secret of an origin's key: never from a command line, which others on this machine can read."""
    if file is not None:
        try:
            secret = (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"--secret-key-file {file}: {error}")
    elif not (secret := os.environ.get("ORIGIN_SECRET_KEY", "")) and sys.stdin.isatty():
        secret = typer.prompt("Secret key", hide_input=True, err=True)
    if not secret:
        fail("the secret key is missing: give --secret-key-file, or set ORIGIN_SECRET_KEY")
    return secret


@command(origin, "show", DATABASE)
def origin_show(settings: Settings, name: BUCKET_NAME, *, as_json: AS_JSON = False) -> None:
    """Show where a bucket's origins are, and how its migration stands. Secrets are not shown."""
    _origins(settings, lambda commands: commands.show(name, as_json))


@command(origin, "clear", DATABASE)
def origin_clear(settings: Settings, name: BUCKET_NAME, *, backing: _BACKING = False) -> None:
    """Have a bucket look through to nothing any more. What it has read from there is its own, and stays."""
    purpose = _purpose(backing)
    _origins(settings, lambda commands: commands.clear(name, purpose), "clear_origin", bucket=name, purpose=purpose)


@command(origin, "ls", DATABASE)
def origin_ls(settings: Settings, *, as_json: AS_JSON = False) -> None:
    """Show the origins of all buckets."""
    _origins(settings, lambda commands: commands.ls(as_json))


@command(origin, "check", EGRESS)
def origin_check(settings: Settings, name: BUCKET_NAME, *, backing: _BACKING = False, as_json: AS_JSON = False) -> None:
    """List a bucket's origin and read from it once, from this machine; say what its driver cannot tell or keep."""
    from tigrislike.node import origin_opener

    opener = origin_opener(settings)
    _origins(settings, lambda commands: commands.check(name, _purpose(backing), opener, as_json))


@command(origin, "migrate", DATABASE)
def origin_migrate(
    settings: Settings,
    name: BUCKET_NAME,
    *,
    prefix: _PREFIX = "",
    rate: Annotated[int, typer.Option(help="Objects a second, at most; 0: no limit.", metavar="N", min=0)] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Until everything is here, and show how it goes.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Have everything that a bucket's shadow has brought here, by the nodes, in the background.

    Run again, it goes on with what is under way. With --wait it exits 1 where an object could not be taken.
    """
    arguments = {"bucket": name, "prefix": prefix, "rate": rate}
    _origins(settings, lambda commands: commands.migrate(name, prefix, rate, wait, as_json), "migrate", **arguments)


@command(origin, "report", EGRESS)
def origin_report(
    settings: Settings,
    name: BUCKET_NAME,
    *,
    output: Annotated[Path, typer.Option(help="The Parquet file to write.", metavar="FILE")],
    prefix: _PREFIX = "",
    as_json: AS_JSON = False,
) -> None:
    """Compare a bucket with its shadow, object by object, and write down every key that differs, and in what.

    Exits 0 where nothing does: then everything is here. One request to the origin for each object.
    """
    from tigrislike.node import origin_opener

    opener = origin_opener(settings)
    _origins(settings, lambda commands: commands.report(name, prefix, output, opener, as_json))


def _purpose(backing: bool) -> str:
    from tigrislike.metadata.origins import BACKING, SHADOW

    return BACKING if backing else SHADOW


@command(origin, "back", EGRESS)
def origin_back(
    settings: Settings,
    name: BUCKET_NAME,
    *,
    url: Annotated[
        str, typer.Option(help="Where its bytes are to lie: scheme, bucket and folder, as in s3://bucket/folder.")
    ],
    durability: Annotated[
        str,
        typer.Option(
            help="`write-back`: a write is acknowledged once a node has it, and goes to the origin after that; "
            "`write-through`: once the origin has it.",
            metavar="DURABILITY",
        ),
    ] = "write-back",
    endpoint: Annotated[str, typer.Option(help="URL of the service, by default AWS's.", metavar="URL")] = "",
    region: Annotated[str, typer.Option(help="The region that requests are signed for.", metavar="REGION")] = "",
    access_key: Annotated[
        str,
        typer.Option(
            help="A key that may read, write and delete there; its secret comes from --secret-key-file, from "
            "ORIGIN_SECRET_KEY, or is asked for.",
            metavar="KEY",
            envvar="ORIGIN_ACCESS_KEY",
        ),
    ] = "",
    secret_key_file: Annotated[
        Path | None, typer.Option(help="File that holds the secret and nothing else; - for standard input.")
    ] = None,
) -> None:
    """Have an origin durably hold a bucket's bytes: nodes then need to keep no more of them than is read.

    Writes something there first, reads it back and deletes it. What the bucket holds already follows in the background.
    Given again for the same place, replaces its credentials.
    """
    from tigrislike.metadata.records import OriginPlace

    secret_key = _origin_secret(secret_key_file) if access_key else ""
    place = OriginPlace(url, endpoint, region, access_key, secret_key)
    arguments = {**_told(name, place), "durability": durability}
    _backing(settings, lambda commands: commands.back(name, place, durability), "back", **arguments)


@command(origin, "unback", DATABASE)
def origin_unback(
    settings: Settings,
    name: BUCKET_NAME,
    *,
    durability: Annotated[str, typer.Option(help="What it is to have: `local` or `homes=N`.")] = "local",
) -> None:
    """Have a bucket's bytes held by nodes alone again. The origin is needed until its folder is empty: each object goes
    from there once enough nodes have it."""
    arguments = {"bucket": name, "durability": durability}
    _backing(settings, lambda commands: commands.unback(name, durability), "unback", **arguments)


def _backing(
    settings: Settings, command: Callable[[ModuleType], BackingCommand], action: str, **arguments: object
) -> None:
    """Carry out a command of `backing_commands`, which is given to `command` once it is imported; as its `run`."""
    from tigrislike.admin import backing_commands
    from tigrislike.admin.buckets import BucketError

    try:
        typer.echo(backing_commands.run(settings, command(backing_commands), action, **arguments))
    except BucketError as error:
        fail(str(error))
