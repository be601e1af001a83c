"""Optimization profiles: from the sizes that a user names to the shapes of every input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import controlnext.weights
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines.tensorrt.profile import Range, choose_ranges, make_profile, parse_range
from controlnext.errors import InputError
from controlnext.families import get_family
from controlnext.tensor_spec import bind
from support.fake_bundle import write_fake_bundle

CONFIGS = Path(controlnext.weights.__file__).parent / "configs"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Manifest]:
    """Of image families, with the published denoisers' configurations."""
    return {
        name: _published(read_manifest(write_fake_bundle(tmp_path_factory.mktemp(name) / "bundle", name)))
        for name in ("sd15", "sdxl", "sd3")
    }


def _published(manifest: Manifest) -> Manifest:
    family = get_family(manifest.family)
    path = CONFIGS / family.name / family.denoiser / "config.json"
    config = msgspec.json.decode(path.read_bytes())
    return msgspec.structs.replace(manifest, configs={**manifest.configs, family.denoiser: config})


def _ranges(smallest: int, largest: int) -> st.SearchStrategy[Range]:
    sizes = st.integers(smallest, largest)
    return st.tuples(sizes, sizes, sizes).map(lambda found: Range(*sorted(found)))


@given(
    family=st.sampled_from(["sd15", "sdxl", "sd3"]),
    height=_ranges(8, 90),
    width=_ranges(8, 90),
    batch=_ranges(1, 6),
)
def test_profiles_say_what_the_specs_say(
    manifests: Mapping[str, Manifest], family: str, height: Range, width: Range, batch: Range
) -> None:
    """The shapes of each kind fit the specs together; images have the sizes that the user named; a guided
    batch has two rows for each image."""
    manifest = manifests[family]
    wishes = {"height": height.times(16), "width": width.times(16), "batch": batch}
    ranges = choose_ranges(manifest, wishes)
    for folder, graph in manifest.graphs.items():
        profile = make_profile(manifest, folder, ranges)
        assert list(profile) == [tensor.name for tensor in graph.inputs]
        for kind in range(3):
            feed = {
                t.name: np.broadcast_to(np.zeros((), t.dtype), profile[t.name][kind]) for t in graph.inputs
            }
            bind([tensor.spec() for tensor in graph.inputs], feed, folder)
        for smallest, usual, largest in profile.values():
            assert all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True))
    denoiser = make_profile(manifest, get_family(family).denoiser, ranges)
    images = denoiser["control_image"]
    assert [shape[-2] for shape in images] == list(wishes["height"])
    assert [shape[-1] for shape in images] == list(wishes["width"])
    assert [shape[0] for shape in images] == [1, 1, 2 * batch.largest]
    assert [shape[0] for shape in denoiser["sample"]] == [1, 2 * batch.usual, 2 * batch.largest]
    latents = make_profile(manifest, "vae_decoder", ranges)["latent_sample"]
    assert [shape[0] for shape in latents] == [1, *batch[1:]]
    assert [8 * shape[-1] for shape in latents] == list(wishes["width"])


@pytest.mark.parametrize(
    ("family", "size"), [("sd15", "256:512:768"), ("sdxl", "512:1024:1536"), ("sd3", "512:1024:1536")]
)
def test_default_sizes_are_around_what_the_model_was_trained_at(
    manifests: Mapping[str, Manifest], family: str, size: str
) -> None:
    ranges = choose_ranges(manifests[family], {})
    assert {name: str(found) for name, found in ranges.items()} == {
        "height": size,
        "width": size,
        "batch": "1:1:4",
    }


def test_prompts_are_as_long_as_their_encoders_make_them(manifests: Mapping[str, Manifest]) -> None:
    """SD3's have the tokens of T5 behind those of CLIP, zeros where the bundle has no T5."""
    for family, tokens in (("sdxl", 77), ("sd3", 77 + 256)):
        profile = make_profile(
            manifests[family], get_family(family).denoiser, choose_ranges(manifests[family], {})
        )
        assert {shape[1] for shape in profile["encoder_hidden_states"]} == {tokens}


def test_a_clip_has_frames_and_one_token(tiny: Callable[..., Path]) -> None:
    manifest = read_manifest(tiny("svd"))
    ranges = choose_ranges(manifest, {"frames": Range(2, 14, 24), "batch": Range(1, 1, 1)})
    profile = make_profile(manifest, "unet", ranges)
    assert [shape[:2] for shape in profile["sample"]] == [[1, 2], [2, 14], [2, 24]]
    assert {shape[1] for shape in profile["encoder_hidden_states"]} == {1}
    assert [shape[0] for shape in make_profile(manifest, "vae_decoder", ranges)["latent_sample"]] == [
        2,
        14,
        24,
    ]
    (pixels,) = make_profile(manifest, "image_encoder", ranges).values()
    assert pixels == [[1, 3, 224, 224]] * 3


@pytest.mark.parametrize(
    ("family", "wishes", "message"),
    [
        ("sdxl", {"height": Range(512, 1020, 1024)}, "height is 512:1020:1024; .* supports multiples of 8"),
        ("sd3", {"width": Range(520, 520, 520)}, "width is 520; .* supports multiples of 16"),
        (
            "sdxl",
            {"frames": Range(1, 2, 3)},
            "frames is not supported by Stable Diffusion XL; remove `frames`",
        ),
        ("sd3", {"height": Range(512, 1024, 4096)}, "this model supports at most 3072"),
    ],
)
def test_sizes_that_the_model_does_not_take(
    manifests: Mapping[str, Manifest], family: str, wishes: dict[str, Range], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_ranges(manifests[family], wishes)


@pytest.mark.parametrize("text", ["", "0", "-8", "1:2", "1:2:3:4", "8:x:16", "16:8:24", "1.5", "512,1024"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"MIN:OPT:MAX"):
        parse_range("height", text)


@pytest.mark.parametrize(("text", "expected"), [("512", (512, 512, 512)), ("64:128:192", (64, 128, 192))])
def test_ranges_read_as_they_are_written(text: str, expected: tuple[int, int, int]) -> None:
    assert parse_range("height", text) == expected
    assert str(parse_range("height", text)) == text
