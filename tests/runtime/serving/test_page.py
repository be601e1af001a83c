"""The page at ``/``, in a browser: an image from a drawn control, partial images, an error, a phone."""

from __future__ import annotations

import contextlib
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Route

from controlnext.runtime.preprocess import preprocess
from support.browser import Visit, decode
from support.serving import Site


def test_a_drawn_control_becomes_an_image(visit: Visit) -> None:
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
    control = decode(sent["control_image"])[..., 0]
    assert control.shape == (64, 64)
    assert control[16, 20:44].min() > 128  # by mouse
    assert control[32, 20:44].min() > 128  # by keyboard
    assert control[48:].max() == 0
    assert page.get_attribute("#download", "download") == "controlnext-0.png"
    np.testing.assert_array_equal(visit.pixels("#sent img")[..., 0], control)
    assert not visit.errors
    assert all(one.startswith((visit.address, "data:", "blob:")) for one in visit.addresses)


def test_an_error_is_shown_at_its_field(visit: Visit) -> None:
    page = visit.page
    for field, text in {"prompt": "a red circle", "scale": "0", "steps": "900"}.items():
        page.fill(f"#{field}", text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("[role=alert]:has-text('at most 150')")
    assert page.get_attribute("#steps:focus", "aria-invalid") == "true"
    page.fill("#scale", "1")
    page.click("#generate")
    page.wait_for_selector("#sketch[aria-invalid]:focus")
    assert "Draw a control image, or open one" in page.inner_text("#alert")
    page.set_input_files("#open-file", __file__)
    page.wait_for_selector("[role=alert]:has-text('test_page.py is not an image')")
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
    expected = preprocess("canny", Image.fromarray(decode(sent["control_image"])))
    np.testing.assert_array_equal(visit.pixels("#sketch"), np.asarray(expected))
    assert 0 < np.asarray(expected).mean() < 128
    page.click("#keep-edges")
    visit.generate()
    np.testing.assert_array_equal(decode(visit.sent[1]["control_image"]), np.asarray(expected))
    assert "preprocess" not in visit.sent[1]


def test_the_code_makes_the_same_image(visit: Visit, page_site: Site, tmp_path: Path) -> None:
    """openai's client and this package in Python; curl's arguments are the request's fields."""
    page = visit.page
    photo = np.random.RandomState(1).randint(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    page.set_input_files("#open-file", tmp_path / "photo.png")
    page.check("#canny")
    texts = {"prompt": "a red 'circle' on \\ \"blue\" é", "negative": "@a", "seed": "7"}
    for field, text in {**texts, "guidance-end": "0.25", "cache-interval": "2"}.items():
        page.fill(f"#{field}", text)
    visit.generate()
    assert (visit.sent[0]["guidance_end"], visit.sent[0]["cache_interval"]) == (0.25, 2)
    with page.expect_download() as saved:
        page.click("#save-control")
    saved.value.save_as(tmp_path / saved.value.suggested_filename)
    expected = visit.pixels("#image")
    for language in ("openai", "controlnext"):
        page.check(f"[name=language][value={language}]")
        code = page.inner_text("#code").replace("build/toy", str(page_site.models.describe("toy").path))
        with contextlib.chdir(tmp_path):
            exec(code, {})
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), expected)
        (tmp_path / "image.png").unlink()
    page.check("[name=language][value=curl]")
    words = shlex.split(page.inner_text("#code").partition(" |\n")[0].replace("\\\n", ""))
    fields = [word.split("=", 1) for option, word in pairwise(words) if option == "--form-string"]
    sent = {name: str(value) for name, value in visit.sent[0].items()}
    assert dict(fields).items() <= sent.items()
    assert sent.keys() - dict(fields) == {"control_image", "stream", "partial_images"}
    assert words[:5] == ["curl", "-sS", visit.page.url + "v1/images/edits", "-F", "image=@control.png"]


def test_each_of_two_controls_is_drawn(visit: Visit) -> None:
    page = visit.page
    page.select_option("#model", "pair")
    for layer, scale in enumerate(("0.5", "1.5")):
        page.check(f"[name=layer][value='{layer}']")
        page.fill("#scale", scale)
        page.focus("#sketch")
        page.keyboard.press("Space" if layer else "ArrowUp")
    visit.generate()
    (sent,) = visit.sent
    assert sent["control_scale"] == [0.5, 1.5]
    controls = [decode(url) for url in sent["control_image"]]
    assert [control.max() > 64 for control in controls] == [False, True]
    assert page.locator("#sent img").count() == 2


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
    page.fill("#scale", "0")
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
    stored = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert stored == [["secret"], 0, ""]
    assert "secret" not in page.inner_text("#code")
    assert "$CONTROLNEXT_API_KEY" in page.inner_text("#code")


def test_nothing_scrolls_sideways_on_a_phone(tab: Visit) -> None:
    tab.open(width=360, height=740)
    for bundle in ("toy", "clips"):
        tab.page.select_option("#model", bundle)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 360


def test_files_come_with_a_policy_and_are_sent_once(page_site: Site) -> None:
    first = page_site.http.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in first.headers["content-security-policy"]
    assert first.headers["x-content-type-options"] == "nosniff"
    again = page_site.http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', first.text)
    assert {page_site.http.get(f"/{name}").status_code for name in named} == {200}
    assert len(named) == 3
    assert page_site.http.get("/page/..%2fpage.py").status_code == 404
    assert page_site.http.get("/page/page.py").status_code == 404
