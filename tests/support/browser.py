"""A headless Chromium, and what a page does in it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def require_browser(playwright: Playwright) -> str:
    """Return the path of Chromium; skip the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
    if not Path(found).exists():
        pytest.skip("no browser: install Debian's chromium, or run playwright install chromium")
    return found


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium; skip the test where there is none."""
    with sync_playwright() as playwright:
        found = require_browser(playwright)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A tab with the page at ``address``, which has its bundles; notes errors and requests."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.page: Page = browser.new_page(reduced_motion="reduce")
        self.page.set_default_timeout(10_000)
        self.address = address
        self.errors: list[str] = []
        self.addresses: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, request.post_data))

    def open(self, width: int = 1280, height: int = 860) -> None:
        """Open the page anew, with nothing left of what was done before."""
        for notes in (self.errors, self.addresses, self.sent):
            notes.clear()
        self.page.unroute_all()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto(self.address)
        if self.page.evaluate("sessionStorage.length"):
            self.page.evaluate("sessionStorage.clear()")
            self.page.reload()
        self.page.wait_for_selector("#generate:enabled")

    def _note(self, address: str, body: str | None) -> None:
        self.addresses.append(address)
        if address.endswith("/v1/images/generations"):
            import json

            self.sent.append(json.loads(body or "{}"))

    def generate(self) -> str:
        """Press Generate, wait for the image, and return its caption."""
        self.page.click("#generate")
        self.page.wait_for_selector("#frame[data-state=done], #alert:not(:empty)")
        assert self.page.inner_text("#alert") == ""
        return self.page.inner_text("#facts")

    def pixels(self, selector: str) -> np.ndarray:
        """Return what a canvas or an image shows, (height, width, 3) uint8."""
        url = self.page.eval_on_selector(
            selector,
            """async (shown) => {
                 if (shown.decode) await shown.decode();
                 const canvas = document.createElement("canvas");
                 canvas.width = shown.naturalWidth ?? shown.width;
                 canvas.height = shown.naturalHeight ?? shown.height;
                 canvas.getContext("2d").drawImage(shown, 0, 0);
                 return canvas.toDataURL();
               }""",
        )
        return decode(url)


def decode(data_url: str) -> np.ndarray:
    """Return the image of a data URL, (height, width, 3) uint8."""
    content = base64.b64decode(data_url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
