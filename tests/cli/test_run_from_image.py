"""``controlnext run`` from an image, with a mask, and at a larger size, writes the pipeline's images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controlnext.runtime import Pipeline
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing
from support.runs import assert_same, run
from support.start_images import mask, photo

CONTROL, PHOTO, MASK = drawing(1, 24, 16), photo(2, 30, 18), mask(30, 18)
CALL = {"prompt": "a red circle", "num_inference_steps": 5, "seed": 3}
FLAGS = {"prompt": "a red circle", "steps": 5, "seed": 3}


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("start") / "bundle", encoder=True)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"control": CONTROL, "photo": PHOTO, "mask": MASK}
    for name, image in made.items():
        image.save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in made}


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ({"image": "photo", "strength": 0.5}, (24, 16)),
        ({"init-image": "photo", "mask": "mask", "height": 32, "width": 40}, (40, 32)),
        ({"image": "photo", "mask-image": "mask", "padding-mask-crop": 2}, (30, 18)),
        ({"image": "photo", "mask-image": "mask", "overlay": True}, (30, 18)),
        ({"upscale": 2, "upscale-mode": "latent", "strength": 0.5}, (48, 32)),
    ],
)
def test_the_image_is_the_pipelines(
    cli: Cli,
    encoding: Path,
    files: dict[str, Path],
    tmp_path: Path,
    flags: dict[str, Any],
    size: tuple[int, int],
) -> None:
    """And its size is told."""
    given = {
        name: files.get(value, value) if isinstance(value, str) else value for name, value in flags.items()
    }
    output = tmp_path / "made.png"
    options = {**FLAGS, **given, "control_image": files["control"], "output": output, "json": True}
    done = run(cli, encoding, **options)
    assert (done.status, done.err) == (0, "")
    told = json.loads(done.out)
    assert (told["width"], told["height"], told["count"]) == (*size, 1)
    named = {"init_image": "image", "mask": "mask_image"}
    images = {"photo": PHOTO, "mask": MASK}
    call = {
        name.replace("-", "_"): images.get(value, value) if isinstance(value, str) else value
        for name, value in flags.items()
    }
    with Pipeline.load(encoding) as pipe:
        call = {named.get(name, name): value for name, value in call.items()}
        (wanted,) = pipe(**CALL, control_image=CONTROL, **call).images
    assert_same(output, wanted)


def test_refusals_name_the_option(cli: Cli, encoding: Path, files: dict[str, Path]) -> None:
    common = {**FLAGS, "control_image": files["control"]}
    for flags, message in (
        ({"image": files["photo"], "strength": 0.1}, "raise --strength or --steps"),
        ({"mask_image": files["mask"]}, "set --image"),
        ({"strength": 0.5}, "--strength was given, but has no effect without --image, --upscale; add that"),
        ({"upscale_mode": "latent"}, "--upscale-mode was given, but has no effect without --upscale;"),
        ({"image": files["photo"], "mask_image": files["control"]}, "give --mask-image the size of --image"),
        ({"image": files["photo"].with_name("none.png")}, "none.png: No such file or directory; give a PNG"),
        (
            {"image": files["photo"], "mask_image": files["photo"].with_name("none.png")},
            "none.png: No such file or directory; give a PNG",
        ),
        ({"image": files["photo"], "strength": 2}, "--strength is 2.0; it must be a number from 0"),
    ):
        assert_refused(run(cli, encoding, **common, **flags), message)
