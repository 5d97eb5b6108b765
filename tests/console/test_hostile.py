"""What is stored is hostile: an HTML and an SVG object, opened in a Chromium that is signed in to the console, can
neither read the console nor act through it or the admin API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.admin.stage import Stage, staged
from tests.clients.environments import client
from tests.console.test_chromium import CHROMIUM, s3_of
from tigrislike.admin.client import RemoteApi

pytestmark = [pytest.mark.slow, pytest.mark.sqlite, pytest.mark.timeout(300)]

SEED = int.from_bytes(os.urandom(4), "big")
PROGRAM = "console_hostile.py"
BUCKET = "uploads"
SCRIPT = Path(__file__).with_name("hostile.js")


def hostile(told: dict[str, Any], script: str) -> dict[str, tuple[bytes, str]]:
    """Objects by their keys, with their types: the script in HTML and in SVG, and what does without a script."""
    drop = f"{told['console']}/queue/items/{told['item']}/drop"
    page = f"""<!doctype html><title>hostile</title>
<form id="form" method="post" action="{drop}"><button>Win a prize</button></form>
<a id="link" href="{told["console"]}/">A look</a>
<iframe id="frame" src="{told["console"]}/"></iframe>
<object data="{told["console"]}/"></object>
<link rel="stylesheet" href="{told["console"]}/">
<script>{script}</script>"""
    picture = f"""<svg xmlns="http://www.w3.org/2000/svg" width="200" height="200"><rect width="99" height="99"/>
<foreignObject width="200" height="100"><body xmlns="http://www.w3.org/1999/xhtml">
<form id="form" method="post" action="{drop}"><button>Win a prize</button></form></body></foreignObject>
<script><![CDATA[{script}]]></script></svg>"""
    return {"page.html": (page.encode(), "text/html"), "picture.svg": (picture.encode(), "image/svg+xml")}


@pytest.mark.parametrize("listeners", ["one listener", "a listener of its own"])
def test_an_object_can_neither_read_the_console_nor_act_through_it(listeners: str, tmp_path: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"Debian's chromium is not installed: there is no {CHROMIUM}")
    shared = listeners == "one listener"
    facts_to = tmp_path / "facts.json"
    flags = [] if shared else ["--admin-listen=127.0.0.1:0"]
    with staged(tmp_path / "stage", SEED, *flags, flood=20, facts_to=facts_to) as stage:
        at = stage.node.endpoint if shared else json.loads(facts_to.read_text())["admin_endpoint"]
        told: dict[str, Any] = {
            "admin": at,
            "console": f"{at}/_tigrislike/console",
            "api": f"{at}/_tigrislike/admin/v1",
            "item": stage.scene.poisoned,
            "bucket": BUCKET,
            "sandboxed": shared,
        }
        names = {"CONSOLE": told["console"], "API": told["api"], "ITEM": told["item"]}
        script = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in names.items()) + SCRIPT.read_text()
        s3 = s3_of(stage.node)
        s3.create_bucket(Bucket=BUCKET)
        told["objects"] = {}
        for key, (data, kind) in hostile(told, script).items():
            s3.put_object(Bucket=BUCKET, Key=key, Body=data, ContentType=kind)
            told["objects"][key] = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key})
        s3.close()
        told["script"] = script
        file = tmp_path / "told.json"
        file.write_text(json.dumps(told))
        before = state(stage, at)
        print(client("console", stage.node, tmp_path).case(PROGRAM, "attack", str(file)))
        assert state(stage, at) == before


def state(stage: Stage, at: str) -> Any:
    """What an attack would change: the audit log, and the item."""
    api = RemoteApi(at, stage.node.access_key_id, stage.node.secret_access_key)
    with contextlib.closing(api):
        shown = asyncio.run(api.call("item", item=stage.scene.poisoned))
        return asyncio.run(api.call("audit")).entries, shown.state, shown.attempts, len(shown.history)
