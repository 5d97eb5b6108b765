"""`tigrislike admin rotate-master-key`: a new master key in force, and on disk, whatever interrupts it.

The new key is on disk before the database first uses it, and the old one is replaced only after the database has
stopped using it, so that at every moment a file holds the key that is in force. The old one stays beside it, named by
its id: backups made before open with it alone.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from tigrislike.admin import nodes
from tigrislike.admin.noting import by_command
from tigrislike.config import Settings
from tigrislike.existing import check_database
from tigrislike.metadata.errors import MetadataError, WrongMasterKey
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.secrets import MasterKey


class RotationError(Exception):
    """The rotation is not complete; the message says what to do."""


def rotate(settings: Settings, new_file: Path | None) -> str:
    """Rotate, or complete a rotation that was interrupted; a sentence for the operator.

    Args:
        new_file: of the new key, made if absent; None replaces the configured key file, and keeps what it held as
            `<file>.<key id>`.

    Raises:
        RotationError
    """
    path = settings.master_key_path if not settings.master_key else None
    replaces = new_file is None
    if new_file is None:
        if path is None:
            raise RotationError("the master key is not in a file: name the new one's with --new-master-key-file")
        new_file = path.with_name(path.name + ".new")
    try:
        check_database(settings)
        old = MasterKey.load(settings.master_key or None, settings.master_key_path, create=False)
        new = MasterKey.load(None, new_file, create=True)
        if old.id == new.id:
            raise RotationError(f"the key in {new_file} is in force already")
        try:
            asyncio.run(_rotate(settings, new))
        except WrongMasterKey:
            # An earlier run may have got as far as the database, but not to the file.
            asyncio.run(_open(replace(settings, master_key="", master_key_file=new_file)))
    except (MetadataError, EngineError, OSError, ValueError) as error:
        raise RotationError(str(error)) from error
    if replaces:
        assert path is not None
        _keep(old, path.with_name(f"{path.name}.{old.id.hex()}"))
        new_file.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        new_file = path
    return f"master key {new.id.hex()} is in force, in {new_file}; restart every node with it"


def _keep(old: MasterKey, file: Path) -> None:
    try:
        kept = old.write_file(file)
    except (OSError, WrongMasterKey) as error:
        raise RotationError(f"the old key cannot be kept in {file}: {error}; run this again to finish") from error
    if kept.id != old.id:
        raise RotationError(f"{file} holds another key than the old one: move it away, and run this again to finish")


async def _rotate(settings: Settings, new: MasterKey) -> None:
    told = {"key": new.id.hex()}
    async with nodes.opened(settings) as metadata, by_command(metadata, settings, "rotate_master_key", told):
        await metadata.rotate_master_key(new)


async def _open(settings: Settings) -> None:
    async with nodes.opened(settings):
        pass
