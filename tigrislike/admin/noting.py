"""What operators' commands do on the database, noted in the audit log as what is asked of the admin API is.

Commands that call the admin API's functions are noted there (`api.perform`); this is for all others.
"""

from __future__ import annotations

import contextlib
import getpass
import os

from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata.auditing import Actor, noted


def local_actor() -> Actor:
    """The user of this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return Actor(f"local:{user}", os.uname().nodename)


def by_command(
    metadata: Metadata, settings: Settings, action: str, arguments: object
) -> contextlib.AbstractAsyncContextManager[None]:
    """Note what the `with` block does, by the user of this machine; without an `action` it only looks, and nothing is.

    Args:
        arguments: kept as JSON: nothing secret.
    """
    if not action:
        return contextlib.nullcontext()
    return noted(metadata.engine, metadata.context, settings.audit_retention_s, local_actor(), action, arguments)
