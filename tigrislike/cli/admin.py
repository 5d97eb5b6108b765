"""`tigrislike admin`: for operators, on the node itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tigrislike.cli.base import STORE, command, fail, group
from tigrislike.config import Settings

admin = group("admin", "For operators, on the node itself.")


@command(admin, "rotate-master-key", STORE)
def rotate_master_key(
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

    Restart every node with the new key right afterwards: until then they answer 503. Keep the old key (it stays beside
    the new one, as master.key.ID): backups made before need it. If this is interrupted, run it again.
    """
    from tigrislike.rotation import RotationError, rotate

    try:
        typer.echo(rotate(settings, new_master_key_file), err=True)
    except RotationError as error:
        fail(str(error))


@command(admin, "fsck", STORE)
def fsck(
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
    from tigrislike.admin.noting import by_command
    from tigrislike.bytecache import BytesError
    from tigrislike.metadata import MetadataError
    from tigrislike.metadata.kv import EngineError
    from tigrislike.node import Node

    async def check() -> tuple[int, int]:
        found = left = 0
        action = "repair" if repair else ""
        async with Node.opened(settings, make=False) as node, by_command(node.metadata, settings, action, {}):
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
        fail(str(error))
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
        fail("--force goes with --abort")
    if target is None and not abort:
        fail("--to is missing: where is the copy to go?")
    try:
        if abort:
            said = run_abort(source, target, force=force)
            typer.echo(json.dumps({"aborted": said}) if as_json else said)
        else:
            assert target is not None
            run_copy(source, target, keep_source=keep_source, as_json=as_json)
    except (CopyError, EngineError, OSError, ValueError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(
            "interrupted; the source takes no writes until the copy is complete (run this again) or given up (--abort)"
        )


@command(admin, "check", STORE)
def check(
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


@command(admin, "backup", STORE)
def backup(
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
        fail(str(error))
    if as_json:
        typer.echo(msgspec.json.encode(made).decode())
    else:
        what = "metadata and " if made.metadata else ""
        typer.echo(f"{what}{made.blocks:,} blocks ({made.bytes:,} bytes) of node {made.node} are in {directory}")
        typer.echo(f"{made.copied_blocks:,} blocks copied, {made.removed_blocks:,} removed", err=True)
        if not with_master_key:
            typer.echo("the master key is not in it: keep a copy of it elsewhere", err=True)
    if made.missing:
        fail(f"{made.missing} blocks that records name are missing from the store: run `tigrislike admin fsck`")
