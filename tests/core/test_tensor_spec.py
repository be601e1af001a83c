"""Tensor specs: symbolic sizes, and arrays checked against them."""

from __future__ import annotations

import numpy as np
import pytest

from controlnext.errors import InputError
from controlnext.tensor_spec import (
    ControlInputs,
    TensorSpec,
    bind,
    control_inputs,
    evaluate_dim,
    numbered_controls,
    split_dim,
)

SPECS = (
    TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
    TensorSpec("timestep", "float32", ("batch",)),
    TensorSpec("control_image", "float32", ("control_batch", 3, "8*height", "8*width")),
)


def _arrays(batch: int = 2, control: int = 1, height: int = 3, width: int = 5) -> dict[str, np.ndarray]:
    return {
        "sample": np.zeros((batch, 4, height, width), np.float32),
        "timestep": np.zeros(batch, np.float32),
        "control_image": np.zeros((control, 3, 8 * height, 8 * width), np.float32),
    }


@pytest.mark.parametrize(("dim", "parts"), [("batch", (1, "batch")), ("8*height", (8, "height"))])
def test_a_dimension_splits_into_factor_and_symbol(dim: str, parts: tuple[int, str]) -> None:
    assert split_dim(dim) == parts
    assert evaluate_dim(dim, {"batch": 3, "height": 3}) == parts[0] * 3


def test_a_fixed_dimension_is_itself() -> None:
    assert evaluate_dim(77, {}) == 77


def test_sizes_of_the_model_resolve_to_numbers() -> None:
    spec = TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", "@cross_attention_dim"))
    resolved = spec.resolve({"cross_attention_dim": 2048})
    assert resolved.shape == ("batch", "sequence", 2048)
    assert resolved.symbols() == {"batch", "sequence"}
    assert resolved.shape_at({"batch": 2, "sequence": 77}) == (2, 77, 2048)


def test_bind_returns_the_sizes() -> None:
    assert bind(SPECS, _arrays(), "unet") == {"batch": 2, "control_batch": 1, "height": 3, "width": 5}


@pytest.mark.parametrize("control", [1, 4])
def test_one_control_image_or_one_a_row(control: int) -> None:
    assert bind(SPECS, _arrays(batch=4, control=control), "unet")["control_batch"] == control


def test_another_number_of_control_images_is_refused() -> None:
    with pytest.raises(
        InputError, match="control_image has batch 3; give 1 or the batch of the other inputs, 4"
    ):
        bind(SPECS, _arrays(batch=4, control=3), "unet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": None}, r"unet: inputs missing \['sample'\], unknown \[\]"),
        ({"samples": np.zeros(1)}, r"missing \[\], unknown \['samples'\]"),
        (
            {"sample": np.zeros((2, 4, 3, 5))},
            r"sample is float64 \(2, 4, 3, 5\), expected float32 \(batch, 4,",
        ),
        ({"sample": np.zeros((4, 3, 5), np.float32)}, r"sample is float32 \(4, 3, 5\), expected"),
        ({"sample": np.zeros((2, 9, 3, 5), np.float32)}, r"sample is float32 \(2, 9, 3, 5\), expected"),
        ({"sample": np.zeros((2, 4, 0, 5), np.float32)}, r"sample is float32 \(2, 4, 0, 5\), expected"),
        ({"timestep": np.zeros(3, np.float32)}, r"timestep is float32 \(3\), expected float32 \(batch\)"),
        (
            {"control_image": np.zeros((1, 3, 25, 40), np.float32)},
            r"control_image is float32 \(1, 3, 25, 40\)",
        ),
        (
            {"control_image": np.zeros((1, 3, 32, 40), np.float32)},
            r"control_image is float32 \(1, 3, 32, 40\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(change: dict[str, np.ndarray | None], message: str) -> None:
    arrays = {name: array for name, array in {**_arrays(), **change}.items() if array is not None}
    with pytest.raises(InputError, match=message):
        bind(SPECS, arrays, "unet")


def test_the_controls_are_found_among_the_names_of_inputs() -> None:
    """By their images; a name that only begins like one is another input."""
    names = ["sample", "control_image", "control_scale", "control_image_2", "control_scale_2"]
    first, second = control_inputs([*names, "control_images", "control_image_mask"])
    assert (first, second) == (ControlInputs(1), ControlInputs(2))
    assert [first, second] == numbered_controls(2)
    assert [second.image, second.scale, second.batch] == [
        "control_image_2",
        "control_scale_2",
        "control_batch_2",
    ]
    assert [first.network, second.network] == ["control", "control_2"]
    assert control_inputs(["sample"]) == []


def test_an_input_of_another_control_has_a_batch_of_its_own() -> None:
    assert SPECS[2].for_control(ControlInputs(3)) == TensorSpec(
        "control_image_3", "float32", ("control_batch_3", 3, "8*height", "8*width")
    )
