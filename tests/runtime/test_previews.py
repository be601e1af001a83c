"""Previews: by a decoder of their own where a bundle has one, else by the published map of latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from controlnext.errors import InputError
from controlnext.families import get_family
from controlnext.runtime import Pipeline
from controlnext.runtime.warm_up import warm_up
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing, rand
from support.serving import USUAL, events_of, image_call, pixels_of, serve

Opened = Callable[..., Pipeline]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Return a function that opens a fake bundle."""

    def open_bundle(family: str = "sdxl", previews: bool = False) -> Pipeline:
        return Pipeline.load(write_fake_bundle(tmp_path / "bundle", family, previews=previews), device="cpu")

    return open_bundle


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_latents_are_mapped_to_colours_as_published(opened: Opened, family: str) -> None:
    """With ComfyUI's arithmetic, one pixel for each latent."""
    rgb = get_family(family).latent_rgb
    assert rgb
    latents = rand(1, 2, len(rgb.factors), 5, 7)
    maps = torch.tensor(rgb.factors).T, torch.tensor(rgb.bias)
    linear = torch.nn.functional.linear(torch.from_numpy(latents).movedim(1, -1), *maps)
    wanted = linear.clamp(-1, 1).add(1).mul(127.5).numpy()
    with opened(family) as pipe:
        images = pipe.preview(latents)
        assert np.abs(255 * pipe.preview(latents, "np") - wanted).max() < 1e-3
    assert [image.size for image in images] == [(7, 5)] * 2
    assert np.abs(np.asarray(images[1]) - wanted[1]).max() <= 0.5 + 1e-3


def test_a_decoder_for_previews_has_its_own_scaling(opened: Opened) -> None:
    """The fake ones show the latents; the full VAE's are divided by 0.5, these by 0.25."""
    latents = 0.05 * rand(1, 2, 4, 3, 2)
    with opened(previews=True) as pipe:
        warm_up(pipe, 64)
        assert "preview_decoder" in pipe.bundle.backends
        preview, whole = pipe.preview(latents, "np"), pipe.decode(latents, "np")
        assert preview.shape == (2, 24, 16, 3)
        np.testing.assert_allclose(preview - 0.5, 2 * (whole - 0.5), atol=1e-6)
        unfinished = np.asarray(pipe.unfinished(latents)[0], np.float32)
        assert np.abs(unfinished - 255 * preview[0]).max() <= 0.51


def test_without_it_unfinished_images_are_those_of_the_vae(opened: Opened) -> None:
    latents = rand(1, 1, 4, 3, 2)
    with opened() as pipe:
        (unfinished,), (decoded,) = pipe.unfinished(latents), pipe.decode(latents)
        assert unfinished.tobytes() == decoded.tobytes()


_NO_LATENTS = [
    ("x", "latents is 'x'; give numbers"),
    ([[1, 2], [3]], "latents is not an array of numbers"),
    (np.full((1, 4, 3, 2), np.nan), "latents has 24 values of 24 that are NaN or infinite"),
    (np.full((1, 4, 3, 2), 1j), "latents is array.*; give numbers"),
    (np.zeros((0, 4, 3, 2)), r"latents have shape \(0, 4, 3, 2\), expected"),
]


def test_what_is_no_preview_is_refused(opened: Opened) -> None:
    with opened() as pipe:
        with pytest.raises(InputError, match="unknown output_type 'latent' for images; accepted: pil, np"):
            pipe.preview(rand(1, 1, 4, 3, 2), "latent")
        with pytest.raises(InputError, match=r"latents have shape \(1, 16, 3, 2\), expected \(N, 4, height"):
            pipe.preview(rand(1, 1, 16, 3, 2))
        with pytest.raises(InputError, match=r"latents have shape \(4, 3, 2\)"):
            pipe.preview(rand(1, 4, 3, 2))
        for make in (pipe.preview, pipe.decode):
            for given, message in _NO_LATENTS:
                with pytest.raises(InputError, match=message):
                    make(given)  # type: ignore[arg-type]
        pipe.family = replace(pipe.family, latent_rgb=None)
        with pytest.raises(InputError, match=r"has no tiny VAE for previews.*; export it with `preview_vae`"):
            pipe.preview(rand(1, 1, 4, 3, 2))


def test_a_servers_partial_images_are_previews(tmp_path: Path) -> None:
    """Those of the steps, made by the decoder of previews; the finished image is the VAE's."""
    bundle = write_fake_bundle(tmp_path / "toy", previews=True)
    with serve([bundle]) as site, Pipeline.load(bundle, device="cpu") as alone:
        call = image_call(stream=True, partial_images=1)
        with site.http.stream("POST", "/v1/images/generations", json=call) as response:
            partial, finished = events_of(response)
        steps = list(alone.stream("a red circle", control_image=drawing(1, 24, 16), **USUAL))
        (preview,), (image,) = alone.preview(steps[3].latents), alone.decode(steps[-1].latents)
    assert partial["type"] == "image_generation.partial_image"
    assert np.array_equal(pixels_of(partial["b64_json"]), np.asarray(preview))
    assert np.array_equal(pixels_of(finished["b64_json"]), np.asarray(image))
