"""The list of clips, and their length before they are made."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controlnext.runtime.media.video_files import write_clip
from controlnext.runtime.serving.clip_calls import ClipFields
from controlnext.runtime.serving.clip_work import ClipUploads, ClipWork
from controlnext.runtime.serving.settings import ServerSettings
from support.recipe import drawing
from support.serving import Site, file_of, text_of

ROUTE = "/v1/videos"
FRAMES = [drawing(number, 24, 16) for number in range(3)]


def create(site: Site) -> str:
    frame = text_of(FRAMES[0])
    call = {"input_reference": frame, "control_clip": [frame], "num_inference_steps": 1}
    answer = site.http.post(ROUTE, json=call)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def test_the_clips_are_listed(several: Site) -> None:
    """A page after the other, those of all replicas; others may make clips meanwhile."""
    own = [create(several) for _ in range(3)]
    whole = several.http.get(ROUTE, params={"limit": 100, "order": "asc"}).json()
    assert (whole["object"], whole["has_more"]) == ("list", False)
    assert [clip["id"] for clip in whole["data"] if clip["id"] in own] == own
    assert {clip["object"] for clip in whole["data"]} == {"video"}
    page = several.http.get(ROUTE, params={"limit": 1, "after": own[2]}).json()
    assert (len(page["data"]), page["first_id"]) == (1, page["last_id"])
    assert own[2] not in str(page)
    newest = [clip.id for clip in several.openai().videos.list(limit=2) if clip.id in own]
    assert newest == own[::-1]
    for name in own:
        assert several.openai().videos.delete(name).deleted
    assert not set(own) & {clip["id"] for clip in several.http.get(ROUTE).json()["data"]}


@pytest.mark.parametrize(
    ("status", "param", "value"),
    [(400, "limit", "0"), (400, "limit", "101"), (400, "order", "newest"), (404, "after", "video_none")],
)
def test_pages_that_are_not_there(several: Site, status: int, param: str, value: str) -> None:
    error = several.refused(status, "GET", ROUTE, params={param: value})
    assert error["param"] == param
    assert value in error["message"]


@pytest.mark.parametrize(
    ("fields", "as_video", "seconds"),
    [
        ({}, False, "0.429"),
        ({"fps": 5}, False, "0.6"),
        ({"fps": 5, "num_frames": 2}, False, "0.4"),
        ({"fps": 4, "seconds": 1.1}, False, "1"),
        ({"seconds": 1.1}, True, "1.1"),
        ({"fps": 4, "seconds": 1.1}, True, "1"),
        ({"fps": 4, "num_frames": 2}, True, "0.5"),
        ({"num_frames": 2}, True, "0"),
    ],
)
def test_the_length_of_a_clip_that_waits(
    fields: dict[str, Any], as_video: bool, seconds: str, tmp_path: Path
) -> None:
    """It is known before the bundle is loaded, unless the control clip has to be read for it."""
    control = [file_of(frame) for frame in FRAMES]
    if as_video:
        write_clip(tmp_path / "control.mp4", iter(FRAMES), Fraction(3))
        control = [(tmp_path / "control.mp4").read_bytes()]
    family = SimpleNamespace(default_steps=25)
    profile = SimpleNamespace(family=family)
    service: Any = SimpleNamespace(settings=ServerSettings(), choose=lambda *_: profile)
    work = ClipWork(service, ClipFields(**fields), ClipUploads([b""], control), tmp_path / "clip.mp4")
    assert work.seconds == seconds
