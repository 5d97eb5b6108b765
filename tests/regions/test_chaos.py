"""Faults of all kinds under load. REGIONS_SEED repeats a run, as far as processes can be repeated; REGIONS_SECONDS is
how long it is."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.regions.chaos import Faults, judge, load
from tests.regions.regions import regions

CLIENTS = 4
FLAGS = ("--dead-after=6s", "--repair-after=8s", "--queue-item-lease=5s", "--queue-max-back-off=5s")


def chaos(directory: Path, default_s: float) -> None:
    seed = int(os.environ.get("REGIONS_SEED") or random.randrange(1 << 32))
    seconds = float(os.environ.get("REGIONS_SECONDS") or default_s)
    print(f"REGIONS_SEED={seed} REGIONS_SECONDS={seconds:g}")
    rng = random.Random(seed)
    with regions(directory, "a", "b", "c", flags=FLAGS) as store:
        begun_s = time.monotonic()
        with load(store, seed, CLIENTS) as clients:
            faults = Faults(store, clients, rng)
            for _ in faults.each_once():
                faults.go_on(rng.uniform(1, 4))
            while time.monotonic() - begun_s < seconds:
                faults.one()
                faults.go_on(rng.uniform(1, 4))
            faults.last()
        print("  faults:", dict(faults.happened))
        judge(store, clients, faults.wiped)


@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_while_regions_fail(tmp_path: Path) -> None:
    chaos(tmp_path / "store", 120)


@pytest.mark.soak
def test_half_an_hour_of_failing_regions(tmp_path: Path) -> None:
    chaos(tmp_path / "store", 1800)
