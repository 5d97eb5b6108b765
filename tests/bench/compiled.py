"""The load generator for tests that run it: it is C, and `make test` is to pass where there is no compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.loadgen import BUILDS, compile_loadgen


def compiled_or_skip(directory: Path = BUILDS) -> Path:
    """The program, compiled unless it has been; without a compiler the test that asks is skipped."""
    try:
        return compile_loadgen(directory)
    except FileNotFoundError:
        pytest.skip("no C compiler: the load generator needs cc (Debian: gcc, libc6-dev)")
