"""Where the metadata are of regions that run on one machine, and what lies between it and them.

It stands in one region; the others are a round trip away and can be cut off. Over SQLite that is made up by an engine
that waits (`tigrislike/metadata/kv/distance.py`). Over FoundationDB it is the link's doing: every other region is a
network namespace, in which the link has the addresses of the cluster's processes, and what the region has to say to
these shares its wires with all else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from lab.link import call
from lab.namespaces import Namespace
from tigrislike.admin.check import read_status
from tigrislike.metadata.kv import Transaction, open_engine


class Database(Protocol):
    """Metadata at a distance.

    Attributes:
        url: for whoever is where the database is.
        link_flags: what `python -m lab.link` needs to know of it.
    """

    url: str
    link_flags: list[str]

    def url_from(self, region: str) -> str:
        """For the nodes of a region."""

    def command(self, region: str) -> list[str]:
        """What, before a command, runs it in a region."""

    def cut(self, region: str) -> None:
        """Cut a region off from it."""

    def heal(self, region: str) -> None:
        """Undo that, if it was done."""

    def close(self) -> None:
        """Leave nothing of it behind. Nothing may run in its regions any more."""


class SqliteFile:
    """A file in `root`, which is removed with it.

    Args:
        home: the region that it is near to; None: to none.
    """

    def __init__(self, root: Path, home: str | None, round_trip_s: float) -> None:
        self.url = f"sqlite://{quote(str(root / 'metadata.db'))}"
        self.link_flags: list[str] = []
        self._root = root
        self._home = home
        self._round_trip_s = round_trip_s

    def url_from(self, region: str) -> str:
        if region == self._home:
            return self.url
        far = f"round-trip={1000 * self._round_trip_s:.0f}ms&" if self._round_trip_s else ""
        return f"{self.url}?{far}cut-while={quote(str(self._cut_while(region)))}"

    def command(self, region: str) -> list[str]:
        return []

    def cut(self, region: str) -> None:
        self._cut_while(region).touch()

    def heal(self, region: str) -> None:
        self._cut_while(region).unlink(missing_ok=True)

    def close(self) -> None:
        pass

    def _cut_while(self, region: str) -> Path:
        return self._root / f"{region}.cut"


class Cluster:
    """A prefix of a FoundationDB cluster that runs on this machine, at addresses of 127.0.0.0/8.

    Args:
        url: the cluster and the prefix. What is there is cleared in the end.
        home: the region that it is in.
        regions: those that it is far from.
        control: the control socket that the link will have.

    Raises:
        EngineUnavailable: it does not answer.
        PermissionError: this process may not make network namespaces.
    """

    def __init__(self, url: str, home: str, regions: Sequence[str], control: Path) -> None:
        self.url = url
        asyncio.run(_reach(url))
        processes = json.loads(read_status(url))["cluster"]["processes"]
        self._home = home
        self._control = control
        self._namespaces = {region: Namespace() for region in regions}
        self.link_flags = [f"--namespace={region}={each.path}" for region, each in self._namespaces.items()]
        self.link_flags += [f"--inside={home}={process['address']}" for process in processes.values()]

    def url_from(self, region: str) -> str:
        return self.url

    def command(self, region: str) -> list[str]:
        return self._namespaces[region].command if region in self._namespaces else []

    def cut(self, region: str) -> None:
        state = {"established": "reset", "arriving": "refuse"}
        call(self._control, "partition", source=region, destination=self._home, **state)

    def heal(self, region: str) -> None:
        call(self._control, "heal", source=region, destination=self._home)

    def close(self) -> None:
        for namespace in self._namespaces.values():
            namespace.close()
        asyncio.run(_clear(self.url))


async def _reach(url: str) -> None:
    await (await open_engine(url)).close()


async def _clear(url: str) -> None:
    engine = await open_engine(url)

    async def clear(tr: Transaction) -> None:
        tr.clear_range(engine.prefix, engine.prefix[:-1] + bytes([engine.prefix[-1] + 1]))

    try:
        await engine.transact_past_seal(clear)
    finally:
        await engine.close()
