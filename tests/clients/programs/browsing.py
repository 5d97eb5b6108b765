"""Chromium for the programs here: Debian's, driven by Playwright, and watched.

Whatever a page logs as an error, refuses for its content policy, throws, or asks of another host is noted, and
`watched` fails at the end for it.
"""

import contextlib
import os
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
"""Chromium's own sandbox does not run for root, and nothing here is loaded from anywhere but the node under test."""

PREFIX = "/_tigrislike/console"
WAIT_MS = 20_000


@contextlib.contextmanager
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What went wrong in a context: `said` by pages, and `elsewhere`, requests to hosts other than the node."""

    def __init__(self, context, host):
        self.said = []
        self.elsewhere = []
        self._host = host
        context.on("console", self._console)
        context.on("weberror", lambda error: self.said.append(f"thrown: {error.error}"))
        context.on("request", self._request)

    def _console(self, message):
        # Chromium says of each answer of 400 and more that it is one; which of them are right is the tests' to say.
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            self.said.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _request(self, request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob", "about") and parts.netloc != self._host:
            self.elsewhere.append(request.url)

    def check(self):
        assert not self.said, "\n".join(self.said)
        assert not self.elsewhere, "\n".join(self.elsewhere)


@contextlib.contextmanager
def watched(browser, url, *, width=1280, height=900, **options):
    """A context of its own, with a page; what it says has to be nothing in the end."""
    context = browser.new_context(base_url=url, viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(WAIT_MS)
    watch = Watch(context, urlsplit(url).netloc)
    page = context.new_page()
    page.watch = watch
    try:
        yield page
        watch.check()
    finally:
        context.close()


def sign_in(page):
    """As people do, with the admin key of the environment; the overview follows."""
    page.goto(PREFIX + "/sign-in")
    page.get_by_label("Key id").fill(os.environ["AWS_ACCESS_KEY_ID"])
    page.get_by_label("Secret key").fill(os.environ["AWS_SECRET_ACCESS_KEY"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview", level=1).wait_for()


@contextlib.contextmanager
def signed_in(browser, url, **options):
    with watched(browser, url, **options) as page:
        sign_in(page)
        yield page
