"""The scratch directory of the block store's tests, for the block stores made here."""

from tests.bytecache.conftest import scratch

__all__ = ["scratch"]
