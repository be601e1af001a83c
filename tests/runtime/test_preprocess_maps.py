"""Depth, soft edges and lines by small models, against OpenCV; enlarged and unchanged images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime.preprocess import make_preprocessor, preprocess, shared_preprocessor
from controlnext.runtime.preprocess.maps import Depth
from support.stand_in_models import write_constants, write_map_model


def photo(width: int = 70, height: int = 45) -> Image.Image:
    coarse = np.random.RandomState(1).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def grey(image: Image.Image) -> np.ndarray:
    levels = np.asarray(image)
    assert (levels == levels[..., :1]).all()
    return levels[..., 0]


def resized(image: Image.Image, width: int, height: int) -> np.ndarray:
    pixels = np.asarray(image).astype(np.float32)
    return np.clip(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255)


def test_depth_goes_from_black_to_white(tmp_path: Path) -> None:
    """The model's input is normalized as ImageNet's images; its least number is black, its largest white."""
    image = photo()
    model = write_map_model(tmp_path / "depth.onnx", size=(28, 42))
    with make_preprocessor("depth", weights=model) as depth:
        got = grey(depth(image))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    inside = ((resized(image, 42, 28) / 255 - mean) / deviation).mean(axis=-1)
    whole = cv2.resize(inside, (70, 45), interpolation=cv2.INTER_LINEAR)
    wanted = 255 * (whole - whole.min()) / (whole.max() - whole.min())
    assert (got.min(), got.max(), got.shape) == (0, 255, (45, 70))
    assert np.abs(got - wanted).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(70, 45), (1024, 768), (900, 300), (518, 518), (31, 700)])
def test_depth_has_the_sizes_of_transformers(tmp_path: Path, width: int, height: int) -> None:
    """Those of Depth Anything's own processor, where the model takes any size."""
    # of transformers 5; earlier ones need torchvision for it
    dpt = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    image = np.zeros((3, height, width), np.float32)
    wanted = dpt.get_resize_output_image_size(image, (518, 518), True, 14)
    found = Depth(write_map_model(tmp_path / "depth.onnx"))._size(height, width)
    assert found == (wanted.height, wanted.width)


def test_soft_edges_are_the_mean_of_side_outputs(tmp_path: Path) -> None:
    """Sizes are multiples of 8; levels come as they are; logits leave as their sigmoid."""
    image = photo()
    model = write_map_model(tmp_path / "hed.onnx", factors=(0.02, -0.01))
    with make_preprocessor("softedge", weights=model) as softedge:
        got = grey(softedge(image))
    inside = cv2.resize(resized(image, 72, 48).mean(axis=-1), (70, 45), interpolation=cv2.INTER_LINEAR)
    assert np.abs(got - 255 / (1 + np.exp(-0.005 * inside))).max() <= 1


def test_line_art_is_white_on_black(tmp_path: Path) -> None:
    image = photo(64, 48)
    with make_preprocessor("lineart", weights=write_map_model(tmp_path / "lines.onnx")) as lineart:
        got = grey(lineart(image))
    assert np.abs(got - (255 - np.asarray(image).astype(float).mean(axis=-1))).max() <= 1


def test_a_flat_map_is_black(tmp_path: Path) -> None:
    model = write_map_model(tmp_path / "depth.onnx", size=(28, 28))
    with make_preprocessor("depth", weights=model) as depth:
        assert not grey(depth(Image.new("RGB", (40, 30), (9, 9, 9)))).any()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = write_map_model(tmp_path / "lines.onnx", factors=(float("nan"),))
    with (
        make_preprocessor("lineart", weights=model) as lineart,
        pytest.raises(InputError, match=r"lines\.onnx .*: it gives numbers that are not finite"),
    ):
        lineart(photo())


def test_none_and_tile() -> None:
    image = photo()
    assert np.array_equal(np.asarray(preprocess("none", image)), np.asarray(image))
    got = preprocess("tile", image)
    assert got.size == (288, 176)
    assert np.array_equal(np.asarray(got), np.asarray(image.resize((288, 176), Image.Resampling.BICUBIC)))
    with make_preprocessor("tile", factor=2) as tile:
        assert tile(image).size == (144, 96)
    with pytest.raises(InputError, match="factor is 0; it must be a number from 1 to 16"):
        make_preprocessor("tile", factor=0)


def test_a_shared_preprocessor_is_made_once() -> None:
    assert shared_preprocessor("tile") is shared_preprocessor("tile")


def test_a_model_that_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="no model is given; set `weights` to an ONNX file or a hub id"
    ) as caught:
        make_preprocessor("softedge")
    assert caught.value.argument == "weights"
    with pytest.raises(InputError, match=r"there is no model file .*gone.onnx; set `weights`"):
        make_preprocessor("softedge", weights=tmp_path / "gone.onnx")
    with pytest.raises(InputError, match="does not say which file; set `weights` to owner/name:FILE"):
        make_preprocessor("softedge", weights="owner/name")


@pytest.mark.parametrize("given", [None, "owner/name@v1:some/model.onnx"])
def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """From an earlier download; else it is downloaded; where that fails, one line says what to put where."""
    file, asked = write_map_model(tmp_path / "depth.onnx"), []

    def download(*, local_files_only: bool = False, **where: Any) -> str:
        asked.append((where, local_files_only))
        if local_files_only or not file.exists():
            raise OSError("no connection\nat all")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    make_preprocessor("depth", weights=given).close()
    default = ("onnx-community/depth-anything-v2-small", "onnx/model.onnx", None)
    id_, name, revision = ("owner/name", "some/model.onnx", "v1") if given else default
    wanted = {"repo_id": id_, "filename": name, "revision": revision}
    assert asked == [(wanted, True), (wanted, False)]
    file.unlink()
    message = (
        rf"the model {name} of {id_} is not on this machine \(it cannot be downloaded: no connection\);"
        rf" download it from https://huggingface.co/{id_} and set `weights` to its path"
    )
    with pytest.raises(InputError, match=message) as caught:
        make_preprocessor("depth", weights=given)
    assert caught.value.argument == "weights"
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    with pytest.raises(InputError, match=f"download it from https://hub.example/{id_} and set"):
        make_preprocessor("depth", weights=given)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match=r"text\.onnx is not a model for `weights`: it cannot be opened"):
        make_preprocessor("depth", weights=tmp_path / "text.onnx")
    flat = write_constants(tmp_path / "flat.onnx", {"map": np.zeros((1, 8, 8))}, (8, 8), channels=1)
    with pytest.raises(InputError, match=r"image tensor\(float\) \[1, 1, 8, 8\]; accepted: one"):
        make_preprocessor("depth", weights=flat)
    two = write_constants(tmp_path / "two.onnx", {"map": np.zeros((2, 8, 8))}, (8, 8))
    with (
        make_preprocessor("depth", weights=two) as depth,
        pytest.raises(InputError, match="output has shape"),
    ):
        depth(photo())
