"""`tigrislike serve` of a node whose blocks somebody else has too: `python -m tests.server.node_with_source FLAGS`.

The directory of the pristine blocks is named by the environment, and how many reads they are good for.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from tests.admin.pristine import Pristine
from tigrislike import server
from tigrislike.cli import main
from tigrislike.node import Node

VARIABLE = "PRISTINE_BLOCKS"
READS_VARIABLE = "PRISTINE_READS"


def open_source(node: Node) -> Pristine:
    reads = os.environ.get(READS_VARIABLE)
    return Pristine(Path(os.environ[VARIABLE]), int(reads) if reads is not None else None)


if __name__ == "__main__":
    server.serve = partial(server.serve, open_source=open_source)  # type: ignore[assignment]
    sys.argv.insert(1, "serve")
    main()
