"""`python -m tests.regions.stepped_node`: `tigrislike serve` on a machine whose clock is set wrong, while it runs too.

The file that CLOCK_OFF_BY names says by how many nanoseconds, as a native 8-byte integer that the processes of the node
map into their memory. Only the wall clock is moved, as by an operator or NTP: what the kernel counts goes on.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

VARIABLE = "CLOCK_OFF_BY"
COMMAND = [sys.executable, "-m", "tests.regions.stepped_node"]


def set_clock(file: Path, off_ns: int) -> None:
    """Make the clock of the nodes that look at `file` wrong by `off_ns`; 0 makes it right."""
    with file.open("r+b" if file.exists() else "x+b") as opened:
        opened.write(off_ns.to_bytes(8, sys.byteorder, signed=True))


def step_clock(file: Path) -> None:
    """Let this process, and those that it forks, see the time as `file` says."""
    with file.open("rb") as opened:
        off_ns = memoryview(mmap.mmap(opened.fileno(), 8, prot=mmap.PROT_READ)).cast("q")
    true_ns = time.time_ns
    time.time_ns = lambda: true_ns() + off_ns[0]
    time.time = lambda: time.time_ns() / 1e9


if __name__ == "__main__":
    step_clock(Path(os.environ[VARIABLE]))
    from tigrislike.cli import main

    sys.argv.insert(1, "serve")
    main()
