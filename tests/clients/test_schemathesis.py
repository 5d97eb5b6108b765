"""schemathesis asks the admin API whatever its OpenAPI document allows, and what it does not allow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import client
from tests.nodes import RunningNode, running_node

pytestmark = pytest.mark.slow

SEED = int.from_bytes(os.urandom(4), "big")
EXAMPLES = 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    """A node of its own: whatever can be changed is."""
    with running_node(tmp_path / "data") as node:
        yield node


def test_what_is_answered_is_what_the_document_says(node: RunningNode, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    program = client("schemathesis", node, tmp_path)
    said = program.case("admin_schema.py", "everything", node.endpoint, str(SEED), str(EXAMPLES))
    asked = re.search(r"asked (\d+) times", said)
    assert asked is not None
    assert int(asked[1]) > 24 * EXAMPLES, said
