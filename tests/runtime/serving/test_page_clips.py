"""The page at ``/`` with a bundle that makes clips: the clip, and the code that makes the same one."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction
from pathlib import Path

import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.media import video_fps
from controlnext.runtime.media.video_files import write_clip
from support.browser import Visit
from support.idle_clips import no_noise, open_idle
from support.recipe import drawing
from support.serving import Site


@pytest.fixture
def here_too(page_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page finds its bundle in this process, and openai's client polls more often."""
    monkeypatch.setattr("openai.resources.videos.Videos._sleep", lambda *_: time.sleep(0.01))
    monkeypatch.setattr(
        Pipeline, "load", lambda path: open_idle(page_site.models.describe(Path(path).name).path, no_noise)
    )


@pytest.mark.usefixtures("here_too")
def test_a_clip_is_made_shown_and_deleted(visit: Visit, page_site: Site, tmp_path: Path) -> None:
    page = visit.page
    page.select_option("#model", "clips")
    files = [tmp_path / f"{number}.png" for number in (10, 9, 1)]
    for file in files:
        drawing(len(file.name), 64, 48).save(file)
    page.click("#generate")
    page.wait_for_selector("[role=alert]:has-text('Choose the image')")
    page.set_input_files("#reference", files[0])
    page.set_input_files("#frames", files)
    for field, text in {"steps": "2", "width": "64", "height": "48", "fps": "5"}.items():
        page.fill(f"#{field}", text)
    assert "64x48" in visit.generate()
    page.wait_for_selector("#video[style*=ratio]")  # its size is known: it can be played
    assert page.evaluate("[video.videoWidth, video.videoHeight]") == [64, 48]
    with page.expect_download() as saved:
        page.click("#download")
    for language in ("openai", "controlnext"):
        page.check(f"[name=language][value={language}]")
        code = page.inner_text("#code")
        assert code.index('"1.png"') < code.index('"9.png"') < code.rindex('"10.png"')
        with contextlib.chdir(tmp_path):
            exec(code, {})
        assert saved.value.path().read_bytes() == (tmp_path / "result.mp4").read_bytes()
        (tmp_path / "result.mp4").unlink()
    name = saved.value.suggested_filename.removesuffix(".mp4")
    assert page_site.http.get(f"/v1/videos/{name}").status_code == 200
    page.click("#delete")
    page.wait_for_selector("#placeholder:has-text('The clip will appear here')")
    assert page_site.http.get(f"/v1/videos/{name}").status_code == 404
    assert not visit.errors


@pytest.mark.usefixtures("here_too")
def test_the_code_reads_a_video(visit: Visit, tmp_path: Path) -> None:
    """At the frames a second of the request, or at those of the video."""
    page = visit.page
    page.select_option("#model", "clips")
    drawing(1, 64, 48).save(tmp_path / "person.png")
    write_clip(tmp_path / "poses.mp4", (drawing(seed, 64, 48) for seed in range(3)), Fraction(10))
    page.set_input_files("#reference", tmp_path / "person.png")
    page.set_input_files("#frames", tmp_path / "poses.mp4")
    page.fill("#steps", "2")
    for fps in ("", "5"):
        page.fill("#fps", fps)
        visit.generate()
        with page.expect_download() as saved:
            page.click("#download")
        page.check("[name=language][value=controlnext]")
        code = page.inner_text("#code")
        assert 'control_images=load_video("poses.mp4")' in code
        with contextlib.chdir(tmp_path):
            exec(code, {})
        assert saved.value.path().read_bytes() == (tmp_path / "result.mp4").read_bytes()
        assert video_fps(tmp_path / "result.mp4") == float(fps or 10)
