"""What the console's script does with objects, in Chromium: uploads with progress, whole and in parts, copies, deletes.

console_objects.py uploads URL BUCKET FOLDER
console_objects.py hostile URL LINK...
"""

import os
import re
import sys
from pathlib import Path

from browsing import PREFIX, WAIT_MS, chromium, signed_in
from playwright.sync_api import expect


def uploads(url, bucket, folder):
    """Files of a folder go up: in order, none twice, one in parts where it is too large for one request."""
    files = sorted(str(path) for path in Path(folder).iterdir())
    with chromium() as browser, signed_in(browser, url) as page:
        at = f"{PREFIX}/buckets/{bucket}"
        page.goto(f"{at}?prefix=in%2F")
        page.set_input_files("[name=files]", files)
        page.get_by_role("button", name="Upload").click()
        for file in files:
            expect(page.get_by_role("row", name=os.path.basename(file))).to_be_visible(timeout=WAIT_MS)
        page.set_input_files("[name=files]", files[0])
        page.get_by_role("button", name="Upload").click()
        expect(page.locator(".uploads .failed")).to_contain_text("Replace what is there", timeout=WAIT_MS)

        # 5 GiB are too much for a test: here 1 MB is too large for one request.
        page.goto(f"{at}?prefix=parts%2F")
        page.evaluate("document.querySelector('form[data-upload]').dataset.most = '1000000'")
        page.set_input_files("[name=files]", files)
        page.get_by_role("button", name="Upload").click()
        for file in files:
            expect(page.get_by_role("row", name=os.path.basename(file))).to_be_visible(timeout=WAIT_MS)

        # A part that breaks is sent again, and where that does not help nothing is left.
        page.goto(f"{at}?prefix=broken%2F")
        page.evaluate("document.querySelector('form[data-upload]').dataset.most = '1000000'")
        broken = []

        def fail(route):
            broken.append(route.request.url)
            route.abort() if len(broken) == 1 else route.continue_()

        page.route(re.compile(r"/upload\?.*part=1$"), fail)
        page.set_input_files("[name=files]", files[-1])
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("row", name=os.path.basename(files[-1]))).to_be_visible(timeout=WAIT_MS)
        assert len(broken) == 2, broken
        page.watch.said[:] = [said for said in page.watch.said if "net::ERR_FAILED" not in said]

        page.goto(f"{at}/object?key=in%2F{os.path.basename(files[0])}")
        page.get_by_role("link", name="Make a link").click()
        page.get_by_role("button", name="Make the link").click()
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible(timeout=WAIT_MS)
        page.goto(f"{at}/object?key=in%2F{os.path.basename(files[0])}")
        page.get_by_role("link", name="Delete", exact=True).first.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Delete", timeout=WAIT_MS)
        dialog.get_by_role("button", name="Delete").click()
        expect(page.get_by_role("status").first).to_contain_text("was deleted", timeout=WAIT_MS)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
