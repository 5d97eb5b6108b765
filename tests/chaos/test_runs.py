"""What is said of a run, held against records that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import Record
from tests.chaos.runs import Fault, Run, S, assert_faults_bit


def run_with(fault: Fault) -> Run:
    load: Any = None
    return Run(load, Path(), begun_ns=0, faults=[fault])


def served_at(*seconds: float) -> list[Record]:
    return [Record(0, "get", "key", int((at - 0.01) * S), int(at * S), 200) for at in seconds]


def test_a_fault_is_told_from_one_that_nobody_noticed() -> None:
    run = run_with(Fault("stopped", 10 * S, silence_s=10, ended_ns=20 * S))
    assert_faults_bit(run, served_at(9, 10.5, 20.5, 21))
    with pytest.raises(AssertionError, match="served during stopped"):
        assert_faults_bit(run, served_at(9, 10.5, 15, 20.5, 21))


def test_a_fault_that_others_serve_through_need_not_be_noticed() -> None:
    assert_faults_bit(run_with(Fault("one stopped", 10 * S, ended_ns=20 * S)), served_at(9, 15, 21))
