"""What cannot start from an image is refused in one line, which says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle
from support.image_calls import arguments
from support.recipe import rand
from support.start_images import mask, outside, photo

PHOTO, MASK = photo(1, 24, 16), mask(24, 16)

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"strength": 1.5}, "strength", "strength is 1.5; it must be a number from 0"),
    ({"strength": True}, "strength", "strength is True"),
    ({"image": PHOTO, "strength": 0.0}, "strength", "strength is 0, which leaves none of 3 steps; raise"),
    ({"image": PHOTO, "strength": 0.3}, "strength", "strength is 0.3, which leaves none of 3 steps"),
    ({"mask_image": MASK}, "image", "`mask_image` was given without an image; set `image`"),
    ({"padding_mask_crop": 3}, "image", "`padding_mask_crop` was given without an image"),
    (
        {"image": PHOTO, "mask_image": mask(16, 24)},
        "mask_image",
        "the mask has 16 x 24 pixels, the image 24 x 16; give `mask_image` the size of `image`",
    ),
    (
        {"image": PHOTO, "padding_mask_crop": 3, "output_type": "pil"},
        "mask_image",
        "was given without a mask",
    ),
    (
        {"image": PHOTO, "overlay": True, "output_type": "pil"},
        "mask_image",
        "`overlay` was given without a mask",
    ),
    (
        {"image": PHOTO, "mask_image": MASK, "padding_mask_crop": -1},
        "padding_mask_crop",
        "padding_mask_crop is -1; it must be an integer of at least 0",
    ),
    (
        {"image": PHOTO, "mask_image": MASK, "overlay": True, "output_type": "np"},
        "output_type",
        "output_type is 'np', but overlay puts the result into the image; give pil",
    ),
    (
        {
            "image": PHOTO,
            "mask_image": Image.new("L", (24, 16)),
            "padding_mask_crop": 0,
            "output_type": "pil",
        },
        "mask_image",
        "the mask is black everywhere",
    ),
    (
        {
            "image": [PHOTO] * 2,
            "prompt": ["a", "b"],
            "mask_image": MASK,
            "padding_mask_crop": 0,
            "output_type": "pil",
        },
        "padding_mask_crop",
        "padding_mask_crop was given with 2 images and 1 masks; give one of each",
    ),
    ({"image": [PHOTO] * 2}, "image", "2 images were given for one prompt; give one"),
    ({"image": PHOTO, "mask_image": [MASK] * 3}, "mask_image", "3 masks were given for one prompt"),
    ({"image": "photo.png"}, "image", "is of type str"),
    ({"image": PHOTO, "latents": rand(1, 1, 4, 2, 3)}, "latents", "latents and image were given; give one"),
    ({"upscale": 1.0}, "upscale", "upscale is 1.0; it must be a number above 1, at most 8"),
    (
        {"upscale": 1.1},
        "upscale",
        "upscale is 1.1, which makes 24 x 16 of 24 x 16 pixels; give one that makes",
    ),
    (
        {"upscale": 2, "upscale_mode": "cubic"},
        "upscale_mode",
        "unknown upscale_mode 'cubic'; accepted: pixel, latent",
    ),
    ({"upscale": 2, "image": PHOTO, "mask_image": MASK}, "upscale", "`upscale` and `mask_image` were given"),
    ({"image": PHOTO, "height": 17}, "height", "height is 17; height and width must be multiples of 8"),
]


@pytest.fixture(scope="module")
def encoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = write_fake_bundle(tmp_path_factory.mktemp("start") / "bundle", encoder=True, shallow=True)
    with Pipeline.load(path, cache=False) as made:
        yield made


@pytest.mark.parametrize(("changes", "argument", "message"), REFUSED)
def test_refusals_name_the_argument(
    encoding: Any, changes: dict[str, Any], argument: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        encoding(**arguments(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.argument == argument


def test_a_bundle_without_an_encoder_says_how_to_get_it(pipe: Any) -> None:
    """It runs from noise, and enlarges latents, as ever."""
    for changes, name in (({"image": PHOTO}, "image"), ({"upscale": 2}, "upscale")):
        with pytest.raises(
            InputError, match=f"has no vae_encoder, which `{name}` needs; export it again"
        ) as caught:
            pipe(**arguments(**changes))
        assert caught.value.argument == name
    assert pipe(**arguments(upscale=2, upscale_mode="latent")).latents.shape == (1, 4, 4, 6)


def test_a_family_that_cannot_is_told(encoding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(encoding.bundle, "family", replace(encoding.family, image_start=None))
    with pytest.raises(InputError, match="cannot start from an image; remove `image`"):
        encoding(**arguments(image=PHOTO))


def test_the_size_is_the_images_unless_another_is_given(encoding: Any) -> None:
    """Rounded down; images are read as control images are."""
    given = photo(2, 43, 30)
    assert encoding(**arguments(image=given)).latents.shape[2:] == (3, 5)
    assert encoding(**arguments(image=given, height=16, width=8)).latents.shape[2:] == (2, 1)
    pixels = np.asarray(given)
    wanted = encoding(**arguments(image=given)).latents
    for same in (pixels, (pixels / 255).astype(np.float32)):
        np.testing.assert_allclose(encoding(**arguments(image=same)).latents, wanted, atol=2e-3)


def test_a_mask_keeps_the_image_and_an_overlay_its_pixels(encoding: Any) -> None:
    """For each prompt and each of its results."""
    images, masks = [photo(1, 24, 16), photo(2, 24, 16)], [mask(24, 16), mask(24, 16).rotate(180)]
    call = arguments(
        prompt=["a", "red"],
        image=images,
        mask_image=masks,
        overlay=True,
        num_images_per_prompt=2,
        output_type="pil",
    )
    made = encoding(**call).images
    assert len(made) == 4
    for number, result in enumerate(made):
        image, black = images[number // 2], outside(masks[number // 2])
        np.testing.assert_array_equal(np.asarray(result)[black], np.asarray(image)[black])
        assert (np.asarray(result)[~black] != np.asarray(image)[~black]).any()
    streamed = list(encoding.stream(**call))
    again = encoding.result_images(encoding.request(**call), streamed[-1].latents)
    assert [image.tobytes() for image in again] == [image.tobytes() for image in made]
