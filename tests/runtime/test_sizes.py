"""Sizes: rounded, refused with the nearest, warned of where they are large; and when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from diffusers.image_processor import VaeImageProcessor
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from controlnext.cli.app import make_application
from controlnext.cli.option_names import OptionNames
from controlnext.errors import InputError, OutOfMemoryError, WorkError
from controlnext.families import get_family
from controlnext.runtime import Pipeline
from controlnext.runtime.memory import MemoryGuard
from controlnext.runtime.sizes import warn_if_large
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.idle_clips import idle_pipeline, no_noise
from support.recipe import drawing, rand


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path = write_fake_bundle(tmp_path_factory.mktemp("fake") / "bundle")
    with Pipeline.load(path, cache=False) as pipeline:
        yield pipeline


def _photo(width: int, height: int) -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def _run(pipe: Pipeline, image: Any, **changes: Any) -> np.ndarray:
    options = {"num_inference_steps": 1, "output_type": "latent", **changes}
    return pipe("a", control_image=image, **options).latents


@pytest.mark.parametrize(("family", "multiple"), [("sdxl", 8), ("sd3", 16)])
def test_the_control_images_size_is_rounded_down_as_diffusers_does(
    tmp_path: Path, pipe: Pipeline, family: str, multiple: int
) -> None:
    """A photo of 103 x 77: what diffusers' image processor makes of it is what the denoiser is fed."""
    photo = _photo(103, 77)
    processor = VaeImageProcessor(vae_scale_factor=multiple, do_normalize=False)
    wanted = processor.preprocess(photo)[0].permute(1, 2, 0).numpy()
    if family != "sdxl":
        pipe = Pipeline.load(write_fake_bundle(tmp_path / "bundle", family), cache=False)
    got = _run(pipe, photo)
    assert got.shape[2:] == (wanted.shape[0] // 8, wanted.shape[1] // 8)
    np.testing.assert_array_equal(got, _run(pipe, wanted))
    # one that was asked for is taken, the other is rounded
    assert _run(pipe, photo, height=96).shape[2:] == (12, wanted.shape[1] // 8)
    with pytest.raises(InputError, match=rf"{multiple - 1}; .* must be .* \(the smallest is {multiple}\)"):
        _run(pipe, _photo(103, multiple - 1))


def test_a_clips_size_is_rounded_too(tmp_path: Path) -> None:
    with idle_pipeline(tmp_path / "bundle", no_noise) as pipe:
        clip = [_photo(45, 30)] * 2
        output = pipe(image=clip[0], control_images=clip, num_inference_steps=1, output_type="latent")
    assert output.latents.shape[3:] == (3, 5)


@pytest.mark.parametrize(
    ("size", "near"),
    [
        (1023, "multiples of 8 (the nearest are 1016 and 1024)"),
        (np.int64(769), "multiples of 8 (the nearest are 768 and 776)"),
        (3, "multiples of 8 (the smallest is 8)"),
        (-9, "multiples of 8 (the smallest is 8)"),
        (64.0, "multiples of 8"),
    ],
)
def test_a_size_that_was_asked_for_is_refused_with_the_nearest(
    pipe: Pipeline, size: object, near: str
) -> None:
    for name in ("height", "width"):
        with pytest.raises(InputError) as caught:
            _run(pipe, _photo(24, 16), **{name: size})
        assert str(caught.value) == f"{name} is {size!r}; height and width must be {near}"


def test_latents_of_another_size_are_refused(tmp_path: Path) -> None:
    """They cannot be rounded. Patches of SD3 are two latents wide."""
    with (
        Pipeline.load(write_fake_bundle(tmp_path / "bundle", "sd3"), cache=False) as pipe,
        pytest.raises(
            InputError, match=r"the height of the latents is 24; .* must be .*nearest are 16 and 32"
        ),
    ):
        _run(pipe, _photo(32, 32), latents=rand(0, 1, 16, 3, 4))


def test_a_large_size_is_warned_of_once(
    pipe: Pipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond four times the pixels that the model was made for, here 16 x 16."""
    monkeypatch.setitem(pipe.bundle.manifest.configs["unet"], "sample_size", 2)
    _run(pipe, _photo(32, 32))
    assert caplog.messages == []
    for _ in range(2):
        _run(pipe, _photo(32, 32), width=48)
    (message,) = caplog.messages
    assert message.startswith(
        "48 x 32 pixels are 6 times as many as this model was made for (16 x 16): expect repeated content"
    )


@pytest.mark.parametrize(
    ("family", "sample_size", "fine", "large"),
    [
        ("sdxl", 128, (2048, 2048), (3024, 4032)),
        ("sd15", 64, (768, 1344), (3024, 4032)),
        # published clips are 576 x 1024: as many pixels as its configuration says
        ("svd", 96, (576, 1024), (3024, 4032)),
        ("sdxl", [64, 128], (1024, 2048), (2048, 2048)),
        ("sdxl", None, (3024, 4032), None),
    ],
)
def test_what_is_large_is_told_by_the_model(
    caplog: pytest.LogCaptureFixture, family: str, sample_size: Any, fine: Any, large: Any
) -> None:
    config = {"sample_size": sample_size}
    warn_if_large(get_family(family), config, fine)
    assert caplog.messages == []
    if large:
        warn_if_large(get_family(family), config, large)
        assert len(caplog.messages) == 1


def _allocate_too_much(arena: bool) -> None:
    """ONNX Runtime is asked for more than a process can address."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        "graph",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.array([2**50]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_cpu_mem_arena = 4, arena
    onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": np.ones(1, np.float32)})


def _fail(error: Exception) -> None:
    raise error


EXHAUSTED = {
    "arena": lambda: _allocate_too_much(True),
    "plain": lambda: _allocate_too_much(False),
    "NumPy": lambda: np.empty(2**60, np.uint8),
    "C++": lambda: _fail(MemoryError("std::bad_alloc")),
    "CUDA": lambda: _fail(WorkError("CUDA on GPU 0: cudaMalloc: out of memory")),
    "TensorRT": lambda: _fail(WorkError("TensorRT cannot run unet: Error Code 2: OutOfMemory")),
}


@pytest.mark.parametrize("graph", ["unet", "vae_decoder"])
@pytest.mark.parametrize("kind", EXHAUSTED)
def test_running_out_of_memory_names_the_size_and_what_takes_less(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, kind: str, graph: str
) -> None:
    """Whoever runs out of it, while denoising or decoding; it can be run again."""
    engine = pipe.bundle.engine(graph)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_outputs", lambda *_: EXHAUSTED[kind]())
        with pytest.raises(OutOfMemoryError) as caught:
            _run(pipe, _photo(40, 24), output_type="np")
    message = str(caught.value)
    assert message.startswith("there is not enough memory for 40 x 24 pixels (")
    assert message.endswith("to need less, change `height`, `width`, `vae_tiling`, `offload`")
    assert "\n" not in message
    _run(pipe, _photo(40, 24), output_type="np")


def test_other_failures_stay_what_they_are(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pipe.bundle.engine("unet")
    monkeypatch.setattr(engine, "_outputs", lambda *_: _fail(ValueError("no such kernel")))
    with pytest.raises(WorkError, match="ONNX Runtime failed in unet: no such kernel") as caught:
        _run(pipe, _photo(40, 24))
    assert not isinstance(caught.value, OutOfMemoryError)


def test_a_clip_is_told_of_its_own_arguments(tmp_path: Path) -> None:
    """There is no tiling for clips."""

    def exhausted(folder: str, *_: Any) -> np.ndarray:
        return _fail(MemoryError()) if folder == "vae_encoder" else np.zeros(1, np.float32)  # type: ignore[return-value]

    with idle_pipeline(tmp_path / "bundle", exhausted) as pipe, pytest.raises(OutOfMemoryError) as caught:
        pipe.stream(image=drawing(0, 24, 16), control_images=[drawing(0, 24, 16)])
    assert str(caught.value).endswith("`height`, `width`, `frames_per_batch`, `decode_chunk_size`, `offload`")


def test_errors_of_who_takes_the_steps_are_not_the_guards() -> None:
    guard = MemoryGuard(8, 8, ("offload",))
    for _ in guard.each(iter([1])):
        with pytest.raises(MemoryError):
            _fail(MemoryError())


def test_the_command_line_names_the_options(cli: Cli, tmp_path: Path) -> None:
    """Of a lack of memory, of a size that no model has, and the nearest to a wrong one."""
    lack = OutOfMemoryError(8, 8, ("vae_tiling", "offload"), "1 TiB")
    assert "--height, --width, --vae-tiling, --offload" in OptionNames(make_application()).describe(lack)
    bundle = write_fake_bundle(tmp_path / "bundle")
    drawing(0, 24, 16).save(tmp_path / "control.png")
    command = ("run", bundle, "--prompt", "a", "--control-image", tmp_path / "control.png", "--steps", 1)
    command += ("--output", tmp_path / "out.png")
    assert_refused(cli(*command, "--height", 10**9), "--height is 1000000000", "at most 65536")
    assert_refused(cli(*command, "--width", 1023), "width is 1023", "1016 and 1024")
    assert not (tmp_path / "out.png").exists()


def test_memory_that_runs_out_elsewhere_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("controlnext.cli.inspect.read_manifest", lambda *_: _fail(MemoryError("1 TiB")))
    assert_refused(cli("inspect", tmp_path), "there is not enough memory (1 TiB)", status=1)
