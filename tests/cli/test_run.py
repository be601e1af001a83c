"""``controlnext run``: the same images and clips as the pipeline's, in files; one line for a mistake."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.preprocess import preprocess
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing

WIDTH, HEIGHT, FRAMES = 96, 64, 7
FLAGS = {"steps": 1, "seed": 3, "frames_per_batch": 4, "overlap": 2}
ARGUMENTS = {"num_inference_steps": 1, "seed": 3, "frames_per_batch": 4, "overlap": 2}
Bundles = dict[str, Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Image bundles of a few operators: with one control, with two, and without text encoders."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "image": write_fake_bundle(folder / "image"),
        "two controls": write_fake_bundle(folder / "two", controls=2),
        "no text": write_fake_bundle(folder / "bare", text_encoders=False),
    }


@pytest.fixture
def outline(tmp_path: Path) -> Path:
    path = tmp_path / "outline.png"
    drawing(1, 64, 48).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A control clip as images."""
    (tmp_path / "control").mkdir()
    for number in range(FRAMES):
        drawing(number, WIDTH, HEIGHT).save(tmp_path / "control" / f"{number}.png")
    return tmp_path / "control"


def _run(cli: Cli, bundle: Path, **flags: Any) -> Any:
    """``controlnext run`` with these options; a list is an option that is given several times."""
    arguments: list[object] = []
    for name, values in flags.items():
        for value in values if isinstance(values, list) else [values]:
            arguments.append(f"--{name.replace('_', '-')}")
            arguments += [] if value is True else [value]
    return cli("run", bundle, *arguments)


def _assert_same(path: Path, image: Image.Image) -> None:
    with Image.open(path) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(image))


def test_several_images_are_numbered(cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path) -> None:
    """They are those of the pipeline with the arguments of the same meaning."""
    flags = {"negative_prompt": "green", "guidance": 2.5, "sampler": "euler", "steps": 3, "seed": 4}
    flags |= {"scale": 0.6, "control_start": 0.3, "control_end": 0.7, "width": 32, "height": 16}
    flags |= {"prompt": "a red circle", "control_image": outline, "num_images": 2}
    output = tmp_path / "new" / "image.png"
    done = _run(cli, bundles["image"], **flags, output=output)
    assert (done.status, done.err) == (0, "")
    files = [tmp_path / "new" / f"image-{number}.png" for number in (1, 2)]
    assert f"{files[0]} to {files[1]}: 2 of 32 x 16, 3 steps" in done.out
    with Pipeline.load(bundles["image"]) as pipe:
        wanted = pipe(
            "a red circle",
            "green",
            Image.open(outline),
            guidance_scale=2.5,
            sampler="euler",
            num_inference_steps=3,
            seed=4,
            control_scale=0.6,
            control_start=0.3,
            control_end=0.7,
            width=32,
            height=16,
            num_images_per_prompt=2,
        )
    assert sorted(output.parent.iterdir()) == files
    for path, image in zip(files, wanted.images, strict=True):
        _assert_same(path, image)


def test_one_image_as_json(cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path) -> None:
    """What is not asked for is left to the pipeline: the size is the control image's. Offloaded it is the
    same image."""
    output = tmp_path / "image.png"
    flags = {"prompt": "a", "control_image": outline, "steps": 2, "output": output, "device": "cpu"}
    done = _run(cli, bundles["image"], **flags)
    assert done.out.startswith(f"{output}: 64 x 48, 2 steps, ")
    assert done.out.endswith(" s, onnxruntime on cpu\n")
    again = _run(cli, bundles["image"], **flags, json=True, offload=True)
    assert (again.status, again.err) == (0, "")
    result = json.loads(again.out)
    assert result.pop("seconds") >= 0
    assert result == {
        "output": str(output),
        "files": [str(output)],
        "width": 64,
        "height": 48,
        "count": 1,
        "steps": 2,
        "seed": 0,
        "backend": "onnxruntime on cpu",
    }
    with Pipeline.load(bundles["image"]) as pipe:
        _assert_same(output, pipe("a", control_image=drawing(1, 64, 48), num_inference_steps=2).images[0])


def test_several_controls(cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path) -> None:
    """Each has its image; one scale serves all, or each has its own."""
    drawing(2, 64, 48).save(tmp_path / "second.png")
    images, output = [outline, tmp_path / "second.png"], tmp_path / "image.png"
    with Pipeline.load(bundles["two controls"]) as pipe:
        for scale in (0.5, [0.2, 0.9]):
            flags = {"prompt": "a", "control_image": images, "scale": scale, "steps": 1, "output": output}
            assert _run(cli, bundles["two controls"], **flags).status == 0
            wanted = pipe(
                "a", control_image=[*map(Image.open, images)], control_scale=scale, num_inference_steps=1
            )
            _assert_same(output, wanted.images[0])


@pytest.mark.parametrize(
    ("bundle", "flags", "words"),
    [
        ("no text", {"prompt": "a house"}, ["text encoders"]),
        ("image", {"steps": -3}, ["-3"]),
        ("image", {"height": 100}, ["height", "100", "multiple"]),
        ("image", {"sampler": "best"}, ["'best'", "unipc"]),
        ("image", {"preprocess": "magic"}, ["'magic'", "canny"]),
        ("image", {"scale": "nan"}, ["control_scale"]),
        ("image", {"num_images": 0}, ["num_images_per_prompt is 0", "positive integer"]),
        ("image", {"control_image": "missing.png"}, ["missing.png"]),
        ("image", {"control_image": "."}, ["cannot read image"]),
        ("image", {"output": "."}, ["is a directory"]),
        ("image", {"output": "image.txt"}, ["image.txt", ".png"]),
        ("image", {"output": "{tmp}/outline.png/new.png"}, ["cannot write to", "--output"]),
        ("image", {"prompt": []}, ["Stable Diffusion XL needs --prompt"]),
        ("image", {"control_image": []}, ["--control-image"]),
        (
            "image",
            {"image": "{tmp}/outline.png", "decode_chunk": 2},
            ["Stable Diffusion XL takes no --image, --decode-chunk; leave", "accepted:", "--num-images"],
        ),
        ("image", {"fps": 7}, ["takes no --fps"]),
        ("image", {"scale": [1, 2]}, ["--scale was given 2 times, the controls of this bundle are 1"]),
        ("two controls", {}, ["--control-image was given 1 times, the controls of this bundle are 2"]),
    ],
)
def test_images_that_cannot_be(
    cli: Cli,
    tmp_path: Path,
    bundles: Bundles,
    outline: Path,
    bundle: str,
    flags: dict[str, Any],
    words: list[str],
) -> None:
    given = {"prompt": "a", "control_image": outline, "steps": 1, "output": tmp_path / "out.png", **flags}
    given = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in given.items()}
    assert_refused(_run(cli, bundles[bundle], **given), *words)
    assert list(tmp_path.iterdir()) == [outline]


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image"])
def test_an_unreadable_image_is_one_line(cli: Cli, tmp_path: Path, bundles: Bundles, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    done = _run(cli, bundles["image"], prompt="a", control_image=tmp_path / "broken.png")
    assert_refused(done, "cannot read image", "broken.png")


def test_a_truncated_image_is_one_line(cli: Cli, bundles: Bundles, outline: Path) -> None:
    outline.write_bytes(outline.read_bytes()[:-30])
    done = _run(cli, bundles["image"], prompt="a", control_image=outline)
    assert_refused(done, "cannot read image")


def test_a_photo_that_lies_on_its_side_is_put_upright(cli: Cli, tmp_path: Path, bundles: Bundles) -> None:
    """Cameras note in EXIF data how the image is to be turned: 6 is a quarter to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing(1, 64, 48).save(tmp_path / "photo.png", exif=exif)
    output = tmp_path / "out.png"
    flags = {"prompt": "a", "steps": 1, "output": output}
    assert _run(cli, bundles["image"], control_image=tmp_path / "photo.png", **flags).status == 0
    with Pipeline.load(bundles["image"]) as pipe:
        upright = drawing(1, 64, 48).transpose(Image.Transpose.ROTATE_270)
        _assert_same(output, pipe("a", control_image=upright, num_inference_steps=1).images[0])


@pytest.fixture
def svd(tiny: Any) -> Path:
    return tiny("svd")


def test_a_clip_is_the_pipelines(cli: Cli, tmp_path: Path, svd: Path, outline: Path, folder: Path) -> None:
    """In windows, and with every option that is for clips; the control goes through Canny frame by frame."""
    flags = {"frames": 6, "guidance": 2, "min_guidance": 1.5, "noise_aug_strength": 0.1, "decode_chunk": 3}
    done = _run(
        cli,
        svd,
        image=outline,
        control_image=folder,
        preprocess="canny",
        output=tmp_path / "frames",
        **FLAGS,
        **flags,
    )
    assert (done.status, done.err) == (0, "")
    assert f"{tmp_path / 'frames'}: 6 of {WIDTH} x {HEIGHT}, 1 steps" in done.out
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
        _assert_same(path, image)


def test_a_video_to_videos(
    cli: Cli, tmp_path: Path, svd: Path, outline: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder to an MP4 and that to a GIF: as many frames of the same size, as many a second as asked or as
    the control has. Nothing is left in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    first, second = tmp_path / "clip.mp4", tmp_path / "clip.gif"
    done = _run(cli, svd, image=outline, control_image=folder, fps=12.5, output=first, **FLAGS)
    assert (done.status, done.err) == (0, "")
    with av.open(str(first)) as video:
        stream = video.streams.video[0]
        shapes = [(frame.width, frame.height) for frame in video.decode(stream)]
        assert shapes == [(WIDTH, HEIGHT)] * FRAMES
        assert stream.average_rate == 12.5
    flags = {"image": outline, "control_image": first, "frames": 5, "width": 64, "output": second}
    done = _run(cli, svd, **flags, **FLAGS, json=True)
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    assert (result["files"], result["count"], result["width"]) == ([str(second)], 5, 64)
    with Image.open(second) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (5, (64, HEIGHT), 80)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"prompt": "a house"}, ["Stable Video Diffusion takes no --prompt; leave", "accepted:", "--image"]),
        ({"num_images": 2, "negative_prompt": "b"}, ["takes no --negative-prompt, --num-images"]),
        ({"image": []}, ["Stable Video Diffusion needs --image"]),
        ({"image": "{tmp}/control"}, ["cannot read image"]),
        ({"control_image": "{tmp}/missing"}, ["cannot read video", "missing", "give a directory of images"]),
        ({"control_image": "{tmp}/empty"}, ["empty has no images"]),
        ({"frames": 0}, ["--frames", "equal to 1"]),
        ({"frames": FRAMES + 1}, [f"num_frames is {FRAMES + 1}, but the control has {FRAMES}"]),
        ({"frames_per_batch": 3, "overlap": 3}, ["overlap is 3"]),
        ({"fps": 1000}, ["1000 frames a second", "--fps"]),
        ({"sampler": "unipc"}, ["'unipc'", "euler"]),
        ({"output": "{tmp}/clip.avi"}, ["clip.avi", ".mp4, .gif, or a directory"]),
        ({"output": "{tmp}/control"}, ["is there already", "empty folder"]),
        ({"output": "{tmp}/outline.png/clip.mp4", "steps": 1}, ["cannot write to", "--output"]),
    ],
)
def test_clips_that_cannot_be(
    cli: Cli,
    tmp_path: Path,
    svd: Path,
    outline: Path,
    folder: Path,
    flags: dict[str, Any],
    words: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    given = {"image": outline, "control_image": folder, "output": tmp_path / "clip.mp4", **flags}
    given = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in given.items()}
    assert_refused(_run(cli, svd, **given), *words)
    assert sorted(tmp_path.rglob("*")) == before
