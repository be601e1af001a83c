"""The model that Triton runs, with a stand-in for Triton: requests in, responses out."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from controlnext.runtime.preprocess import preprocess
from support.fake_bundle import write_fake_bundle
from support.gate import Gate, until
from support.recipe import drawing
from support.serving import USUAL, file_of, open_pipeline, pixels_of, text_of
from support.triton_backend import FakeRequest, TritonError, TritonModelException

Load = Callable[..., Any]
IMAGE = drawing(1, 24, 16)


def _request(parameters: str = "{}", **changes: Any) -> FakeRequest:
    usual = {"prompt": "a red circle", "control_image": file_of(IMAGE), **USUAL}
    return FakeRequest(parameters, **{name: v for name, v in {**usual, **changes}.items() if v is not None})


def _pixels(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def _alone(bundle: Path, **changes: Any) -> list[np.ndarray]:
    call = {"prompt": "a red circle", "control_image": IMAGE, **USUAL, **changes}
    with open_pipeline(bundle) as pipe:
        return [np.asarray(image) for image in pipe(**call).images]


@pytest.mark.parametrize("decoupled", [True, False])
def test_requests_of_one_batch_keep_their_own_parameters(load: Load, toy: Path, decoupled: bool) -> None:
    model = load(decoupled=decoupled)
    calls: list[dict[str, Any]] = [
        {"seed": -1, "guidance_scale": 1.0, "negative_prompt": "blue"},
        {"seed": 2, "sampler": "euler", "guidance_scale": 1.0, "control_start": 0.1, "control_end": 0.6},
        {"seed": 3, "num_inference_steps": 4, "width": 32, "height": 24, "guidance_end": 0.3},
        {"seed": 4, "num_inference_steps": None, "sampler": "euler", "timesteps": [999, 400]},
    ]
    requests = [_request(**call) for call in calls]
    assert model.execute(requests) is None
    for call, request in zip(calls, requests, strict=True):
        (response,) = request.all()
        values = response.values()
        assert values["seed"] == [call["seed"]]
        assert values["partial"] == [False]
        (file,) = values["image"]
        np.testing.assert_array_equal(_pixels(file), _alone(toy, **call)[0])


def test_unfinished_images_come_in_order_and_the_finished_ones_last(load: Load, toy: Path) -> None:
    request = _request(control_image=text_of(IMAGE), partial_images=2, num_images=2)
    load().execute([request])
    found = [response.values() for response in request.all()]
    assert [values["index"] for values in found] == [[number] for number in range(len(found))]
    assert [values["partial"] for values in found] == [[True]] * (len(found) - 1) + [[False]]
    assert len(found) > 1
    images = [[pixels_of(text.decode()) for text in values["image"]] for values in found]
    np.testing.assert_array_equal(images[-1], _alone(toy, num_images_per_prompt=2))
    assert not np.array_equal(images[0], images[-1])


def test_a_random_seed_is_told(load: Load, toy: Path) -> None:
    request = _request(seed=None)
    load().execute([request])
    (values,) = (response.values() for response in request.all())
    np.testing.assert_array_equal(_pixels(values["image"][0]), _alone(toy, seed=values["seed"][0])[0])


def test_several_controls_have_an_image_and_a_scale_each(load: Load, tmp_path: Path) -> None:
    bundle, other = write_fake_bundle(tmp_path / "two", controls=2), drawing(2, 24, 16)
    files, scales = [file_of(IMAGE, "WEBP", lossless=True), text_of(other)], [0.5, 1.0]
    request = _request(control_image=files, control_scale=scales, preprocess="canny")
    load(bundle).execute([request])
    (text,) = request.next().values()["image"]
    images = [preprocess("canny", image) for image in (IMAGE, other)]
    expected = _alone(bundle, control_image=images, control_scale=scales)
    # one of the images came as text, so those that go back are texts
    np.testing.assert_array_equal(pixels_of(text.decode()), expected[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, "no prompt was given"),
        ({"prompt": np.array([[b"a"], [b"b"]])}, "prompt has shape (2, 1)"),
        ({"prompt": b"\xff"}, "prompt is not a text in UTF-8"),
        ({"prompt": "a" * 32_001}, "prompt has 32001 characters"),
        ({"control_image": None}, "no control image was given; set control_image"),
        ({"control_image": np.zeros((1, 0), object)}, "control_image has shape (1, 0)"),
        ({"control_image": b"\x89PNG"}, "control_image is not an image"),
        ({"control_image": "https://example.org/a.png"}, "URLs and paths are not opened"),
        ({"control_image": file_of(drawing(1, 40, 40))}, "40 x 40 pixels"),
        ({"control_image": [file_of(IMAGE)] * 2}, "2 control images were given for one prompt"),
        ({"num_images": 9}, "num_images is 9; this model takes 1 to 8"),
        ({"num_inference_steps": 151}, "num_inference_steps is 151; this model takes 1 to 150"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"sigmas": [0.0] * 151}, "sigmas has 151 values; this model takes at most 150"),
        ({"partial_images": -1}, "partial_images is -1; this model takes 0 to"),
        ({"width": 40}, "width is 40; this model takes 1 to 32"),
        ({"control_image": file_of(drawing(1, 40, 16))}, "width is missing and the image has 40 pixels"),
        ({"width": 17}, "17"),
        ({"sampler": "best"}, "unknown sampler 'best'"),
        ({"preprocess": "best"}, "unknown preprocessor 'best'"),
        ({"control_start": 0.9, "control_end": 0.1}, "control_end is 0.1"),
        ({"cache_interval": 2}, "the bundle has no shallow graph of unet"),
        ({"parameters": '{"steps": 4, "triton_x": 1}'}, "there is no input steps; accepted: prompt,"),
    ],
)
def test_what_is_wrong_is_one_line(load: Load, changes: dict[str, Any], words: str) -> None:
    request = _request(**changes)
    load(max_pixels=35 * 35, max_size=32).execute([request])
    error = request.error()
    assert words in str(error)
    assert "`" not in str(error)
    assert error.code == TritonError.INVALID_ARG


def test_without_a_stream_there_are_no_unfinished_images(load: Load) -> None:
    request = _request(partial_images=1)
    load(decoupled=False).execute([request])
    assert "this model answers each request once; leave it out" in str(request.error())


def test_a_full_queue_refuses_and_cancelled_requests_make_room(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that runs and the one that waits are cancelled; the next one is served."""
    model = load(max_rows=1, max_waiting=1)
    gate = Gate(model._service._pipe.bundle.engine("unet"), monkeypatch)
    runs, waits, refused, served = (_request() for _ in range(4))
    model.execute([runs, waits])
    gate.wait()
    model.execute([refused])
    error = refused.error()
    assert error.code == TritonError.UNAVAILABLE
    assert "repeat the request later" in str(error)
    runs.cancelled = waits.cancelled = True
    assert waits.error().code == TritonError.CANCELLED
    until(lambda: not model._service._batcher.waiting)
    model.execute([served])
    gate.open()
    assert runs.error().code == TritonError.CANCELLED
    assert [response.error for response in served.all()] == [None]


def test_a_model_that_is_unloaded_answers_what_runs(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    gate = Gate(model._service._pipe.bundle.engine("unet"), monkeypatch)
    request = _request()
    model.execute([request])
    gate.wait()
    gate.open()
    model.finalize()
    assert request.ended


def test_a_bug_is_logged_and_not_told(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, request = load(), _request()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(model._service._pipe, "finish", fail)
    model.execute([request])
    error = request.error()
    assert error.code == TritonError.INTERNAL
    assert str(error) == "the model failed; the server's log has the reason"
    assert "secret" in caplog.text


def test_what_cannot_be_loaded_is_told_to_triton(load: Load, toy: Path) -> None:
    """An instance on a GPU asks for that GPU, whatever the configuration has as device."""
    with pytest.raises(TritonModelException, match="cuda"):
        load(toy, kind="GPU")
