"""The command line: `serve`, `edge`, `storage create`, `version`, `top`; `buckets`: `ls`, `show`, `set`; `origin`:
`set`, `show`, `clear`, `ls`, `check`, `migrate`, `report`, `back`, `unback`; `queue`: `ls`, `top`, `show`, `items`,
`dead`, `retry`, `delay`, `drop`, `pause`, `resume`, `export`; `keys`: `ls`, `create`, `rotate`, `revoke`; `cache`:
`stat`, `ls`, `warm`, `pin`, `unpin`, `evict`, `scrub`; `nodes` (the table): `drain`, `undrain`, `remove`, `replace`;
and `admin`: `check`, `fsck`, `backup`, `copy-metadata`, `rotate-master-key`.

A group of commands is a module here: it says what flags there are, and calls what does the work. Each command imports
what it needs when it runs, so that `--help` and `version` answer at once. What a command prints to standard output is
meant for pasting or parsing; everything else goes to standard error. Exit status: 0 done, 1 refused or failed (with one
line that says why), 2 a command line that makes no sense; `admin check` and `queue ls --check` add 3.
"""

from __future__ import annotations

import os

from tigrislike.cli import admin, buckets, cache, keys, nodes, origins, queue, serving, top
from tigrislike.cli.base import app

__all__ = ["admin", "app", "buckets", "cache", "keys", "main", "nodes", "origins", "queue", "serving", "top"]


def main() -> None:
    """The entry point of the `tigrislike` script."""
    os.umask(0o077)  # whatever a command makes holds someone's objects or keys
    app()
