"""Objects that attack whoever opens them in a signed-in Chromium. Run by tests/console/test_hostile.py.

Arguments: the case, and a JSON file with what it is told; an admin key is in the environment.
"""

import json
import sys
from pathlib import Path

from browsing import PREFIX, WAIT_MS, chromium, sign_in

# What only the console's pages, or only the admin API's answers, have.
SECRETS = ("Sign out", 'name="csrf"', '"regions"', "tigrislike-console")


def _outcomes(page):
    """What the page's script noted, None where it did not run."""
    return page.evaluate("typeof all === 'undefined' ? null : all")


def _check_refused(name, attempts):
    for what, got in attempts:
        assert not any(secret in got for secret in SECRETS), (name, what, got[:300])


def attack(told):
    told = json.loads(Path(told).read_text())
    with chromium() as browser:
        context = browser.new_context(base_url=told["admin"])
        context.set_default_timeout(WAIT_MS)
        console = context.new_page()
        sign_in(console)

        # The script can do harm where it is let: in a page of the console itself it reads everything.
        console.evaluate(told["script"] + ";window.all = all; 0")
        able = dict(_outcomes(console))
        assert "Sign out" in able["fetch the console, cors"], "the attack is none"
        assert "Refused" in able["post drop, cors"], "even there nothing is done without the token"
        # The page's own policy keeps it from being framed, and it may open others of its kind.
        console.goto(PREFIX + "/")

        for key, link in told["objects"].items():
            page = context.new_page()
            answer = page.goto(link)
            policy = answer.headers.get("content-security-policy", "")
            assert "Win a prize" in page.content(), "it is shown"
            guarded = ("sandbox" in policy, answer.headers.get("x-content-type-options") == "nosniff")
            assert guarded == (told["sandboxed"], told["sandboxed"]), answer.headers
            attempts = _outcomes(page)
            if told["sandboxed"]:
                assert attempts is None, "no script of an object runs on the console's origin"
                assert page.evaluate("origin") == "null"
            else:
                assert len(attempts) > 20, attempts
                _check_refused(key, attempts)
            # Without a script, by somebody who clicks.
            pages = len(context.pages)
            page.locator("#form button").click()
            page.wait_for_timeout(500)
            assert len(context.pages) == pages
            for frame in page.frames[1:]:
                assert not any(secret in frame.content() for secret in SECRETS), "the console is in a frame"
            print(key, "sandboxed" if attempts is None else f"{len(attempts)} attempts")
            page.close()

            # Looked at in the console, it is text; downloaded, it is a file; and it is no image.
            console.goto(f"{PREFIX}/buckets/{told['bucket']}/object?key={key}")
            assert "Win a prize" in console.locator("pre.preview").inner_text()
            assert console.evaluate("typeof attempts") == "undefined"
            with console.expect_download() as downloading:
                console.get_by_role("link", name="Download").click()
            assert downloading.value.suggested_filename == key
            raw = f"{PREFIX}/buckets/{told['bucket']}/raw?key={key}"
            assert console.goto(raw + "&show=image").status == 415
            got = console.request.get(told["admin"] + raw)
            assert got.headers["content-disposition"].startswith("attachment"), got.headers
            assert "sandbox" in got.headers["content-security-policy"]

        for other in context.pages[1:]:
            other.close()
        console.goto(PREFIX + "/")
        assert console.get_by_role("button", name="Sign out").is_visible(), "the session goes on"
        context.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
