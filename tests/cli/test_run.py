"""``controlnext run`` with image bundles writes the pipeline's images, and refuses bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from controlnext.runtime import Pipeline
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.fake_loras import write_fake_lora
from support.fake_prompts import write_fake_prompts
from support.recipe import drawing
from support.runs import assert_same, run

Bundles = dict[str, Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Write fake image bundles: with one control, with two, and without text encoders."""
    directory = tmp_path_factory.mktemp("bundles")
    return {
        "image": write_fake_bundle(directory / "image"),
        "two controls": write_fake_bundle(directory / "two", controls=2),
        "no text": write_fake_bundle(directory / "bare", text_encoders=False),
        "two prompts": write_fake_prompts(directory / "prompts", 2),
    }


def test_several_images_are_numbered(cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path) -> None:
    """The images are the pipeline's with the same arguments."""
    flags = {"negative_prompt": "green", "guidance": 2.5, "sampler": "euler", "steps": 3, "seed": 4}
    flags |= {"scale": 0.6, "control_start": 0.3, "control_end": 0.7, "width": 32, "height": 16}
    flags |= {"prompt": "a red circle", "control_image": outline, "num_images": 2, "guidance_end": 0.4}
    output = tmp_path / "new" / "image.png"
    done = run(cli, bundles["image"], **flags, output=output)
    assert (done.status, done.err) == (0, "")
    files = [tmp_path / "new" / f"image-{number}.png" for number in (1, 2)]
    assert f"{files[0]} to {files[1]}: 2 images of 32 x 16, 3 steps" in done.out
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
            guidance_end=0.4,
            width=32,
            height=16,
            num_images_per_prompt=2,
        )
    assert sorted(output.parent.iterdir()) == files
    for path, image in zip(files, wanted.images, strict=True):
        assert_same(path, image)


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [("timesteps", "999, 500,20", [999, 500, 20]), ("sigmas", "14.6,1,0", [14.6, 1, 0])],
)
def test_given_steps(
    cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path, name: str, text: str, values: list[float]
) -> None:
    output = tmp_path / "image.png"
    flags = {"prompt": "a", "control_image": outline, "sampler": "euler", name: text, "output": output}
    assert run(cli, bundles["image"], **flags).status == 0
    with Pipeline.load(bundles["image"]) as pipe:
        wanted = pipe("a", control_image=Image.open(outline), sampler="euler", **{name: values})
    assert_same(output, wanted.images[0])


def test_one_image_as_json(cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path) -> None:
    """The pipeline's defaults hold: the size is the control image's. With --offload the image is the same."""
    output = tmp_path / "image.png"
    flags = {"prompt": "a", "control_image": outline, "steps": 2, "output": output, "device": "cpu"}
    done = run(cli, bundles["image"], **flags)
    assert done.out.startswith(f"{output}: 64 x 48, 2 steps, ")
    assert done.out.endswith(" s, onnxruntime on cpu\n")
    again = run(cli, bundles["image"], **flags, json=True, offload=True)
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
        assert_same(output, pipe("a", control_image=drawing(1, 64, 48), num_inference_steps=2).images[0])


def test_several_controls(cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path) -> None:
    """Each control has its image; there is one scale for all, or one per control."""
    drawing(2, 64, 48).save(tmp_path / "second.png")
    images, output = [outline, tmp_path / "second.png"], tmp_path / "image.png"
    with Pipeline.load(bundles["two controls"]) as pipe:
        for scale in (0.5, [0.2, 0.9]):
            flags = {"prompt": "a", "control_image": images, "scale": scale, "steps": 1, "output": output}
            assert run(cli, bundles["two controls"], **flags).status == 0
            wanted = pipe(
                "a", control_image=[*map(Image.open, images)], control_scale=scale, num_inference_steps=1
            )
            assert_same(output, wanted.images[0])


@pytest.mark.parametrize(
    ("bundle", "flags", "words"),
    [
        ("no text", {"prompt": "a house"}, ["text encoders"]),
        ("image", {"steps": -3}, ["-3"]),
        ("image", {"height": 100}, ["height", "100", "multiple"]),
        ("image", {"sampler": "best"}, ["'best'", "unipc"]),
        ("image", {"preprocess": "magic"}, ["'magic'", "canny"]),
        ("image", {"scale": "nan"}, ["--scale is nan; it must be a finite number"]),
        ("image", {"timesteps": "999,x", "steps": []}, ["--timesteps is '999,x'; give numbers with commas"]),
        (
            "image",
            {"timesteps": "-1", "steps": []},
            ["--timesteps has -1 out of order; give a list of integers"],
        ),
        ("image", {"timesteps": "999"}, ["--steps and --timesteps were given"]),
        ("image", {"sigmas": "2,0", "steps": []}, ["'unipc' does not take; use --sampler euler, or --steps"]),
        ("image", {"num_images": 0}, ["--num-images is 0", "an integer from 1"]),
        ("image", {"control_image": "missing.png"}, ["missing.png"]),
        ("image", {"control_image": "."}, ["cannot read image"]),
        ("image", {"output": "."}, ["is a directory"]),
        ("image", {"output": "image.txt"}, ["image.txt", ".png"]),
        ("image", {"output": "{tmp}/outline.png/new.png"}, ["cannot write to", "--output"]),
        ("image", {"prompt": []}, ["Stable Diffusion XL needs --prompt"]),
        ("image", {"control_image": []}, ["--control-image"]),
        (
            "image",
            {"frames": 2, "decode_chunk": 2},
            ["Stable Diffusion XL does not support --frames, --decode-chunk;", "accepted:", "--num-images"],
        ),
        ("image", {"fps": 7}, ["does not support --fps;"]),
        ("image", {"scale": [1, 2]}, ["--scale was given 2 times, but the number of controls is 1"]),
        ("two controls", {}, ["--control-image was given 1 times, but the number of controls is 2"]),
        (
            "two prompts",
            {"ip_adapter_image": "{tmp}/outline.png"},
            ["--ip-adapter-image was given 1 times, but the number of IP-Adapters is 2; give one per"],
        ),
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
    assert_refused(run(cli, bundles[bundle], **given), *words)
    assert list(tmp_path.iterdir()) == [outline]


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image"])
def test_an_unreadable_image_is_one_line(cli: Cli, tmp_path: Path, bundles: Bundles, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    done = run(cli, bundles["image"], prompt="a", control_image=tmp_path / "broken.png")
    assert_refused(done, "cannot read image", "broken.png")


def test_a_truncated_image_is_one_line(cli: Cli, bundles: Bundles, outline: Path) -> None:
    outline.write_bytes(outline.read_bytes()[:-30])
    done = run(cli, bundles["image"], prompt="a", control_image=outline)
    assert_refused(done, "cannot read image")


def test_a_photo_that_lies_on_its_side_is_put_upright(cli: Cli, tmp_path: Path, bundles: Bundles) -> None:
    """The EXIF orientation is applied: 6 means rotated by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing(1, 64, 48).save(tmp_path / "photo.png", exif=exif)
    output = tmp_path / "out.png"
    flags = {"prompt": "a", "steps": 1, "output": output}
    assert run(cli, bundles["image"], control_image=tmp_path / "photo.png", **flags).status == 0
    with Pipeline.load(bundles["image"]) as pipe:
        upright = drawing(1, 64, 48).transpose(Image.Transpose.ROTATE_270)
        assert_same(output, pipe("a", control_image=upright, num_inference_steps=1).images[0])


def test_loras_with_their_scales(cli: Cli, tmp_path: Path, outline: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "roomy", lora_rank=4)
    files = [write_fake_lora(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab")]
    flags = {"prompt": "a red circle", "control_image": outline, "steps": 2, "output": tmp_path / "a.png"}
    done = run(cli, bundle, **flags, lora=[f"{files[0]}:0.5", files[1]])
    assert (done.status, done.err) == (0, "")
    with Pipeline.load(bundle) as pipe:
        for name, file in zip("ab", files, strict=True):
            pipe.add_lora(name, file)
        given = {"control_image": Image.open(outline), "num_inference_steps": 2}
        wanted = pipe("a red circle", **given, lora={"a": 0.5, "b": 1.0})
    assert_same(tmp_path / "a.png", wanted.images[0])


def test_a_lora_without_room_says_which_option_makes_it(
    cli: Cli, tmp_path: Path, bundles: Bundles, outline: Path
) -> None:
    file = write_fake_lora(tmp_path / "a.safetensors", 1)
    done = run(cli, bundles["image"], prompt="a", control_image=outline, lora=file)
    assert_refused(done, "no room for LoRAs", "--lora-rank N")
