"""The supervisor, with children that die when the test says so."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import os, sys, signal, time
from tigrislike.supervisor import Role, Supervisor
import tigrislike.supervisor as supervisor

out = lambda text: os.write(1, text.encode() + b"\\n")
how = sys.argv[1]

stopped = []

def heed_stop():
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))

def wait():
    while not stopped:
        time.sleep(0.01)

def agent(announce, lifeline):
    out("agent starts")
    if how == "agent fails":
        raise RuntimeError("no disk")
    heed_stop()
    announce({"fact": 1})
    wait()
    out("agent stops")
    return 0

def front(announce, lifeline):
    if how == "front fails":
        return 3
    out("front starts")
    heed_stop()
    announce({})
    if how == "front dies young":
        time.sleep(0.02)
        os._exit(9)
    wait()
    if how == "front hangs":
        time.sleep(60)
    out("front stops")
    return 0

roles = [Role("agent", agent), Role("front", front, front=True, on_exit=lambda: out("front is gone"))]
# Long enough for a busy machine; short where a child is to be cut off.
supervisor._STOP_GRACE_S = 0.2 if how == "front hangs" else 20
status = Supervisor(roles, 0.2, lambda facts: out(f"ready {facts['agent']['fact']}"), lambda: out("stopping")).run()
out(f"status {status}")
"""


class Run:
    def __init__(self, how: str) -> None:
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
        )
        self.lines: list[str] = []

    def wait_for(self, line: str, times: int = 1) -> None:
        assert self.process.stdout is not None
        end = time.monotonic() + 30
        while self.lines.count(line) < times:
            assert time.monotonic() < end, self.lines
            readable, _, _ = select.select([self.process.stdout], [], [], 1.0)
            if readable:
                data = os.read(self.process.stdout.fileno(), 65536).decode()
                assert data, self.lines
                self.lines += data.splitlines()

    def end(self) -> list[str]:
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().decode().splitlines()
        self.process.stdout.close()
        self.process.wait(30)
        return self.lines


def test_children_start_in_order_and_the_front_stops_first() -> None:
    run = Run("well")
    run.wait_for("ready 1")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == [
        "agent starts",
        "front starts",
        "ready 1",
        "stopping",
        "front stops",
        "front is gone",
        "agent stops",
        "status 0",
    ]


def test_a_first_child_that_cannot_start_ends_it() -> None:
    assert Run("agent fails").end() == ["agent starts", "stopping", "status 1"]


def test_a_later_child_that_cannot_start_ends_it_and_the_first_is_stopped() -> None:
    lines = Run("front fails").end()
    assert "ready 1" not in lines
    assert lines[-2:] == ["agent stops", "status 1"]


def test_a_child_that_keeps_dying_young_is_started_again_with_growing_pauses() -> None:
    run = Run("front dies young")
    began = time.monotonic()
    run.wait_for("front starts", 4)
    assert time.monotonic() - began >= 0.2 + 0.4 + 0.8
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[-1] == "status 0"


def test_a_child_that_does_not_stop_in_time_is_killed_and_the_status_says_so() -> None:
    run = Run("front hangs")
    run.wait_for("ready 1")
    run.process.send_signal(signal.SIGTERM)
    lines = run.end()
    assert "front stops" not in lines
    assert lines[-1] == "status 1"
