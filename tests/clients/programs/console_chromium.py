"""The console in Chromium. Run by tests/console/test_chromium.py with the Python that has Playwright and axe-core.

Arguments: the case, then what it says; an admin key is in the environment. What several cases are told is a JSON file:
`url` of the node, `pages` (paths below the console, by name; `main`: those that the documentation shows), `dialogs` (a
page and the text of the link that asks).
"""

import json
import sys
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from browsing import PREFIX, chromium, sign_in, signed_in, watched

TAGS = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]
THEMES = ["light", "dark"]
OPTIONS = {"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations", "incomplete", "passes"]}


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


# Axe does not tell the contrast of text in SVG, nor of what it takes to be covered: the definition of WCAG 2.2, of the
# element's colour and that of the nearest ground which is not transparent.
CONTRAST = """selector => {
    const element = document.querySelector(selector);
    const rgba = (text) => {
        const [red, green, blue, alpha = 1] = text.match(/[\\d.]+/g).map(Number);
        return { alpha, light: [red, green, blue].map((each) => each / 255) };
    };
    const luminance = ({ light }) => {
        const [r, g, b] = light.map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    let ground = null;
    for (let at = element; at && !(ground && ground.alpha === 1); at = at.parentElement)
        ground = rgba(getComputedStyle(at).backgroundColor);
    const [high, low] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
}"""


class _Looking:
    """What axe said so far: `violations`, and what it left `undecided`, by rule and element, with the pages. Contrasts
    that it left are computed here, and those that are too low are violations."""

    def __init__(self):
        self._axe = Axe()
        self.times = 0
        self.violations = []
        self.undecided = {}

    def look(self, page, name):
        page.evaluate(self._axe.axe_script)
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            found = page.evaluate("options => axe.run(options)", OPTIONS)
            self.times += 1
            assert found["passes"], f"axe looked at nothing on {name}"
            for rule in found["violations"]:
                for node in rule["nodes"]:
                    told = f"{rule['id']}: {node['html'][:200]}: {node['failureSummary']}"
                    self.violations += [f"{name} ({theme}): {told}"]
            for rule in found["incomplete"]:
                each = self.undecided.setdefault(rule["id"], {"help": rule["help"], "nodes": {}})
                for node in rule["nodes"]:
                    element = node["html"][:200]
                    if rule["id"] == "color-contrast":
                        contrast = page.evaluate(CONTRAST, node["target"][0])
                        if contrast < 4.5:
                            self.violations += [f"{name} ({theme}): a contrast of {contrast:.2f}: {element}"]
                    each["nodes"].setdefault(element, []).append(f"{name} ({theme})")


def axe(told, output):
    """No page, dialog or error has a violation, in either theme; what axe cannot decide is written to `output`."""
    told = _told(told)
    looking = _Looking()
    # Nothing is on its way from one theme's colours to the other's while axe looks.
    with chromium() as browser, watched(browser, told["url"], reduced_motion="reduce") as page:
        page.goto(PREFIX + "/sign-in")
        looking.look(page, "sign-in")
        page.get_by_label("Key id").fill("nobody")
        page.get_by_label("Secret key").fill("nothing")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").wait_for()
        looking.look(page, "sign-in-refused")
        sign_in(page)
        for name, path in told["pages"].items():
            page.goto(PREFIX + path)
            looking.look(page, name)
        for name, (path, link) in told["dialogs"].items():
            page.goto(PREFIX + path)
            page.get_by_role("link", name=link, exact=True).first.click()
            page.get_by_role("dialog").wait_for()
            looking.look(page, name)
        # What is there only once something was done
        page.goto(PREFIX + told["pages"]["link"])
        page.get_by_role("button", name="Make the link").click()
        page.locator("#link").wait_for()
        looking.look(page, "link-made")
        page.goto(PREFIX + "/keys")
        page.get_by_role("link", name="Make a key").click()
        page.get_by_role("button", name="Make the key").click()
        page.get_by_role("heading", name="A key was made").wait_for()
        looking.look(page, "key-made")
        page.goto(PREFIX + "/keys")
        looking.look(page, "keys-of-several")
        page.get_by_role("link", name="Revoke").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        page.get_by_text("was revoked").wait_for()
        looking.look(page, "keys-after-one-was-revoked")
    undecided = looking.undecided
    Path(output).write_text(json.dumps(undecided, indent=1))
    rules = ", ".join(f"{rule} ({len(each['nodes'])})" for rule, each in undecided.items())
    print(f"axe looked {looking.times} times; undecided: {rules or 'nothing'}")
    assert not looking.violations, "\n".join(looking.violations)


# --- other ways to use it


def keyboard(url, zone):
    """Without a mouse: past what every page begins with, to what is to be done, and back where one was."""
    with chromium() as browser, signed_in(browser, url) as page:
        focused = page.locator(":focus")

        def tab_to(name, most=60):
            for _ in range(most):
                page.keyboard.press("Tab")
                assert focused.evaluate("element => element.matches(':focus-visible')"), "where one is can be seen"
                if focused.inner_text().strip() == name:
                    return
            raise AssertionError(f"{name} is not reached by {most} tabs")

        page.goto(f"{PREFIX}/queue/zones/{zone}")
        tab_to("Skip to the content", 1)
        page.keyboard.press("Enter")
        assert focused.get_attribute("id") == "main"
        tab_to("Pause zone")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        assert dialog.evaluate("dialog => dialog.contains(document.activeElement)"), "focus is in the dialog"
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        assert focused.inner_text() == "Pause zone", "focus is back where it was"
        page.keyboard.press("Enter")
        dialog.wait_for()
        while focused.inner_text().strip() != "Cancel":
            page.keyboard.press("Tab")
            assert dialog.evaluate("dialog => dialog.contains(document.activeElement)"), "nothing behind it is reached"
        page.keyboard.press("Enter")
        dialog.wait_for(state="hidden")
        assert focused.inner_text() == "Pause zone"
        page.keyboard.press("Enter")
        dialog.wait_for()
        while focused.evaluate("element => element.tagName") != "BUTTON":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Resume zone").wait_for()
        tab_to("Resume zone")
        page.keyboard.press("Enter")
        dialog.wait_for()
        while focused.evaluate("element => element.tagName") != "BUTTON":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Pause zone").wait_for()


def without_scripts(told, zone):
    """Every page can be read, and what is to be done is done on pages of its own."""
    told = _told(told)
    with chromium() as browser, signed_in(browser, told["url"], java_script_enabled=False) as page:
        for name, path in told["pages"].items():
            page.goto(PREFIX + path)
            assert page.get_by_role("heading", level=1).is_visible(), name
            assert len(page.locator("main").inner_text()) > 20, name
        page.goto(f"{PREFIX}/queue/zones/{zone}")
        for ask, do in (("Pause zone", "Pause"), ("Resume zone", "Resume")):
            page.get_by_role("link", name=ask).click()
            page.get_by_role("heading", level=1).wait_for()
            page.get_by_role("button", name=do).click()
            page.locator("main").get_by_role("status").wait_for()
        page.get_by_label("Theme").select_option("dark")
        page.get_by_role("button", name="Set theme").click()
        assert page.locator("html").get_attribute("data-theme") == "dark"
        page.get_by_role("button", name="Sign out").click()
        page.get_by_text("You are signed out.").wait_for()


def motion(told):
    """Nothing moves for those who want nothing to move."""
    told = _told(told)
    moving = """() => [...document.querySelectorAll("*")].filter((each) => {
        const style = getComputedStyle(each);
        const lasts = [style.transitionDuration, style.animationDuration].join().split(",").map(parseFloat);
        return lasts.some((seconds) => seconds > 0) || style.scrollBehavior === "smooth";
    }).length"""
    with chromium() as browser, signed_in(browser, told["url"], reduced_motion="no-preference") as page:
        assert page.evaluate(moving) > 0, "what moves is seen"
        page.emulate_media(reduced_motion="reduce")
        for name, path in told["pages"].items():
            page.goto(PREFIX + path)
            assert page.evaluate(moving) == 0, name


# --- how it looks


def pictures(told, folder, small):
    """Pictures of the main pages at the widths of a phone, a laptop and a wall, in both themes; `small`: with fewer
    colours. No page at all is wider than that."""
    from PIL import Image

    told, folder = _told(told), Path(folder)
    wide = []
    with chromium() as browser, signed_in(browser, told["url"], reduced_motion="reduce") as page:
        for name, path in told["pages"].items():
            page.goto(PREFIX + path)
            for width, height in ((390, 844), (1280, 800), (2560, 1440)):
                page.set_viewport_size({"width": width, "height": height})
                over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                if over > 0:
                    wide.append(f"{name} is {over} pixels wider than {width}")
                for theme in THEMES if name in told["main"] else []:
                    page.emulate_media(color_scheme=theme)
                    file = folder / f"{name}-{width}-{theme}.png"
                    page.screenshot(path=file)
                    if int(small):
                        with Image.open(file) as picture:
                            picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, optimize=True)
    assert not wide, "\n".join(wide)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
