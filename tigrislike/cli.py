"""The command line: `serve`, `edge`, `storage create`, `version`, `top`; `buckets`: `ls`, `show`, `set`; `origin`:
`set`, `show`, `clear`, `ls`, `check`, `migrate`, `report`, `back`, `unback`; `queue`: `ls`, `top`, `show`, `items`,
`dead`, `retry`, `delay`, `drop`, `pause`, `resume`, `export`; `keys`: `ls`, `create`, `rotate`, `revoke`; `cache`:
`stat`, `ls`, `warm`, `pin`, `unpin`, `evict`, `scrub`; `nodes` (the table): `drain`, `undrain`, `remove`, `replace`;
and `admin`: `check`, `fsck`, `backup`, `copy-metadata`, `rotate-master-key`.

Each command imports what it needs when it runs, so that `--help` and `version` answer at once. What a command prints
to standard output is meant for pasting or parsing; everything else goes to standard error. Exit status: 0 done,
1 refused or failed (with one line that says why), 2 a command line that makes no sense; `admin check` and
`queue ls --check` add 3.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tigrislike import __version__
from tigrislike.config import ConfigError, Settings, load_settings, options, unknown_variables

if TYPE_CHECKING:
    from tigrislike.admin.backing_commands import Command as BackingCommand
    from tigrislike.admin.cache_commands import Command
    from tigrislike.admin.commands import Command as ApiCommand
    from tigrislike.admin.nodes_commands import Command as NodesCommand
    from tigrislike.admin.origin_commands import Command as OriginCommand
    from tigrislike.server import Ready
    from tigrislike.storage import Storage

app = typer.Typer(
    name="tigrislike",
    help="An S3-compatible, regional-first object store that runs beside the models it feeds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
storage = typer.Typer(help="Buckets with a key pair of their own.", no_args_is_help=True)
buckets = typer.Typer(help="How a bucket's objects are kept and read.", no_args_is_help=True)
admin = typer.Typer(help="For operators, on the node itself.", no_args_is_help=True)
cache = typer.Typer(help="What is on this node's disk, and what is to be.", no_args_is_help=True)
app.add_typer(storage, name="storage")
app.add_typer(buckets, name="buckets")
app.add_typer(cache, name="cache")
app.add_typer(admin, name="admin")
nodes = typer.Typer(help="The nodes of the store.", invoke_without_command=True)
app.add_typer(nodes, name="nodes")
origin = typer.Typer(
    help="Stores elsewhere, which buckets look through to, or which hold their bytes.", no_args_is_help=True
)
app.add_typer(origin, name="origin")
queue = typer.Typer(help="The work that is owed: look at it, and act on it.", no_args_is_help=True)
keys = typer.Typer(help="Access keys.", no_args_is_help=True)
app.add_typer(queue, name="queue")
app.add_typer(keys, name="keys")


def main() -> None:
    """The entry point of the `tigrislike` script."""
    os.umask(0o077)  # whatever a command makes holds someone's objects or keys
    app()


def _fail(message: str) -> NoReturn:
    typer.echo(f"tigrislike: {message}", err=True)
    raise typer.Exit(1)


# What commands on a local store, other than the server itself, need to know.
_STORE = ("data_dir", "metadata", "cache_dir", "master_key_file", "region", "block_size")
# What those need that look at no disk.
_DATABASE = ("data_dir", "metadata", "master_key_file")
# And what those that fill and evict need beside: the same as the node's, or they keep more or less than it does.
_CACHE = (*_STORE, "reserve_bytes", "cache_bytes", "cache_policy", "fill_bytes", "fill_timeout_s", "scrub_rate")
_ADDRESS = ("host", "port", "tls_cert", "tls_key")


def _with_settings(command: Callable[..., None], only: tuple[str, ...] = ()) -> Callable[..., None]:
    """Give a command one flag per setting, and call it with the resulting `Settings` as its first argument.

    The flags are made from `Settings`, so that each exists once: as a field, with its default and its help.
    With `only`, these settings have flags; the others still come from the environment and the settings file.
    """
    chosen = [option for option in options() if not option.secret and (not only or option.attribute in only)]
    own = inspect.signature(command, eval_str=True)
    parameters = [parameter for name, parameter in own.parameters.items() if name != "settings"]
    for option in chosen:
        help_text = f"{option.help} (Default: {option.shown}; environment: {option.variable}.)"
        if option.switch:
            annotation: Any = Annotated[
                bool | None, typer.Option(f"--{option.name}/--no-{option.name}", help=help_text, show_default=False)
            ]
        else:
            annotation = Annotated[
                str | None, typer.Option(f"--{option.name}", help=help_text, metavar="VALUE", show_default=False)
            ]
        parameters.append(
            inspect.Parameter(option.attribute, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    settings_file = Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; flags and environment stand above it.", metavar="FILE"),
    ]
    parameters.append(
        inspect.Parameter("settings_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=settings_file)
    )

    def run(**values: Any) -> None:
        given = {option.attribute: values.pop(option.attribute) for option in chosen}
        flags = {name: None if value is None else str(value) for name, value in given.items()}
        file = values.pop("settings_file")
        try:
            settings = load_settings(flags, os.environ, file)
        except ConfigError as error:
            _fail(str(error))
        for warning in unknown_variables(os.environ):
            typer.echo(f"tigrislike: warning: {warning}", err=True)
        command(settings, **values)

    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _serve(
    settings: Settings,
    *,
    ready_fd: Annotated[
        int | None,
        typer.Option(
            help="File descriptor to write one JSON line to (endpoint, region, root keys) when requests are "
            "answered; for programs that start a node.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a node: an S3 endpoint over a data directory.

    Every setting can also be given by its environment variable, or in a settings file. The root user's keys come
    from TIGRISLIKE_ROOT_ACCESS_KEY and TIGRISLIKE_ROOT_SECRET_KEY, and are else made at first start and printed.
    """
    from tigrislike.server import BindError, serve

    def on_ready(ready: Ready) -> None:
        typer.echo(banner(ready, secret_is_ours=not settings.root_secret_key))
        sys.stdout.flush()
        if ready_fd is not None:
            facts = {
                "endpoint": ready.endpoint,
                "region": ready.region,
                "access_key_id": ready.access_key_id,
                "secret_access_key": ready.secret_access_key,
                "pid": os.getpid(),
                **({"admin_endpoint": ready.admin_endpoint} if ready.admin_endpoint else {}),
            }
            with os.fdopen(ready_fd, "w") as announcement:
                announcement.write(json.dumps(facts) + "\n")

    try:
        status = serve(settings, on_ready)
    except BindError as error:
        _fail(str(error))
    raise typer.Exit(status)


def banner(ready: Ready, *, secret_is_ours: bool) -> str:
    """What a person needs to use the node. A secret that the operator gave is not printed back."""
    secret = ready.secret_access_key if secret_is_ours else '"$TIGRISLIKE_ROOT_SECRET_KEY"'
    return f"""\
tigrislike {__version__} is ready
  endpoint  {ready.endpoint}
  region    {ready.region} (clients may sign for any region)

export AWS_ENDPOINT_URL={ready.endpoint}
export AWS_ACCESS_KEY_ID={ready.access_key_id}
export AWS_SECRET_ACCESS_KEY={secret}
export AWS_DEFAULT_REGION=auto
export AWS_REGION=auto
"""


app.command("serve")(_with_settings(_serve))


@app.command()
def edge(
    region: Annotated[
        list[str],
        typer.Option(help="A region and the URLs of its nodes; once for each region.", metavar="NAME=URL[,URL...]"),
    ],
    *,
    listen: Annotated[str, typer.Option(help="Where to listen; port 0 takes a free one.", metavar="HOST:PORT")] = (
        "127.0.0.1:9080"
    ),
    mode: Annotated[
        str, typer.Option(help="`forward`, or `redirect`: GET, HEAD and PUT are answered 307.", metavar="MODE")
    ] = "forward",
    domain: Annotated[
        str, typer.Option(help="The nodes' --domain, for redirects of BUCKET.DOMAIN.", metavar="NAME")
    ] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain: https only.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    check_interval: Annotated[
        str, typer.Option(help="How often each node is asked whether it is ready.", metavar="DURATION")
    ] = "1s",
    ready_fd: Annotated[
        int | None,
        typer.Option(help="File descriptor to write the URL to when requests are answered.", metavar="N"),
    ] = None,
) -> None:
    """Send each request to the nearest healthy region: for places without anycast or GeoDNS.

    Nodes with https are verified with the system's certificates, or those of AWS_CA_BUNDLE.
    """
    import logging
    import ssl

    from tigrislike.config import parse_duration
    from tigrislike.edge import EdgeError, parse_regions, serve_edge

    def on_ready(url: str) -> None:
        typer.echo(f"tigrislike edge {__version__} is ready at {url}")
        sys.stdout.flush()
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w") as announcement:
                announcement.write(url + "\n")

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        _fail(f"--listen {listen!r}: expected HOST:PORT")
    if mode not in ("forward", "redirect"):
        _fail(f"--mode {mode!r}: expected forward or redirect")
    if (tls_cert is None) != (tls_key is None):
        _fail("--tls-cert and --tls-key go together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        interval_s = parse_duration(check_interval)
        if interval_s <= 0:
            raise ValueError("must be more than zero")
    except ValueError as error:
        _fail(f"--check-interval {check_interval!r}: {error}")
    try:
        tls = None
        if tls_cert is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(tls_cert, tls_key)
        nodes = parse_regions(region, _ca_bundle())
        serve_edge(
            nodes,
            host.strip("[]"),
            int(port),
            mode="redirect" if mode == "redirect" else "forward",
            domain=domain.strip(".").lower(),
            tls=tls,
            check_interval_s=interval_s,
            on_ready=on_ready,
        )
    except (EdgeError, OSError) as error:
        _fail(str(error))


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


def _storage_create(
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
        _fail("--shadow-name is missing: which bucket is it to look through to?")

    def create() -> Storage:
        policies = {"regions": regions, "durability": durability, "read_mode": read_mode}
        if endpoint is None:
            return create_local(settings, name, public=public, shadow=shadow, **policies)
        keys = _root_keys(settings)
        return create_remote(endpoint, *keys, name, public=public, shadow=shadow, ca_bundle=_ca_bundle(), **policies)

    if env_file is not None and as_json:
        _fail("--env-file and --json are both given: which one?")
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
        _fail(str(error))


def _buckets_set(
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
        _fail("nothing to change: name at least one setting of the bucket")
    try:
        bucket = change(settings, name, changes)
    except BucketError as error:
        _fail(str(error))
    typer.echo(f"regions={bucket.region_policy or 'global'}\ndurability={bucket.durability}")
    typer.echo(f"read-mode={bucket.read_mode}")


def _root_keys(settings: Settings) -> tuple[str, str]:
    if settings.root_access_key:
        return settings.root_access_key, settings.root_secret_key
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key_id or not secret:
        _fail(
            "--endpoint needs root's keys: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY as the server prints them"
        )
    return key_id, secret


def _ca_bundle() -> str | None:
    return os.environ.get("AWS_CA_BUNDLE") or None


def _rotate_master_key(
    settings: Settings,
    *,
    new_master_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File of the new key, made if it is absent. Without this the key beside the SQLite database is "
            "replaced by a fresh one.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Encrypt every stored secret with a new master key and put that key in force.

    Stop or restart every node with the new key afterwards. If this is interrupted, run it again.
    """
    from tigrislike.rotation import RotationError, rotate

    try:
        typer.echo(rotate(settings, new_master_key_file), err=True)
    except RotationError as error:
        _fail(str(error))


def _fsck(
    settings: Settings,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended without losing anything still readable.")
    ] = False,
    pause: Annotated[
        float, typer.Option(help="Seconds to rest between the small steps of the check.", metavar="SECONDS", min=0)
    ] = 0.002,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each finding.")] = False,
) -> None:
    """Check records, references, contents, block files and counters against each other, while the store runs.

    Prints a line for each finding. Exits 0 where all is well or was mended, 1 where something is left.
    """
    import asyncio

    import msgspec

    from tigrislike.admin.fsck import fsck
    from tigrislike.bytecache import BytesError
    from tigrislike.metadata import MetadataError
    from tigrislike.metadata.kv import EngineError
    from tigrislike.node import Node

    async def check() -> tuple[int, int]:
        found = left = 0
        async with Node.opened(settings) as node:
            async for finding in fsck(node.metadata, node.blocks, repair=repair, pause_s=pause):
                found += 1
                left += not finding.repaired
                if as_json:
                    typer.echo(msgspec.json.encode(finding).decode())
                else:
                    fate = "repaired" if finding.repaired else "repairable" if finding.repairable else "not repairable"
                    typer.echo(f"{finding.kind} {finding.key}: {finding.detail} ({fate})")
        return found, left

    try:
        found, left = asyncio.run(check())
    except (MetadataError, EngineError, BytesError, OSError, ValueError) as error:
        _fail(str(error))
    typer.echo(f"{found} findings, {found - left} repaired", err=True)
    raise typer.Exit(1 if left else 0)


@admin.command("copy-metadata")
def copy_metadata(
    source: Annotated[
        str, typer.Option("--from", help="The store to copy: sqlite:///FILE or fdb:///CLUSTERFILE.", metavar="URL")
    ],
    target: Annotated[
        str | None,
        typer.Option("--to", help="Where to: a file that is not there, or an empty place in a cluster.", metavar="URL"),
    ] = None,
    *,
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="Let the source take writes again afterwards: a backup, not a move.")
    ] = False,
    abort: Annotated[
        bool,
        typer.Option("--abort", help="Give up a copy that was interrupted: empty the target, open the source again."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --abort: open a source that has moved. What was written since is lost."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON objects, one a line: progress, result.")] = False,
) -> None:
    """Copy a store's metadata to another engine, verify it, and open it there: for a store that outgrew SQLite.

    Nodes may run meanwhile. From the first moment the source takes no writes: they are answered 503 with Retry-After,
    reads go on. If this is interrupted, run it again to go on, or with --abort to go back. When it is done, restart
    the nodes with --metadata and the new URL; blocks stay where they are.
    """
    from tigrislike.admin.copy import CopyError
    from tigrislike.admin.copying import run_abort, run_copy
    from tigrislike.metadata.kv import EngineError

    if force and not abort:
        _fail("--force goes with --abort")
    if target is None and not abort:
        _fail("--to is missing: where is the copy to go?")
    try:
        if abort:
            said = run_abort(source, target, force=force)
            typer.echo(json.dumps({"aborted": said}) if as_json else said)
        else:
            assert target is not None
            run_copy(source, target, keep_source=keep_source, as_json=as_json)
    except (CopyError, EngineError, OSError, ValueError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(
            "interrupted; the source takes no writes until the copy is complete (run this again) or given up (--abort)"
        )


def _check(
    settings: Settings,
    *,
    samples: Annotated[int, typer.Option(help="How often each latency is measured.", metavar="N", min=1)] = 100,
    full: Annotated[bool, typer.Option("--full", help="Name every object that no living node has.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, which names them all.")] = False,
) -> None:
    """Check what a node stands on: engine, cluster, latency, clocks, free space, formats, master key, writes, nodes.

    Changes nothing, and ends within 5 seconds where the database does not answer. Exits 0 where all is well, 1 where
    a node could not work, 3 where it could, but something deserves attention.
    """
    import asyncio

    import msgspec

    from tigrislike.admin.check import all_checks, worst

    checks = asyncio.run(all_checks(settings, samples=samples, full=full or as_json))
    verdict = worst(checks)
    if as_json:
        typer.echo(msgspec.json.encode({"verdict": verdict, "checks": checks}).decode())
    else:
        for check in checks:
            typer.echo(f"{check.verdict:9}  {check.name:10}  {check.detail}")
    raise typer.Exit({"ok": 0, "failed": 1, "attention": 3}[verdict])


def _backup(
    settings: Settings,
    directory: Annotated[
        Path, typer.Argument(help="Where to: a new directory, or that of an earlier backup.", metavar="DIR")
    ],
    *,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links in place of copies of blocks: at once, on the same disk.")
    ] = False,
    with_master_key: Annotated[
        bool, typer.Option("--with-master-key", help="Copy the master key's file too; whoever has both has everything.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Copy the store into a directory while it serves: as of one moment, and only what an earlier backup there lacks.

    The result is a data directory: copy it to where it is needed and start a node on it, with the same master key.
    With metadata in FoundationDB only this node's blocks are copied; copy the metadata before. Exits 1 where a block
    is missing.
    """
    import msgspec

    from tigrislike.admin.backup import BackupError, back_up
    from tigrislike.bytecache import BytesError
    from tigrislike.metadata.kv import EngineError

    try:
        made = back_up(settings, directory, link=link, with_master_key=with_master_key)
    except (BackupError, EngineError, BytesError, OSError, ValueError) as error:
        _fail(str(error))
    if as_json:
        typer.echo(msgspec.json.encode(made).decode())
    else:
        what = "metadata and " if made.metadata else ""
        typer.echo(f"{what}{made.blocks:,} blocks ({made.bytes:,} bytes) of node {made.node} are in {directory}")
        typer.echo(f"{made.copied_blocks:,} blocks copied, {made.removed_blocks:,} removed", err=True)
        if not with_master_key:
            typer.echo("the master key is not in it: keep a copy of it elsewhere", err=True)
    if made.missing:
        _fail(f"{made.missing} blocks that records name are missing from the store: run `tigrislike admin fsck`")


_Place = Annotated[
    str,
    typer.Argument(help="The live objects whose keys begin so: s3://BUCKET or s3://BUCKET/PREFIX.", metavar="S3_URL"),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def _cache(settings: Settings, command: Callable[[ModuleType], Command]) -> NoReturn:
    """Carry out a command of `cache_commands`, which is given to `command` once it is imported."""
    from tigrislike.admin import cache_commands

    try:
        status = cache_commands.run(settings, command(cache_commands))
    except (cache_commands.CacheError, ValueError) as error:
        _fail(str(error))
    raise typer.Exit(status)


def _cache_stat(settings: Settings, *, as_json: _AsJson = False) -> None:
    """How full the cache is, what is pinned, and when every block was last verified."""
    _cache(settings, lambda commands: commands.stat(as_json))


def _cache_ls(settings: Settings, place: _Place, *, as_json: _AsJson = False) -> None:
    """How much of each object is on this disk, durably (home) or as a copy that may be evicted (cache)."""
    _cache(settings, lambda commands: commands.ls(commands.Target.parse(place), as_json))


def _cache_warm(settings: Settings, place: _Place, *, as_json: _AsJson = False) -> None:
    """Fetch objects and pin them, so that they are here when they are needed.

    What is here already is not fetched again, so an interrupted run is gone on with by running it again. Exits 1 where
    an object could not be fetched.
    """
    _cache(settings, lambda commands: commands.warm(commands.Target.parse(place), as_json))


def _cache_pin(settings: Settings, place: _Place, *, as_json: _AsJson = False) -> None:
    """Keep objects in the cache, whatever else is read: what is here now, and what will be fetched."""
    _cache(settings, lambda commands: commands.pin(commands.Target.parse(place), as_json))


def _cache_unpin(settings: Settings, place: _Place, *, as_json: _AsJson = False) -> None:
    """Let objects be evicted again when their turn comes."""
    _cache(settings, lambda commands: commands.unpin(commands.Target.parse(place), as_json))


def _cache_evict(settings: Settings, place: _Place, *, as_json: _AsJson = False) -> None:
    """Drop objects from the cache at once, but for pinned ones. What only this node holds stays, and what is being read
    is read to its end."""
    _cache(settings, lambda commands: commands.evict(commands.Target.parse(place), as_json))


def _cache_scrub(settings: Settings, *, as_json: _AsJson = False) -> None:
    """Read and verify every block on this disk now, at most at --scrub-rate.

    Goes on with a pass that the node or an earlier run has begun. Exits 1 where a block is damaged for good.
    """
    _cache(settings, lambda commands: commands.scrub(as_json))


_NODE = Annotated[str, typer.Argument(help="The beginning of a node's id, as `tigrislike nodes` shows it.")]


def _nodes(settings: Settings, command: Callable[[ModuleType], NodesCommand]) -> NoReturn:
    """Carry out a command of `nodes_commands`, which is given to `command` once it is imported."""
    from tigrislike.admin import nodes_commands
    from tigrislike.admin.nodes import NodesError

    try:
        status = nodes_commands.run(settings, command(nodes_commands))
    except NodesError as error:
        _fail(str(error))
    raise typer.Exit(status)


def _nodes_ls(
    settings: Settings,
    context: typer.Context,
    *,
    sole: Annotated[
        bool, typer.Option("--sole", help="Count what no other living node has: looks at everything.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Show every node: its region and state, whether it is alive, what it holds, and how full its disk is."""
    if context.invoked_subcommand is None:
        _nodes(settings, lambda commands: commands.ls(sole, as_json))


def _nodes_drain(
    settings: Settings,
    node: _NODE,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Until it holds nothing, with a progress bar.")] = False,
) -> None:
    """Have a node give up what it holds, once others have it. It serves meanwhile, and takes no copies."""
    _nodes(settings, lambda commands: commands.drain(node, wait))


def _nodes_undrain(settings: Settings, node: _NODE) -> None:
    """Let a node that drains take copies again. What it gave up stays where it is."""
    _nodes(settings, lambda commands: commands.undrain(node))


def _nodes_remove(
    settings: Settings,
    node: _NODE,
    *,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Also where that loses objects; they are printed first.")
    ] = False,
) -> None:
    """Remove a node for good: one that is drained, or that is dead and whose objects are elsewhere too."""
    _nodes(settings, lambda commands: commands.remove(node, accept_loss))


def _nodes_replace(
    settings: Settings,
    old: _NODE,
    *,
    new: Annotated[str, typer.Option("--with", help="The beginning of the id of the node that takes its place.")],
) -> None:
    """Copy everything that a node holds to another one, then remove it."""
    _nodes(settings, lambda commands: commands.replace(old, new))


_BUCKET_NAME = Annotated[str, typer.Argument(help="Name of the bucket.", metavar="BUCKET")]
_PREFIX = Annotated[str, typer.Option(help="Only keys that begin so.", metavar="PREFIX")]
_BACKING = Annotated[
    bool, typer.Option("--backing", help="The origin that holds its bytes durably, not the one it looks through to.")
]


def _origins(settings: Settings, command: Callable[[ModuleType], OriginCommand]) -> NoReturn:
    """Carry out a command of `origin_commands`, which is given to `command` once it is imported."""
    from tigrislike.admin import origin_commands
    from tigrislike.admin.origins import OriginsError

    try:
        status = origin_commands.run(settings, command(origin_commands))
    except OriginsError as error:
        _fail(str(error))
    raise typer.Exit(status)


def _origin_set(
    settings: Settings,
    name: _BUCKET_NAME,
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
    as_json: _AsJson = False,
) -> None:
    """Have a bucket look through to a store elsewhere: what it does not have is fetched from there when it is read.

    Running nodes need no restart. Given again for the same place, it replaces the credentials.
    """
    from tigrislike.metadata.errors import InvalidArgument
    from tigrislike.metadata.origins import check_endpoint, s3_place
    from tigrislike.metadata.records import OriginPlace

    if bool(bucket) == bool(url):
        _fail("one of --bucket and --url says where the origin is")
    if url and prefix:
        _fail("--prefix goes with --bucket; a URL has it in its path")
    pairs = [each.partition("=") for each in option or []]
    if any(not name or not equals for name, equals, _ in pairs):
        _fail("--option is written NAME=VALUE")
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
        _fail(str(error))
    _origins(settings, lambda commands: commands.use(name, place, write_through, as_json))


def _origin_secret(file: Path | None) -> str:
    """The secret of an origin's key: never from a command line, which others on this machine can read."""
    if file is not None:
        try:
            secret = (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
        except (OSError, UnicodeDecodeError) as error:
            _fail(f"--secret-key-file {file}: {error}")
    elif not (secret := os.environ.get("ORIGIN_SECRET_KEY", "")) and sys.stdin.isatty():
        secret = typer.prompt("Secret key", hide_input=True, err=True)
    if not secret:
        _fail("the secret key is missing: give --secret-key-file, or set ORIGIN_SECRET_KEY")
    return secret


def _origin_show(settings: Settings, name: _BUCKET_NAME, *, as_json: _AsJson = False) -> None:
    """Show where a bucket's origins are, and how its migration stands. Secrets are not shown."""
    _origins(settings, lambda commands: commands.show(name, as_json))


def _origin_clear(settings: Settings, name: _BUCKET_NAME, *, backing: _BACKING = False) -> None:
    """Have a bucket look through to nothing any more. What it has read from there is its own, and stays."""
    _origins(settings, lambda commands: commands.clear(name, _purpose(backing)))


def _origin_ls(settings: Settings, *, as_json: _AsJson = False) -> None:
    """Show the origins of all buckets."""
    _origins(settings, lambda commands: commands.ls(as_json))


def _origin_check(
    settings: Settings, name: _BUCKET_NAME, *, backing: _BACKING = False, as_json: _AsJson = False
) -> None:
    """List a bucket's origin and read from it once, from this machine; say what its driver cannot tell or keep."""
    from tigrislike.node import origin_opener

    opener = origin_opener(settings)
    _origins(settings, lambda commands: commands.check(name, _purpose(backing), opener, as_json))


def _origin_migrate(
    settings: Settings,
    name: _BUCKET_NAME,
    *,
    prefix: _PREFIX = "",
    rate: Annotated[int, typer.Option(help="Objects a second, at most; 0: no limit.", metavar="N", min=0)] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Until everything is here, and show how it goes.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Have everything that a bucket's shadow has brought here, by the nodes, in the background.

    Run again, it goes on with what is under way. With --wait it exits 1 where an object could not be taken.
    """
    _origins(settings, lambda commands: commands.migrate(name, prefix, rate, wait, as_json))


def _origin_report(
    settings: Settings,
    name: _BUCKET_NAME,
    *,
    output: Annotated[Path, typer.Option(help="The Parquet file to write.", metavar="FILE")],
    prefix: _PREFIX = "",
    as_json: _AsJson = False,
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


# What commands that ask an origin themselves need beside the database.
_EGRESS = (*_DATABASE, "allow_private_origins")


def _origin_back(
    settings: Settings,
    name: _BUCKET_NAME,
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
    _backing(settings, lambda commands: commands.back(name, place, durability))


def _origin_unback(
    settings: Settings,
    name: _BUCKET_NAME,
    *,
    durability: Annotated[str, typer.Option(help="What it is to have: `local` or `homes=N`.")] = "local",
) -> None:
    """Have a bucket's bytes held by nodes alone again. The origin is needed until its folder is empty: each object goes
    from there once enough nodes have it."""
    _backing(settings, lambda commands: commands.unback(name, durability))


def _backing(settings: Settings, command: Callable[[ModuleType], BackingCommand]) -> None:
    """Carry out a command of `backing_commands`, which is given to `command` once it is imported."""
    from tigrislike.admin import backing_commands
    from tigrislike.admin.buckets import BucketError

    try:
        typer.echo(backing_commands.run(settings, command(backing_commands)))
    except BucketError as error:
        _fail(str(error))


# --- over the admin API

_Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Ask the node at this URL, with an admin key from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a "
        "profile; else use the database itself.",
        metavar="URL",
        show_default=False,
    ),
]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one object a line for lists.")]
_ZONE = Annotated[
    str | None, typer.Option(help="Of this zone: REGION/BUCKET, node:ID/BUCKET or its hex name.", metavar="ZONE")
]
_REGION = Annotated[str | None, typer.Option(help="Of this region and its nodes.", metavar="NAME")]
_BUCKET = Annotated[str | None, typer.Option(help="Of this bucket.", metavar="NAME")]
_TASK = Annotated[str | None, typer.Option(help="Of this task.", metavar="NAME")]
_ERROR = Annotated[str | None, typer.Option(help="With this text in the last error.", metavar="TEXT")]
_LIMIT = Annotated[int, typer.Option(help="Most rows to show.", min=1)]
_ITEMS = Annotated[list[str], typer.Argument(help="Items, as `queue items` names them.", metavar="ITEM...")]
_INTERVAL = Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)]
_TIMES = Annotated[int | None, typer.Option(help="End after so many looks.", min=1, show_default=False)]
_KEY = Annotated[str, typer.Argument(help="An access key's id.", metavar="KEY")]


def _complete(*words: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


_BY = Annotated[
    str,
    typer.Option(
        help="task, region, destination, bucket or zone.",
        autocompletion=_complete("task", "region", "destination", "bucket", "zone"),
    ),
]
_SORT = Annotated[
    str,
    typer.Option(
        help="Of zones: oldest, depth, failing, dead or name.",
        autocompletion=_complete("oldest", "depth", "failing", "dead", "name"),
    ),
]
_STATE = Annotated[
    str | None,
    typer.Option(
        help="due, delayed, in_flight, failing or dead.",
        autocompletion=_complete("due", "delayed", "in_flight", "failing", "dead"),
    ),
]


def _api(
    settings: Settings, endpoint: str | None, command: Callable[[ModuleType], ApiCommand], module: str
) -> NoReturn:
    """Carry out a command of `module` in the admin package, which is given to `command` once it is imported."""
    import importlib

    from tigrislike.admin.commands import CommandError, run

    try:
        status = run(settings, endpoint, command(importlib.import_module(f"tigrislike.admin.{module}")))
    except CommandError as error:
        _fail(str(error))
    raise typer.Exit(status)


def _queue(settings: Settings, endpoint: str | None, command: Callable[[ModuleType], ApiCommand]) -> NoReturn:
    _api(settings, endpoint, command, "queue_commands")


def _stores(settings: Settings, endpoint: str | None, command: Callable[[ModuleType], ApiCommand]) -> NoReturn:
    _api(settings, endpoint, command, "store_commands")


def _queue_ls(
    settings: Settings,
    *,
    by: _BY = "task",
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    sort: _SORT = "oldest",
    limit: _LIMIT = 50,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 3 where something fails, is dead or has been due for a minute.")
    ] = False,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """How much is owed, how old it is, how fast it is done: by task, region, destination, bucket or zone."""
    if by not in ("task", "region", "destination", "bucket", "zone"):
        _fail(f"--by {by!r}: expected task, region, destination, bucket or zone")
    filters = {"region": region, "bucket": bucket, "task": task}
    if by != "zone" and any(filters.values()):
        _fail("--region, --bucket and --task go with --by zone")
    _queue(settings, endpoint, lambda commands: commands.ls(by, filters, sort, limit, check, as_json))


def _queue_top(
    settings: Settings,
    *,
    sort: _SORT = "oldest",
    limit: _LIMIT = 20,
    interval: _INTERVAL = 2.0,
    times: _TIMES = None,
    endpoint: _Endpoint = None,
) -> None:
    """Regions, and the zones that deserve to be looked at, live."""
    _queue(settings, endpoint, lambda commands: commands.top(sort, limit, interval, times))


def _queue_show(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="A zone (REGION/BUCKET) or an item.", metavar="NAME")],
    *,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """A zone by task, or an item with its last failed runs."""
    _queue(settings, endpoint, lambda commands: commands.show_one(name, as_json))


def _queue_items(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    state: _STATE = None,
    error: _ERROR = None,
    limit: _LIMIT = 50,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Items, those of a zone in the order in which they are done."""
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "state": state, "error": error}
    _queue(settings, endpoint, lambda commands: commands.items(filters, limit, as_json))


def _queue_dead(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    error: _ERROR = None,
    limit: _LIMIT = 50,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Dead letters: what failed too often, and is tried no more until it is retried."""
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "state": "dead", "error": error}
    _queue(settings, endpoint, lambda commands: commands.items(filters, limit, as_json))


def _queue_retry(
    settings: Settings,
    items: Annotated[list[str] | None, typer.Argument(help="Items, as `queue items` names them.")] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All dead letters that the filters want.")] = False,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    error: _ERROR = None,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Have items done at once, dead letters with all their attempts anew."""
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "error": error}
    if bool(items) == dead:
        _fail("name items, or --dead for dead letters")
    if any(filters.values()) and not dead:
        _fail("the filters go with --dead")
    _queue(settings, endpoint, lambda commands: commands.retry(items or [], dead, filters, as_json))


def _queue_delay(
    settings: Settings,
    items: _ITEMS,
    *,
    by: Annotated[str, typer.Option("--for", help="How long, such as 30m.", metavar="DURATION")],
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Have waiting items not begun for a while."""
    from tigrislike.config import parse_duration

    try:
        seconds = parse_duration(by)
    except ValueError as error:
        _fail(f"--for {by!r}: {error}")
    _queue(settings, endpoint, lambda commands: commands.delay(items, seconds, as_json))


def _queue_drop(
    settings: Settings,
    items: _ITEMS,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Give items up: what they owe is never done."""
    if not yes and not typer.confirm(f"Never do what these {len(items)} items owe?", err=True):
        _fail("nothing was dropped")
    _queue(settings, endpoint, lambda commands: commands.drop(items, as_json))


def _queue_pause(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    task: _TASK = None,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Start nothing more of a zone, region or task; what is under way goes on. Without a name: show what is paused."""
    what = {"zone": zone, "region": region, "task": task}
    _queue(settings, endpoint, lambda commands: commands.pause(True, what, as_json))


def _queue_resume(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    task: _TASK = None,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Go on with what was paused."""
    what = {"zone": zone, "region": region, "task": task}
    if not any(what.values()):
        _fail("name a zone, region or task; `tigrislike queue pause` shows what is paused")
    _queue(settings, endpoint, lambda commands: commands.pause(False, what, as_json))


def _queue_export(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="The Parquet file to write; a new one.", metavar="FILE")],
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    state: _STATE = None,
    error: _ERROR = None,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Write items to a Parquet file, a row each."""
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "state": state, "error": error}
    _queue(settings, endpoint, lambda commands: commands.export(file, filters, as_json))


def _top(
    settings: Settings,
    *,
    interval: _INTERVAL = 2.0,
    times: _TIMES = None,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """The store at a glance, live: regions and their health, tasks, what waits longest."""
    _stores(settings, endpoint, lambda commands: commands.top(interval, times, as_json))


def _buckets_ls(
    settings: Settings,
    prefix: Annotated[str, typer.Argument(help="Those whose names begin so.", metavar="PREFIX")] = "",
    *,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Every bucket: its policies, how much is in it, and what is owed for it."""
    _stores(settings, endpoint, lambda commands: commands.buckets(prefix, as_json))


def _buckets_show(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="Name of the bucket.", metavar="NAME")],
    *,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """One bucket, and which regions hold its objects."""
    _stores(settings, endpoint, lambda commands: commands.bucket(name, as_json))


def _keys_ls(settings: Settings, *, endpoint: _Endpoint = None, as_json: _JSON = False) -> None:
    """Every access key, without its secret."""
    _stores(settings, endpoint, lambda commands: commands.keys(as_json))


def _keys_create(
    settings: Settings,
    *,
    bucket: Annotated[str, typer.Option(help="Only this bucket.", metavar="NAME", show_default=False)] = "",
    admin_key: Annotated[
        bool, typer.Option("--admin", help="May also look after the store itself: the admin API.")
    ] = False,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Make an access key for all buckets, or for one. The secret is shown only this once."""
    _stores(settings, endpoint, lambda commands: commands.create_key(bucket, admin_key, as_json))


def _keys_rotate(
    settings: Settings,
    key: _KEY,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the old key; revoke it later.")] = False,
    endpoint: _Endpoint = None,
    as_json: _JSON = False,
) -> None:
    """Replace an access key by a new pair that may do the same. The secret is shown only this once."""
    _stores(settings, endpoint, lambda commands: commands.rotate_key(key, keep, as_json))


def _keys_revoke(settings: Settings, key: _KEY, *, endpoint: _Endpoint = None, as_json: _JSON = False) -> None:
    """Delete an access key."""
    _stores(settings, endpoint, lambda commands: commands.revoke_key(key, as_json))


storage.command("create")(_with_settings(_storage_create, _STORE + _ADDRESS))
origin.command("set")(_with_settings(_origin_set, _DATABASE))
origin.command("show")(_with_settings(_origin_show, _DATABASE))
origin.command("clear")(_with_settings(_origin_clear, _DATABASE))
origin.command("ls")(_with_settings(_origin_ls, _DATABASE))
origin.command("check")(_with_settings(_origin_check, _EGRESS))
origin.command("migrate")(_with_settings(_origin_migrate, _DATABASE))
origin.command("report")(_with_settings(_origin_report, _EGRESS))
buckets.command("set")(_with_settings(_buckets_set, _STORE))
buckets.command("ls")(_with_settings(_buckets_ls, _DATABASE))
buckets.command("show")(_with_settings(_buckets_show, _DATABASE))
app.command("top")(_with_settings(_top, _DATABASE))
queue.command("ls")(_with_settings(_queue_ls, _DATABASE))
queue.command("top")(_with_settings(_queue_top, _DATABASE))
queue.command("show")(_with_settings(_queue_show, _DATABASE))
queue.command("items")(_with_settings(_queue_items, _DATABASE))
queue.command("dead")(_with_settings(_queue_dead, _DATABASE))
queue.command("retry")(_with_settings(_queue_retry, _DATABASE))
queue.command("delay")(_with_settings(_queue_delay, _DATABASE))
queue.command("drop")(_with_settings(_queue_drop, _DATABASE))
queue.command("pause")(_with_settings(_queue_pause, _DATABASE))
queue.command("resume")(_with_settings(_queue_resume, _DATABASE))
queue.command("export")(_with_settings(_queue_export, _DATABASE))
keys.command("ls")(_with_settings(_keys_ls, _DATABASE))
keys.command("create")(_with_settings(_keys_create, _DATABASE))
keys.command("rotate")(_with_settings(_keys_rotate, _DATABASE))
keys.command("revoke")(_with_settings(_keys_revoke, _DATABASE))
cache.command("stat")(_with_settings(_cache_stat, _CACHE))
cache.command("ls")(_with_settings(_cache_ls, _CACHE))
cache.command("warm")(_with_settings(_cache_warm, _CACHE))
cache.command("pin")(_with_settings(_cache_pin, _CACHE))
cache.command("unpin")(_with_settings(_cache_unpin, _CACHE))
cache.command("evict")(_with_settings(_cache_evict, _CACHE))
cache.command("scrub")(_with_settings(_cache_scrub, _CACHE))
nodes.callback()(_with_settings(_nodes_ls, _DATABASE))
nodes.command("drain")(_with_settings(_nodes_drain, _DATABASE))
nodes.command("undrain")(_with_settings(_nodes_undrain, _DATABASE))
nodes.command("remove")(_with_settings(_nodes_remove, _DATABASE))
nodes.command("replace")(_with_settings(_nodes_replace, _DATABASE))
origin.command("back")(_with_settings(_origin_back, _EGRESS))
origin.command("unback")(_with_settings(_origin_unback, _DATABASE))
admin.command("check")(_with_settings(_check, _STORE))
admin.command("backup")(_with_settings(_backup, _STORE))
admin.command("fsck")(_with_settings(_fsck, _STORE))
admin.command("rotate-master-key")(_with_settings(_rotate_master_key, _STORE))
