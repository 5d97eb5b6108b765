"""A running node with the operators' scene in its store, and somebody who is signed in to its console."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.admin import scene
from tests.admin.scene import HERE, Scene
from tests.nodes import RunningNode, engine_settings, running_node
from tigrislike.metadata import MasterKey
from tigrislike.metadata.kv import open_engine

from .browser import Browser

SEED = int.from_bytes(os.urandom(4), "big")


@dataclass
class Scenery:
    node: RunningNode
    scene: Scene

    def browser(self) -> Browser:
        return Browser(self.node.endpoint, self.node.ca_bundle)

    def operator(self) -> Browser:
        browser = self.browser()
        assert browser.sign_in(self.node.access_key_id, self.node.secret_access_key).status == 303
        return browser


@pytest.fixture(scope="session")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenery]:
    data_dir: Path = tmp_path_factory.mktemp("scenery") / "data"
    data_dir.mkdir()

    async def build() -> Scene:
        where = engine_settings(data_dir)
        master = MasterKey.load(None, where.get("master_key_file", data_dir / "master.key"), create=True)
        engine = await open_engine(where.get("metadata", f"sqlite://{data_dir / 'metadata.db'}"))
        try:
            return await scene.build(engine, master, SEED, flood=300)
        finally:
            await engine.close()

    made = asyncio.run(build())
    with running_node(data_dir, f"--region={HERE}", "--slow-request=1ms") as node:
        yield Scenery(node, made)


@pytest.fixture
def browser(scenery: Scenery) -> Browser:
    return scenery.browser()


@pytest.fixture
def operator(scenery: Scenery) -> Browser:
    return scenery.operator()
