"""Clips as jobs, by OpenAI's API."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest

from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.media.video_files import write_clip
from controlnext.runtime.serving import clip_jobs
from controlnext.runtime.serving.settings import ServerSettings
from controlnext.types import Feed
from support.gate import until
from support.idle_clips import Answer, IdleBackend, idle_pipeline, no_noise
from support.recipe import drawing
from support.serving import Site, error_of, file_of, open_pipeline, serve, text_of

ROUTE = "/v1/videos"
IMAGE = drawing(9, 24, 16)
FRAMES = [drawing(number, 24, 16) for number in range(3)]
FIELDS = {"num_inference_steps": 2, "seed": 7, "fps": 5}
FILES = [
    ("input_reference", ("image.png", file_of(IMAGE))),
    *(("control_clip", (f"{number}.png", file_of(frame))) for number, frame in enumerate(FRAMES)),
]


def refused_at_once(site: Site, **body: Any) -> dict[str, Any]:
    """Return the error of a request for a clip. A machine that is busy may find the mistake later than the
    server waits for it; then the clip fails instead, and the request is made again."""
    while True:
        response = site.http.post(ROUTE, **body)
        if response.status_code != 200:
            return error_of(response, 400)
        late = f"{ROUTE}/{response.json()['id']}"
        until(lambda: site.http.get(late).json()["status"] == "failed")  # noqa: B023


class Engines:
    """Engines that answer when ``open`` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.answer: Answer = no_noise
        self.open.set()

    def __call__(self, graph_name: str, feed: Feed, shape: tuple[int, ...]) -> np.ndarray:
        assert self.open.wait(20)
        return self.answer(graph_name, feed, shape)

    def load(self, path: Path) -> Pipeline:
        return Pipeline.of(Bundle(path, IdleBackend(self), cache=False))


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


@pytest.fixture(scope="module")
def idle(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a server whose engines can be held up."""
    path = tmp_path_factory.mktemp("served") / "idle"
    idle_pipeline(path, no_noise).close()
    with serve([path], ServerSettings(max_frames=6, max_size=64, max_pixels=4096), engines.load) as site:
        yield site


@pytest.fixture(scope="module")
def site(several: Site) -> Site:
    return several


def create(site: Site, **changes: Any) -> dict[str, Any]:
    response = site.http.post(ROUTE, **{"data": FIELDS, "files": FILES, **changes})
    assert response.status_code == 200, response.text
    return response.json()


def finished(site: Site, job: dict[str, Any]) -> dict[str, Any]:
    def state() -> dict[str, Any]:
        return site.http.get(f"{ROUTE}/{job['id']}").json()

    until(lambda: state()["status"] in ("completed", "failed"))
    return state()


def expected(clips: Path, path: Path, fps: float, **arguments: Any) -> bytes:
    """Return the file of the clip that the pipeline makes."""
    with open_pipeline(clips) as pipe:
        given = {"image": IMAGE, "control_images": FRAMES, "num_inference_steps": 2, "seed": 7, **arguments}
        latents = pipe(**given, output_type="latent").latents
        write_clip(path, pipe.images(latents), Fraction(fps))
    return path.read_bytes()


def test_a_clip(site: Site, clips: Path, tmp_path: Path) -> None:
    job = create(site)
    assert (job["object"], job["model"], job["seed"]) == ("video", "clips", 7)
    assert job["status"] in ("queued", "in_progress", "completed")
    done = finished(site, job)
    assert (done["status"], done["progress"], done["size"], done["seconds"]) == (
        "completed",
        100,
        "24x16",
        "0.6",
    )
    assert done["expires_at"] - done["completed_at"] == clip_jobs.AGE
    content = site.http.get(f"{ROUTE}/{job['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert content.content == expected(clips, tmp_path / "clip.mp4", 5)
    part = site.http.get(f"{ROUTE}/{job['id']}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    deleted = site.http.delete(f"{ROUTE}/{job['id']}").json()
    assert deleted == {"id": job["id"], "object": "video.deleted", "deleted": True}
    error = site.refused(404, "GET", f"{ROUTE}/{job['id']}/content")
    assert "there is no clip" in error["message"]


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ("bytes=900000-", 416, "give one that begins before"),
        ("frames=1", 400, "give one such as bytes=0-99"),
    ],
)
def test_a_range_that_is_not_there(site: Site, given: str, status: int, message: str) -> None:
    job = finished(site, create(site))
    error = site.refused(status, "GET", f"{ROUTE}/{job['id']}/content", headers={"Range": given})
    assert error["message"].startswith(f"Range is {given}")
    assert message in error["message"]


def test_openais_client(site: Site) -> None:
    client = site.openai()
    job = client.post(  # as the page writes it
        "/videos",
        cast_to=object,
        body={key: str(value) for key, value in FIELDS.items()},
        files=[(name, file) for name, file in FILES],
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    video = client.videos.poll(job["id"], poll_interval_ms=5)  # type: ignore[index]
    assert video.status == "completed"
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_request_in_json(site: Site, clips: Path, tmp_path: Path) -> None:
    frames = [text_of(frame) for frame in FRAMES]
    image = {"image_url": f"data:image/png;base64,{text_of(IMAGE)}"}
    options = {"max_guidance_scale": 2.0, "min_guidance_scale": 1.5, "num_frames": 2, "guidance_end": 0.3}
    call = {**FIELDS, **options, "guidance_scale": 2.0, "input_reference": image, "control_clip": frames}
    call.pop("max_guidance_scale")
    job = create(site, json=call, data=None, files=None)
    done = finished(site, job)
    content = site.http.get(f"{ROUTE}/{done['id']}/content").content
    assert content == expected(clips, tmp_path / "clip.mp4", 5, **options)


def test_a_control_clip_that_is_a_video(site: Site, tmp_path: Path) -> None:
    write_clip(tmp_path / "control.mp4", iter(FRAMES), Fraction(3))
    video = ("control_clip", ("control.mp4", (tmp_path / "control.mp4").read_bytes()))
    job = create(site, data={"num_inference_steps": 2, "seconds": "0.5"}, files=[FILES[0], video])
    done = finished(site, job)
    # 0.5 s at the 3 frames a second of the video
    assert (done["status"], done["seconds"], done["size"]) == ("completed", "0.667", "24x16")


@pytest.fixture
def held(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    """Hold all engines up until they are let go."""
    monkeypatch.setattr("controlnext.runtime.serving.videos._PATIENCE", 0.01)
    engines.open.clear()
    yield engines
    engines.open.set()
    engines.answer = no_noise


def test_a_clip_that_is_not_done_yet(idle: Site, held: Engines) -> None:
    job = create(idle)
    assert (job["status"], job["seconds"]) == ("queued", "0.6")
    error = idle.refused(409, "GET", f"{ROUTE}/{job['id']}/content")
    assert "the clip is queued: it is at 0 %" in error["message"]
    assert idle.http.delete(f"{ROUTE}/{job['id']}").json()["deleted"]
    until(lambda: not idle.models.users)
    held.open.set()


def test_a_clip_that_fails(idle: Site, held: Engines) -> None:
    job = create(idle)
    held.answer = lambda *_: np.float32(np.nan)
    held.open.set()
    done = finished(idle, job)
    assert done["status"] == "failed"
    assert done["error"]["code"] == "failed"
    assert "the denoiser's output at step 1 of 2 is not finite" in done["error"]["message"]
    error = idle.refused(409, "GET", f"{ROUTE}/{job['id']}/content")
    assert "the clip is failed: the denoiser's output" in error["message"]


@pytest.mark.parametrize(
    ("fields", "files", "param", "message"),
    [
        ({}, FILES[:1], "control_clip", "no control clip was given"),
        ({}, FILES[1:], "input_reference", "send one"),
        ({}, [*FILES[:1], ("mask", b"x")], "mask", "mask is not a file of this route"),
        ({"num_frames": 7}, FILES, "num_frames", "this server takes at most 6"),
        ({"seconds": 9}, FILES, "seconds", "this server makes at most 6"),
        ({"seconds": 1, "num_frames": 1}, FILES, "seconds", "remove one"),
        ({"seconds": 0.7}, FILES, "seconds", "0.7 seconds are 4 frames, but the control has 3"),
        ({"fps": 1000}, FILES, "fps", "fps is '1000'"),
        ({"frames": 2}, FILES, "frames", "there is no field frames"),
        ({}, FILES + FILES[1:] * 2, "num_frames", "this server makes at most 6"),
        ({"preprocess": "edges"}, FILES, "preprocess", "unknown preprocessor"),
        ({}, [FILES[0], ("control_clip", b"#EXTM3U")], "control_clip", "or give one video: MP4, WebM"),
        ({}, [FILES[0], ("control_clip", b"GIF89a")], "control_clip", "cannot be read as a video"),
        ({}, [FILES[0], ("control_clip", file_of(drawing(1, 72, 72)))], "control_clip", "72 x 72 pixels"),
        ({"size": "17x16"}, FILES, "size", "width is 17; height and width must be multiples of 8"),
        ({"sampler": "none"}, FILES, "sampler", "unknown sampler"),
        ({"overlap": -1}, FILES, "overlap", "overlap is '-1'"),
        ({"noise_aug_strength": "nan"}, FILES, "noise_aug_strength", "finite"),
    ],
)
def test_refusals_name_the_field(
    site: Site, fields: dict[str, Any], files: list[Any], param: str, message: str
) -> None:
    error = refused_at_once(site, data={**FIELDS, **fields}, files=files)
    assert message in error["message"]
    assert error["param"] == param


def test_more_files_than_frames_may_be(site: Site) -> None:
    """They are not all read first."""
    error = site.refused(400, "POST", ROUTE, data=FIELDS, files=FILES + FILES[1:] * 4)
    assert "Too many files" in error["message"]
    assert error["code"] == "invalid_body"


def test_a_video_of_too_many_pixels(site: Site, tmp_path: Path) -> None:
    write_clip(tmp_path / "control.mp4", iter([drawing(1, 128, 64)]), Fraction(3))
    video = ("control_clip", ("control.mp4", (tmp_path / "control.mp4").read_bytes()))
    error = refused_at_once(site, data=FIELDS, files=[FILES[0], video])
    assert "at most 4096 pixels a frame" in error["message"]
    assert str(tmp_path) not in error["message"]


def test_requests_for_the_other_kind(site: Site) -> None:
    call = {"prompt": "a", "model": "clips"}
    error = site.refused(400, "POST", "/v1/images/generations", json=call)
    assert error["message"] == "the model clips makes clips, not images; send this to /v1/videos"


def test_clips_are_kept_for_a_while(idle: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finished(idle, create(idle))
    monkeypatch.setattr(clip_jobs, "MOST", 1)
    second = finished(idle, create(idle))
    idle.refused(404, "GET", f"{ROUTE}/{first['id']}")
    monkeypatch.setattr(clip_jobs, "AGE", -1)
    idle.refused(404, "GET", f"{ROUTE}/{second['id']}")


def test_a_clock_that_jumps_neither_removes_clips_nor_keeps_them(
    idle: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day ahead, a day back: what counts is the time that has passed."""
    clip, clock = finished(idle, create(idle)), SimpleNamespace(time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(clip_jobs, "time", clock)
    for days in (1, -1):
        clock.time = lambda days=days: time.time() + days * 86400
        assert idle.http.get(f"{ROUTE}/{clip['id']}").json()["status"] == "completed"
    clock.monotonic = lambda: time.monotonic() + clip_jobs.AGE + 1
    idle.refused(404, "GET", f"{ROUTE}/{clip['id']}")
