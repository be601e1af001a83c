"""The page at ``/``, in a browser: an image from a drawn control, partial images, an error, a phone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from playwright.sync_api import Browser, Route

from controlnext.runtime import Pipeline
from controlnext.runtime.preprocess import preprocess
from controlnext.runtime.serving.app import make_app
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.settings import ServerSettings
from support.browser import Visit, decode, open_browser
from support.fake_bundle import write_fake_bundle


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, metrics = tmp_path_factory.mktemp("served"), Metrics()
    bundles = [write_fake_bundle(folder / "fake"), write_fake_bundle(folder / "pair", controls=2)]
    models = Models(bundles, ServerSettings(), partial(Pipeline.load, threads=1, cache=False), metrics)
    app = make_app(models, ServerSettings(), metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await models.start()
        yield
        await models.close()

    app.router.lifespan_context = lifespan
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    made = Visit(browser, address)
    yield made
    made.page.close()


def test_a_drawn_control_becomes_an_image(visit: Visit, address: str) -> None:
    """Drawn with the mouse and with the keyboard; partial images come first; nothing leaves the server."""
    page = visit.page
    page.fill("#prompt", "a red circle")
    box = page.locator("#sketch").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + box["height"] / 4, steps=4)
    page.mouse.up()
    page.focus("#sketch")
    for key in ["ArrowDown"] * 8 + ["Space"] + ["ArrowLeft"] * 16 + ["Space", "ArrowDown", "ArrowRight"]:
        page.keyboard.press(key)
    page.evaluate(
        "() => new MutationObserver(() => (window.states ??= []).push(frame.dataset.state))"
        ".observe(frame, { attributes: true })"
    )
    assert "64x64" in visit.generate()
    assert page.evaluate("states").index("partial") < page.evaluate("states").index("done")
    (sent,) = visit.sent
    control = decode(str(sent["control_image"]))[..., 0]
    assert control.shape == (64, 64)
    assert control[16, 20:44].min() > 128  # by mouse
    assert control[32, 20:44].min() > 128  # by keyboard
    assert control[48:].max() == 0
    assert page.get_attribute("#download", "download") == "controlnext-0.png"
    np.testing.assert_array_equal(visit.pixels("#sent img")[..., 0], control)
    assert not visit.errors
    assert all(one.startswith((address, "data:", "blob:")) for one in visit.addresses)


def test_an_error_is_shown_at_its_field(visit: Visit) -> None:
    page = visit.page
    page.fill("#prompt", "a red circle")
    page.fill("#steps", "900")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("[role=alert]:has-text('at most 150')")
    assert page.evaluate("document.activeElement.id") == "steps"
    assert page.get_attribute("#steps", "aria-invalid") == "true"
    page.fill("#steps", "4")
    page.click("#generate")
    page.wait_for_selector("#sketch[aria-invalid]:focus")
    assert "control_image" in page.inner_text("#alert")
    assert page.get_attribute("#steps", "aria-invalid") is None


def test_edges_are_shown_as_the_server_makes_them(visit: Visit, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:90, :120]
    photo = np.stack([rows * 2, columns * 2, 255 * ((rows - 40) ** 2 + (columns - 60) ** 2 < 900)], -1)
    photo = photo + np.random.RandomState(0).randint(-20, 20, photo.shape)
    Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.png")
    page = visit.page
    page.set_input_files("#open-file", tmp_path / "photo.png")
    page.check("#canny")
    visit.generate()
    (sent,) = visit.sent
    assert (sent["preprocess"], sent["size"]) == ("canny", "80x48")
    expected = preprocess("canny", Image.fromarray(decode(str(sent["control_image"]))))
    np.testing.assert_array_equal(visit.pixels("#sketch"), np.asarray(expected))
    assert 0 < np.asarray(expected).mean() < 128
    page.click("#keep-edges")
    visit.generate()
    np.testing.assert_array_equal(decode(str(visit.sent[1]["control_image"])), np.asarray(expected))
    assert "preprocess" not in visit.sent[1]


def test_images_are_dropped_pasted_and_taken_back(visit: Visit) -> None:
    page = visit.page
    for event, target, transfer, colour in (
        ("DragEvent", "drop", "dataTransfer", "red"),
        ("ClipboardEvent", "paste", "clipboardData", "blue"),
    ):
        page.evaluate(
            """async ([event, type, transfer, colour]) => {
                 const canvas = new OffscreenCanvas(40, 40);
                 const context = canvas.getContext("2d");
                 context.fillStyle = colour;
                 context.fillRect(0, 0, 40, 40);
                 const files = new DataTransfer();
                 const png = await canvas.convertToBlob();
                 files.items.add(new File([png], `${colour}.png`, { type: png.type }));
                 const init = { [transfer]: files, bubbles: true, cancelable: true };
                 sketch.dispatchEvent(new window[event](type, init));
               }""",
            [event, target, transfer, colour],
        )
        shown = {"red": (255, 0, 0), "blue": (0, 0, 255)}[colour]
        page.wait_for_selector(f"#sketch-state:has-text('Opened {colour}.png')")
        np.testing.assert_array_equal(visit.pixels("#sketch"), np.broadcast_to(shown, (64, 64, 3)))
    page.click("#undo")
    assert tuple(visit.pixels("#sketch")[0, 0]) == (255, 0, 0)
    page.click("#clear")
    assert visit.pixels("#sketch").max() == 0
    page.check("#inverted")
    assert visit.pixels("#sketch").min() == 255


def test_cancel_ends_the_request(visit: Visit) -> None:
    page = visit.page
    page.route("**/v1/images/generations", lambda _route: None)  # never answered
    page.focus("#generate")
    page.keyboard.press("Enter")
    with page.expect_event("requestfailed") as failed:
        page.click("#cancel:focus")
    assert failed.value.url.endswith("/v1/images/generations")
    page.wait_for_selector("#generate:focus")
    assert (page.inner_text("#status"), page.inner_text("#alert")) == ("Cancelled", "")


def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Visit) -> None:
    page = visit.page
    refusal = {
        "error": {"message": "give a key", "type": "invalid_request_error", "param": None, "code": None}
    }
    keys = []

    def answer(route: Route) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1]:
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    page.route("**/v1/models", answer)
    page.reload()
    page.wait_for_selector("#key:focus")
    assert page.inner_text("#alert") == "give a key"
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#generate:enabled")
    assert keys == [None, "Bearer secret"]
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
        ["secret"],
        0,
        "",
    ]
    assert "secret" not in page.inner_text("#code")
    assert "$CONTROLNEXT_API_KEY" in page.inner_text("#code")


def test_nothing_scrolls_sideways_on_a_phone(browser: Browser, address: str) -> None:
    visit = Visit(browser, address, width=360, height=740)
    for task in ("image", "video"):
        visit.page.evaluate("(task) => (document.body.dataset.task = task)", task)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    visit.page.close()


def test_files_come_with_a_policy_and_are_sent_once(address: str) -> None:
    first = httpx.get(address)
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in first.headers["content-security-policy"]
    assert first.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', first.text)
    assert {httpx.get(address + name).status_code for name in named} == {200}
    assert len(named) == 3
    assert httpx.get(address + "page/..%2fpage.py").status_code == 404
    assert httpx.get(address + "page/page.py").status_code == 404
