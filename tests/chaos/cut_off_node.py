"""`python -m tests.chaos.cut_off_node`: `tigrislike serve` whose way to its database can be cut.

While the file that CUT_WHILE names is there, nothing reaches the database: the engine says so at once, or, where the
file says `hang`, keeps everybody waiting.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tigrislike import node
from tigrislike.cli import main
from tigrislike.metadata.kv import Engine, EngineUnavailable, Faults, open_engine

VARIABLE = "CUT_WHILE"
COMMAND = [sys.executable, "-m", "tests.chaos.cut_off_node"]
FOR_EVER_S = 1e6


class CutWhile(Faults):
    """Faults for as long as a file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        super().__init__()

    @property
    def read_delay_s(self) -> float:
        return FOR_EVER_S if self._file.exists() else 0.0

    @read_delay_s.setter
    def read_delay_s(self, value: float) -> None:
        """The file says."""

    def check_reachable(self) -> None:
        if self._file.exists() and self._file.read_text() != "hang":
            raise EngineUnavailable(f"cut off while {self._file.name} is there")


async def open_cuttable(url: str, **options: Any) -> Engine:
    return await open_engine(url, **options, faults=CutWhile(Path(os.environ[VARIABLE])))


if __name__ == "__main__":
    node.open_engine = open_cuttable  # type: ignore[attr-defined]
    sys.argv.insert(1, "serve")
    main()
