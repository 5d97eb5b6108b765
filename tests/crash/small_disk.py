"""`tigrislike` on a disk whose space a test decides: run as `python -m tests.crash.small_disk serve ...`.

The file named by DISK_SPACE_FILE holds two numbers, the size of the volume and what is available on it, both in bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

from tigrislike.bytecache.filesystem import FileSystem, Space
from tigrislike.cli import main


def _space(self: FileSystem, path: str) -> Space:
    total, available = Path(os.environ["DISK_SPACE_FILE"]).read_text().split()
    return Space(int(total), int(available))


if __name__ == "__main__":
    FileSystem.space = _space  # type: ignore[method-assign]
    main()
