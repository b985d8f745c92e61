"""Draw the demo's pictures in docs/images from the demo itself, with the bundled model.

    python benchmarks/screenshots.py

Needs Debian's chromium. Run it when the page or the bundled model changes, and look at what it wrote.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from demo import served
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PROMPT = "a red circle and a blue square on a white background"
WIDE: dict[str, Any] = {"viewport": {"width": 1200, "height": 860}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}}
LIGHT: dict[str, Any] = {"color_scheme": "light"}
DARK: dict[str, Any] = {"color_scheme": "dark"}
PATIENCE = 120_000
"""Milliseconds."""


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: no chromium is installed; on Debian: apt-get install chromium")
    with served("-m", "shapes") as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for name, draw, looks in (
            ("generate", generated, WIDE | LIGHT),
            ("inspect", inspected, WIDE | LIGHT),
            ("sweep", swept, WIDE | DARK),
            ("phone", generated, PHONE | DARK),
        ):
            context = browser.new_context(**looks)
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            page.goto(url)
            asked(page)
            draw(page)
            # What slides into place is to have arrived.
            page.wait_for_timeout(1500)
            page.screenshot(path=IMAGES / f"demo-{name}.png")
            context.close()
        browser.close()


def asked(page: Page) -> None:
    """The prompt, and DECOR with its red circle, clicked."""
    page.locator("#prompt textarea").fill(PROMPT)
    page.locator("#edit-decor > button").first.click()
    page.locator("#switch-decor").click()
    page.locator("#edit-decor", has_text="decor: on").wait_for()
    for word in ("red", "circle"):
        page.locator("#edit-decor .words").get_by_role("button", name=word, exact=True).click()
    page.locator("#edit-decor .phrases", has_text="red circle").wait_for()


def generated(page: Page) -> None:
    page.locator("#generate").click()
    said_done(page, "generate")
    page.locator("#slider").scroll_into_view_if_needed()


def inspected(page: Page) -> None:
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect").click()
    said_done(page, "inspect")
    page.locator("#word .words").get_by_role("button", name="circle", exact=True).click()
    page.locator("#word .phrases", has_text="circle").wait_for()
    page.locator("#look").click()
    said_done(page, "look")
    page.locator("#tokens").scroll_into_view_if_needed()


def swept(page: Page) -> None:
    page.get_by_role("tab", name="Sweep").click()
    page.get_by_label("FIRST..LAST..STEP").first.fill("0..1..0.25")
    page.locator("#sweep").click()
    said_done(page, "sweep")
    page.locator("#grid img").wait_for()


def said_done(page: Page, where: str) -> None:
    page.locator(f"#{where}-status", has_text="Done.").wait_for()


if __name__ == "__main__":
    main()
