"""Take the picture of the page in docs/images: a star, drawn by mouse, becomes an image.

    controlnext serve build/shapes-fp16 --port 8000
    python benchmarks/screenshot.py http://127.0.0.1:8000 docs/images/serve.png

`make demo` exports the bundle. Needs Chromium: Debian's package, or `playwright install chromium`.
"""

import argparse
import io
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from controlnext.bundle.files import new_file

SIZE = {"width": 1200, "height": 1000}
PROMPT = "a yellow star on a blue background"
# at the default guidance scale of 5 the small model's colours begin to mix
FIELDS = {"#prompt": PROMPT, "#guidance": "3", "#seed": "7"}
COLOURS = 255


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", help="of a server")
    parser.add_argument("image", type=Path, help="PNG file to write")
    given = parser.parse_args(arguments)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE["width"], "height": SIZE["height"]})
        page.goto(given.address)
        use(page)
        content = page.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(content)).convert("RGB").quantize(COLOURS)
    with new_file(given.image) as aside:
        picture.save(aside, format="PNG", optimize=True)
    print(f"{given.image}: {given.image.stat().st_size // 1000} kB")


def use(page: Page) -> None:
    """Fill the form, draw the control and wait for the image."""
    page.wait_for_selector("#generate:enabled")
    for field, value in FIELDS.items():
        page.fill(field, value)
    points = star(page)
    page.mouse.move(*next(points))
    page.mouse.down()
    for point in points:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    page.click("#generate")
    page.wait_for_selector("#frame[data-state=done]", timeout=120_000)
    page.evaluate("scrollTo(0, 0)")


def star(page: Page) -> Iterator[tuple[float, float]]:
    """Yield the corners of a star on the drawing board, the first one again at the end."""
    box = page.locator("#sketch").bounding_box()
    if box is None:
        raise SystemExit("the page shows no drawing board; serve a bundle that makes images")
    for corner in range(11):
        radius = box["width"] * (0.16 if corner % 2 else 0.38)
        angle = math.pi * corner / 5
        across, down = radius * math.sin(angle), radius * -math.cos(angle)
        yield box["x"] + box["width"] / 2 + across, box["y"] + box["height"] * 0.52 + down


if __name__ == "__main__":
    main()
