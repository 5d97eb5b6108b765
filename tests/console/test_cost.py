"""What an open console costs the node that it looks at: five windows of the same reads with it, and five without."""

from __future__ import annotations

import http.client
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import TOLD
from tests.nodes import RunningNode

from .browser import Browser
from .conftest import Scenery

WINDOW_S = 8.0
PAIRS = 5


def cpu_s(node: RunningNode) -> float:
    """What all processes of the node have computed so far."""
    ticks = 0
    for pid in node.children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read_for_a_while(node: RunningNode, link: str) -> float:
    """Seconds of computing for each of the reads of one object, over one connection."""
    parts = urlsplit(link)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    reads, began_s, until_s = 0, cpu_s(node), time.monotonic() + WINDOW_S
    while time.monotonic() < until_s:
        connection.request("GET", f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (200, 4096)
        reads += 1
    connection.close()
    return (cpu_s(node) - began_s) / reads


def look_on(operator: Browser, stop: threading.Event) -> None:
    """At the first page, as the console's script does."""
    etag = None
    while not stop.is_set():
        answer = operator.get("/", X_Live="1", If_None_Match=etag)
        assert answer.status in (200, 304)
        etag = answer.headers["etag"]
        stop.wait(float(answer.headers["x-again-after"]))


@pytest.mark.slow
def test_an_open_console_costs_next_to_nothing(
    scenery: Scenery, record_property: Callable[[str, object], None]
) -> None:
    node = scenery.node
    s3 = node.client(s3={"addressing_style": "path"})
    s3.create_bucket(Bucket="read-again-and-again")
    s3.put_object(Bucket="read-again-and-again", Key="object", Body=b"x" * 4096)
    given = {"Bucket": "read-again-and-again", "Key": "object"}
    link = s3.generate_presigned_url("get_object", Params=given, ExpiresIn=3600)
    operator = scenery.operator()
    operator.get("/")  # templates are made once
    read_for_a_while(node, link)
    ratios = []
    for pair in range(PAIRS):
        alone = watched = 0.0
        for with_console in (False, True) if pair % 2 else (True, False):
            if not with_console:
                alone = read_for_a_while(node, link)
                continue
            stop = threading.Event()
            thread = threading.Thread(target=look_on, args=(operator.another(), stop))
            thread.start()
            try:
                watched = read_for_a_while(node, link)
            finally:
                stop.set()
                thread.join()
        ratios.append(watched / alone)
    median = statistics.median(ratios)
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    record_property(TOLD, f"CPU of a GET with an open console to that without: median {median:.3f} of {shown}")
    assert median <= 1.05
