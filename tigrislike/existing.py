"""What has to be there before a command works on it: only `serve` and `storage create` make a store.

A slip in --data-dir would else found an empty store, and say that all is well with it.
"""

from __future__ import annotations

from tigrislike.config import Settings


def check_database(settings: Settings) -> None:
    """Refuse an SQLite file that is not there. Raises FileNotFoundError."""
    database = settings.sqlite_path
    if database is not None and not database.is_file():
        raise FileNotFoundError(f"there is no store in {database.parent}: which --data-dir is it?")


def check_store(settings: Settings) -> None:
    """Refuse a database, or a node's cache directory, that is not there. Raises FileNotFoundError."""
    check_database(settings)
    if not (settings.cache_dir / "format.json").is_file():
        raise FileNotFoundError(f"{settings.cache_dir} is no cache directory: which --data-dir or --cache-dir is it?")
