"""`cache warm s3://bucket` as a process, with a source: `python -m tests.admin.warming DATA PRISTINE [READS]`.

After READS reads the source gives nothing any more, and "stuck" is printed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.admin.pristine import Pristine, settings_of
from tigrislike.admin import cache_commands
from tigrislike.admin.cache import Target
from tigrislike.admin.cache_commands import CacheError
from tigrislike.node import Node


class Told(Pristine):
    """Says on standard output that it is stuck."""

    async def tell(self) -> None:
        await self.stuck.wait()
        print("stuck", flush=True)


def main() -> int:
    data, pristine, *rest = sys.argv[1:]
    limit = int(rest[0]) if rest else None

    async def command(node: Node) -> int:
        telling = asyncio.create_task(source.tell())
        try:
            return await cache_commands.warm(Target("bucket"), True)(node)
        finally:
            telling.cancel()

    source = Told(Path(pristine), limit)
    try:
        return cache_commands.run(settings_of(Path(data)), command, open_source=lambda _: source)
    except CacheError as error:
        print(f"tigrislike: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
