"""The console in a real browser, on a real node on which things are wrong: Debian's Chromium, driven by Playwright.

`--console-pictures FOLDER` keeps the pictures that the documentation shows.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin.scene import BUSY, FLOOD, MODELS, POISONED_KEY, STUCK, WHY
from tests.admin.stage import Stage, staged
from tests.clients.environments import Client, client
from tigrislike.console.views import PAGES

pytestmark = [pytest.mark.slow, pytest.mark.sqlite, pytest.mark.timeout(600)]

SEED = int.from_bytes(os.urandom(4), "big")
CHROMIUM = Path("/usr/bin/chromium")
PROGRAM = "console_chromium.py"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if not CHROMIUM.exists():
        pytest.skip(f"Debian's chromium is not installed: there is no {CHROMIUM}")
    with staged(tmp_path_factory.mktemp("stage"), SEED, flood=1000) as stage:
        yield stage


@pytest.fixture
def chromium(stage: Stage, tmp_path: Path) -> Client:
    return client("console", stage.node, tmp_path)


@pytest.fixture
def told(stage: Stage, tmp_path: Path) -> Path:
    """What the program is told of the stage: see there."""
    file = tmp_path / "told.json"
    file.write_text(json.dumps({"url": stage.node.endpoint, "pages": pages(stage), "dialogs": dialogs(stage)}))
    return file


def pages(stage: Stage) -> dict[str, str]:
    """Every page there is, by a name: its path below the console."""
    scene = stage.scene
    item, zone = scene.poisoned, f"{scene.stuck_zone}"
    return {
        "overview": "/",
        "queue": "/queue",
        "queue-by-bucket": "/queue?by=bucket",
        "zones": "/queue/zones",
        "zones-of-a-region": f"/queue/zones?region={STUCK}",
        "zone": f"/queue/zones/{zone}",
        "no-zone": "/queue/zones/mars%2Fnothing",
        "items": f"/queue/items?bucket={FLOOD}",
        "items-of-none": "/queue/items?error=nothing%20like%20it",
        "items-of-a-region-that-is-not": "/queue/items?region=mars",
        "item": f"/queue/items/{item}",
        "no-item": "/queue/items/00.00",
        "dead": "/queue/dead",
        "nodes": "/nodes",
        "slow": "/slow",
        "settings": "/settings",
        "audit": "/audit",
        "nothing": "/no/such/page",
        "ask-retry": f"/queue/items/{item}/retry",
        "ask-drop": f"/queue/items/{item}/drop",
        "ask-delay": f"/queue/items/{scene.migrate}/delay",
        "ask-delay-of-a-dead-one": f"/queue/items/{item}/delay",
        "ask-retry-dead": "/queue/dead/retry",
        "ask-pause": f"/queue/pause?zone={BUSY}%2F{FLOOD}",
        "ask-resume": f"/queue/resume?region={STUCK}",
    }


def dialogs(stage: Stage) -> dict[str, tuple[str, str]]:
    """The dialogs, by a name: a page, and the text of the link that asks."""
    scene = stage.scene
    return {
        "dialog-retry": (f"/queue/items/{scene.poisoned}", "Retry"),
        "dialog-drop": (f"/queue/items/{scene.poisoned}", "Drop"),
        "dialog-delay": (f"/queue/items/{scene.migrate}", "Delay"),
        "dialog-retry-dead": ("/queue/dead", "Retry all"),
        "dialog-pause": (f"/queue/zones/{scene.stuck_zone}", "Pause zone"),
    }


MAIN = ("overview", "queue", "zone", "item", "dead", "nodes")
"""What the documentation shows."""


def test_every_page_has_an_address_here(stage: Stage) -> None:
    """So that no page is left out below."""
    paths = [path.partition("?")[0] for path in pages(stage).values()]
    left_out = [
        page.path
        for page in PAGES
        if page.method == "GET" and page.template and not any(page.pattern.fullmatch(path) for path in paths)
    ]
    assert left_out == []


def test_axe_finds_no_violation(chromium: Client, told: Path, tmp_path: Path) -> None:
    undecided = tmp_path / "undecided.json"
    print(chromium.case(PROGRAM, "axe", str(told), str(undecided)))
    print(undecided.read_text())


def test_pictures_at_three_widths(
    stage: Stage, chromium: Client, told: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kept = request.config.getoption("--console-pictures")
    shown = json.loads(told.read_text())
    shown["pages"] = {name: shown["pages"][name] for name in MAIN}
    told.write_text(json.dumps(shown))
    folder = tmp_path / "pictures"
    folder.mkdir()
    chromium.case(PROGRAM, "pictures", str(told), str(folder), str(int(bool(kept))))
    taken = sorted(folder.iterdir())
    assert len(taken) == len(MAIN) * 3 * 2
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        for file in taken:
            shutil.copy(file, kept)


# What follows changes the stage: it comes last, in this order.


def test_the_oldest_stuck_item_is_found_retried_and_drains(stage: Stage, chromium: Client) -> None:
    before = len(stage.origin.requests)
    print(chromium.case(PROGRAM, "solve", stage.node.endpoint, WHY, MODELS))
    assert any(request.key == POISONED_KEY for request in stage.origin.requests[before:]), "its bytes are here now"


def test_a_stuck_region_is_seen_to_drain(stage: Stage, chromium: Client) -> None:
    program = Path(__file__).parents[1] / "clients" / "programs" / PROGRAM
    with chromium.start("python", str(program), "drain", stage.node.endpoint) as looking:
        assert looking.stdout is not None
        said = looking.stdout.readline()
        if said == b"looking\n":
            with stage.second():
                rest, _ = looking.communicate(timeout=120)
        else:
            rest, _ = looking.communicate(timeout=120)
        assert looking.returncode == 0, (said + rest).decode()
