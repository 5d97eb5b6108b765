"""Client environments: what happens where one cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import cases, client, prepared
from tests.nodes import RunningNode


def test_a_client_that_cannot_be_installed_is_skipped_with_the_reason_in_one_line(
    store: RunningNode, tmp_path: Path
) -> None:
    with pytest.raises(pytest.skip.Exception) as caught:
        client("no-such-client", store, tmp_path)
    reason = str(caught.value)
    assert reason.startswith("make .venvs/no-such-client failed: ")
    assert "\n" not in reason


def test_a_make_that_cannot_be_started_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert prepared(".venvs/another-one").startswith("make .venvs/another-one: ")


def test_the_cases_of_a_program_are_its_public_functions() -> None:
    assert cases("delta_tables.py") == ["create", "append", "check", "optimise"]
