"""The console in Chromium. Run by tests/console/test_chromium.py with the Python that has Playwright and axe-core.

Arguments: the case, then what it says; an admin key is in the environment. What several cases are told is a JSON file:
`url` of the node, `pages` (paths below the console, by name), `dialogs` (a page and the text of the link that asks).
"""

import json
import sys
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from browsing import PREFIX, chromium, sign_in, signed_in, watched

TAGS = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]
THEMES = ["light", "dark"]


def _told(path):
    return json.loads(Path(path).read_text())


# --- finding what is stuck


def solve(url, error, subject):
    """Sign in, go to the oldest dead letter in at most three clicks, read why, retry it, and see it drain."""
    with chromium() as browser, signed_in(browser, url) as page:
        clicks = 0

        def click(link):
            nonlocal clicks
            clicks += 1
            link.click()

        page.get_by_text("dead letters", exact=False).first.wait_for()
        click(page.locator("#region-iad").get_by_role("link", name="1", exact=True).last)
        page.get_by_role("heading", name="Dead letters", level=1).wait_for()
        click(page.locator("tbody tr").first.get_by_role("link").first)
        page.get_by_role("heading", name="Why it failed").wait_for()
        assert clicks <= 3, clicks
        assert page.get_by_label("Latest error").inner_text() == error
        assert subject in page.locator("main").inner_text()
        page.get_by_role("link", name="Retry", exact=True).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Retry").click()
        page.locator("main").get_by_role("status").first.wait_for()
        # It drains before the eyes of whoever looks: the page refreshes by itself, and says so when it is gone.
        page.get_by_role("heading", name="It is gone").wait_for(timeout=60_000)
        page.goto(PREFIX + "/queue/dead?region=iad")
        page.get_by_text("There is none.").wait_for()
        page.goto(PREFIX + "/")
        page.locator("#region-iad").get_by_text("OK", exact=True).wait_for(timeout=60_000)
    print(f"{clicks} clicks from the overview to the item")


def drain(url):
    """Look at the overview while a region that was stuck gets a node: it shows what happens, without being touched."""
    with chromium() as browser, signed_in(browser, url) as page:
        region = page.locator("#region-sjc")
        region.get_by_text("Stuck", exact=True).wait_for()
        print("looking", flush=True)
        region.get_by_text("Attention", exact=True).wait_for(
            timeout=90_000
        )  # the nodes that are gone are still told of
        region.get_by_text("1 of 3").wait_for()
        assert "Oldest" not in region.inner_text(), "nothing is due there any more"


# --- accessibility


class _Looking:
    """What axe said so far: `violations`, and what it left `undecided`, by rule and element, with the pages."""

    def __init__(self):
        self.times = 0
        self.violations = []
        self.undecided = {}

    def look(self, page, name):
        options = {"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations", "incomplete", "passes"]}
        found = Axe().run(page, options=options).response
        self.times += 1
        assert found["passes"], f"axe looked at nothing on {name}"
        for rule in found["violations"]:
            for node in rule["nodes"]:
                self.violations += [f"{name}: {rule['id']}: {node['html'][:200]}: {node['failureSummary']}"]
        for rule in found["incomplete"]:
            each = self.undecided.setdefault(rule["id"], {"help": rule["help"], "nodes": {}})
            for node in rule["nodes"]:
                each["nodes"].setdefault(node["html"][:200], []).append(name)


def axe(told, output):
    """No page, dialog or error has a violation, in either theme; what axe cannot decide is written to `output`."""
    told = _told(told)
    looking = _Looking()
    with chromium() as browser:
        for theme in THEMES:
            with watched(browser, told["url"], color_scheme=theme) as page:
                page.goto(PREFIX + "/sign-in")
                looking.look(page, f"sign-in ({theme})")
                page.get_by_label("Key id").fill("nobody")
                page.get_by_label("Secret key").fill("nothing")
                page.get_by_role("button", name="Sign in").click()
                page.get_by_role("alert").wait_for()
                looking.look(page, f"sign-in-refused ({theme})")
                sign_in(page)
                for name, path in told["pages"].items():
                    page.goto(PREFIX + path)
                    looking.look(page, f"{name} ({theme})")
                for name, (path, link) in told["dialogs"].items():
                    page.goto(PREFIX + path)
                    page.get_by_role("link", name=link, exact=True).first.click()
                    page.get_by_role("dialog").wait_for()
                    looking.look(page, f"{name} ({theme})")
    undecided = looking.undecided
    Path(output).write_text(json.dumps(undecided, indent=1))
    rules = ", ".join(f"{rule} ({len(each['nodes'])})" for rule, each in undecided.items())
    print(f"axe looked {looking.times} times; undecided: {rules or 'nothing'}")
    assert not looking.violations, "\n".join(looking.violations)


# --- how it looks


def pictures(told, folder, small):
    """Pictures of the pages at the widths of a phone, a laptop and a wall, in both themes; `small`: fewer colours."""
    from PIL import Image

    told, folder = _told(told), Path(folder)
    wide = []
    with chromium() as browser:
        for theme in THEMES:
            for width, height in ((390, 844), (1280, 800), (2560, 1440)):
                with signed_in(browser, told["url"], width=width, height=height, color_scheme=theme) as page:
                    for name, path in told["pages"].items():
                        page.goto(PREFIX + path)
                        page.evaluate("document.fonts.ready")
                        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                        if over > 0:
                            wide.append(f"{name} is {over} pixels wider than {width}")
                        file = folder / f"{name}-{width}-{theme}.png"
                        page.screenshot(path=file)
                        if int(small):
                            with Image.open(file) as picture:
                                picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)
    assert not wide, "\n".join(wide)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
