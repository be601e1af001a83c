"""``controlnext run`` with a video bundle writes the pipeline's clips, and refuses bad input in one line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.preprocess import preprocess
from support.cli import Cli, assert_refused
from support.recipe import drawing
from support.runs import assert_same, run

WIDTH, HEIGHT, FRAMES = 96, 64, 7
FLAGS = {"steps": 1, "seed": 3, "frames_per_batch": 4, "overlap": 2}
ARGUMENTS = {"num_inference_steps": 1, "seed": 3, "frames_per_batch": 4, "overlap": 2}


@pytest.fixture
def control_frames(tmp_path: Path) -> Path:
    """Write a control clip as a directory of images."""
    (tmp_path / "control").mkdir()
    for number in range(FRAMES):
        drawing(number, WIDTH, HEIGHT).save(tmp_path / "control" / f"{number}.png")
    return tmp_path / "control"


@pytest.fixture
def svd(tiny: Any) -> Path:
    return tiny("svd")


def test_a_clip_is_the_pipelines(
    cli: Cli, tmp_path: Path, svd: Path, outline: Path, control_frames: Path
) -> None:
    """It is denoised in windows, with every option for clips; Canny is applied to every control frame."""
    flags = {"frames": 6, "guidance": 2, "min_guidance": 1.5, "noise_aug_strength": 0.1, "decode_chunk": 3}
    done = run(
        cli,
        svd,
        image=outline,
        control_image=control_frames,
        preprocess="canny",
        output=tmp_path / "frames",
        **FLAGS,
        **flags,
    )
    assert (done.status, done.err) == (0, "")
    assert f"{tmp_path / 'frames'}: 6 frames of {WIDTH} x {HEIGHT}, 1 step" in done.out
    with Pipeline.load(svd) as pipe:
        wanted = pipe(
            drawing(1, 64, 48),
            [preprocess("canny", drawing(number, WIDTH, HEIGHT)) for number in range(FRAMES)],
            num_frames=6,
            max_guidance_scale=2,
            min_guidance_scale=1.5,
            noise_aug_strength=0.1,
            decode_chunk_size=3,
            **ARGUMENTS,
        )
    files = sorted((tmp_path / "frames").iterdir())
    for path, image in zip(files, wanted.frames[0], strict=True):
        assert_same(path, image)


def test_a_video_to_videos(
    cli: Cli, tmp_path: Path, svd: Path, outline: Path, control_frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory gives an MP4 and that a GIF, with the frame rate of --fps or of the control video.
    Temporary files are removed."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    first, second = tmp_path / "clip.mp4", tmp_path / "clip.gif"
    done = run(cli, svd, image=outline, control_image=control_frames, fps=12.5, output=first, **FLAGS)
    assert (done.status, done.err) == (0, "")
    with av.open(str(first)) as video:
        stream = video.streams.video[0]
        shapes = [(frame.width, frame.height) for frame in video.decode(stream)]
        assert shapes == [(WIDTH, HEIGHT)] * FRAMES
        assert stream.average_rate == 12.5
    flags = {"image": outline, "control_image": first, "frames": 5, "width": 64, "output": second}
    done = run(cli, svd, **flags, **FLAGS, json=True)
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    assert (result["files"], result["count"], result["width"]) == ([str(second)], 5, 64)
    with Image.open(second) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (5, (64, HEIGHT), 80)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"prompt": "a house"},
            ["Stable Video Diffusion does not support --prompt;", "accepted:", "--image"],
        ),
        ({"num_images": 2, "negative_prompt": "b"}, ["does not support --negative-prompt, --num-images;"]),
        ({"image": []}, ["Stable Video Diffusion needs --image"]),
        ({"image": "{tmp}/control"}, ["cannot read image"]),
        ({"control_image": "{tmp}/missing"}, ["cannot read video", "missing", "give a directory of images"]),
        ({"control_image": "{tmp}/empty"}, ["empty has no images"]),
        ({"frames": 0}, ["--frames", "equal to 1"]),
        ({"frames": FRAMES + 1}, [f"--frames is {FRAMES + 1}, but the control has {FRAMES}"]),
        ({"frames_per_batch": 3, "overlap": 3}, ["overlap is 3"]),
        ({"fps": 1000}, ["1000 frames a second", "--fps"]),
        ({"sampler": "unipc"}, ["'unipc'", "euler"]),
        ({"output": "{tmp}/clip.avi"}, ["clip.avi", ".mp4, .gif, or a directory"]),
        ({"output": "{tmp}/control"}, ["already exists", "empty directory"]),
        ({"output": "{tmp}/outline.png/clip.mp4", "steps": 1}, ["cannot write to", "--output"]),
    ],
)
def test_clips_that_cannot_be(
    cli: Cli,
    tmp_path: Path,
    svd: Path,
    outline: Path,
    control_frames: Path,
    flags: dict[str, Any],
    words: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    given = {"image": outline, "control_image": control_frames, "output": tmp_path / "clip.mp4", **flags}
    given = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in given.items()}
    assert_refused(run(cli, svd, **given), *words)
    assert sorted(tmp_path.rglob("*")) == before
