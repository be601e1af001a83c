"""Clips: what the denoiser is fed, what comes out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime import Pipeline, VideoOutput
from support.idle_clips import SCALING, SCHEDULER, Feed, idle_pipeline, no_noise
from support.recipe import drawing, rand


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return idle_pipeline(tmp_path_factory.mktemp("idle") / "bundle", no_noise)


def _arguments(frames: int = 5, **changes: Any) -> dict[str, Any]:
    return {
        "image": drawing(1, 24, 16),
        "control_images": [drawing(number, 24, 16) for number in range(frames)],
        "num_inference_steps": 2,
        "frames_per_batch": 3,
        "overlap": 1,
        "output_type": "latent",
        **changes,
    }


def _numbered(frames: int) -> np.ndarray:
    """A clip whose pixels are a hundredth of the frame's number."""
    return np.arange(frames).reshape(-1, 1, 1, 1) / 100 * np.ones((frames, 16, 24, 3))


class _Recorder:
    """Keeps what the denoiser is fed; its answer at the nth call is n, and a tenth more with every frame."""

    def __init__(self) -> None:
        self.feeds: list[Feed] = []

    def __call__(self, folder: str, feed: Feed, shape: tuple[int, ...]) -> np.ndarray:
        if folder == "image_encoder":
            return np.full(shape, 3, np.float32)
        if folder == "vae_encoder":
            # mean and logarithm of the variance
            return np.repeat(np.float32([5, 7]), 4).reshape(1, 8, 1, 1)
        self.feeds.append(feed)
        return np.float32(len(self.feeds) + np.arange(shape[1]) / 10).reshape(-1, 1, 1, 1)


def test_every_window_is_fed_its_part(tmp_path: Path) -> None:
    """Windows 0 to 3, 2 to 5 and 3 to 6 of six frames; the unconditional half comes first."""
    recorder = _Recorder()
    latents = rand(0, 1, 6, 4, 2, 3)
    idle_pipeline(tmp_path / "bundle", recorder)(
        **_arguments(latents=latents, num_inference_steps=1, control_images=_numbered(6), control_scale=0.7)
    )
    scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(1)
    noisy = torch.from_numpy(latents) * scheduler.init_noise_sigma
    scaled = scheduler.scale_model_input(noisy, scheduler.timesteps[0]).numpy()
    assert len(recorder.feeds) == 3
    for feed, start, controls in zip(
        recorder.feeds, (0, 2, 3), ([0, 1, 2], [0, 3, 4], [0, 4, 5]), strict=True
    ):
        sample = feed["sample"]
        assert sample.shape == (2, 3, 8, 2, 3)
        for half in sample:
            np.testing.assert_allclose(half[:, :4], scaled[0, start : start + 3], rtol=1e-6)
        np.testing.assert_array_equal(sample[:, :, 4:].mean((1, 2, 3, 4)), [0, 5])
        np.testing.assert_allclose(feed["timestep"], float(scheduler.timesteps[0]), rtol=1e-6)
        np.testing.assert_array_equal(feed["encoder_hidden_states"], np.float32([[[0] * 6], [[3] * 6]]))
        np.testing.assert_array_equal(feed["added_time_ids"], np.float32([[6, 128, 0.02]] * 2))
        assert feed["control_image"].shape == (1, 3, 3, 16, 24)
        np.testing.assert_allclose(feed["control_image"][0, :, 0, 0, 0], np.array(controls) / 100, atol=1e-7)
        np.testing.assert_array_equal(feed["control_scale"], np.float32([0, 0.7]))


def test_windows_that_overlap_are_averaged(tmp_path: Path) -> None:
    """The windows' answers begin at 1, 2 and 3; of the first frame they count only for the clip's own."""
    latents = rand(0, 1, 6, 4, 2, 3)
    got = idle_pipeline(tmp_path / "bundle", _Recorder())(
        **_arguments(6, latents=latents, num_inference_steps=1)
    )
    scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(1)
    noise = (
        torch.tensor([1, 1.1, 1.2, 2.1, (2.2 + 3.1) / 2, 3.2]).reshape(1, 6, 1, 1, 1).expand(latents.shape)
    )
    noisy = torch.from_numpy(latents) * scheduler.init_noise_sigma
    wanted = scheduler.step(noise, scheduler.timesteps[0], noisy).prev_sample
    np.testing.assert_allclose(got.latents, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "highest", "scales"),
    [
        ("v2", 1.0, [[0, 0], [0, 0.5], [0, 0]]),
        ("v2", 0.999, [[0], [0.5], [0]]),
        # to which its sigmoid is 0, not one half
        ("v1", 1.0, [[-1e6, -1e6], [0, 0.5], [-1e6, -1e6]]),
        ("v1", 0.999, [[-1e6], [0.5], [-1e6]]),
    ],
)
def test_control_scales_of_every_step(
    tmp_path: Path, variant: str, highest: float, scales: list[list[float]]
) -> None:
    """Guided from 1 on: then there is an unconditional half, without control. The control acts in the second
    of three steps."""
    recorder = _Recorder()
    idle_pipeline(tmp_path / "bundle", recorder, variant)(
        **_arguments(
            3,
            max_guidance_scale=highest,
            control_scale=0.5,
            control_start=0.3,
            control_end=0.7,
            num_inference_steps=3,
        )
    )
    assert [feed["control_scale"].tolist() for feed in recorder.feeds] == scales
    assert all(len(feed["sample"]) == len(scales[0]) for feed in recorder.feeds)


def test_output_types_agree(pipe: Pipeline) -> None:
    latent, array, pil = (pipe(**_arguments(output_type=kind)) for kind in ("latent", "np", "pil"))
    assert all(isinstance(output, VideoOutput) for output in (latent, array, pil))
    assert latent.frames is None
    assert (latent.latents.shape, latent.latents.dtype) == ((1, 5, 4, 2, 3), np.float32)
    np.testing.assert_array_equal(latent.latents, array.latents)
    np.testing.assert_array_equal(latent.latents, pil.latents)
    assert (array.frames.shape, array.frames.dtype) == ((1, 5, 16, 24, 3), np.float32)
    pixels = latent.latents[0, :, :3, 0, 0] / SCALING / 2 + 0.5
    np.testing.assert_allclose(array.frames[0, :, 0, 0], pixels.clip(0, 1), rtol=1e-5, atol=1e-6)
    (clip,) = pil.frames
    assert [image.size for image in clip] == [(24, 16)] * 5
    wanted = (array.frames[0] * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in clip]), wanted)


def test_the_stream_gives_every_step_and_decodes_to_the_call(pipe: Pipeline) -> None:
    steps = list(pipe.stream(**_arguments(num_inference_steps=3)))
    assert [(step.index, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3)]
    array = pipe(**_arguments(num_inference_steps=3, output_type="np"))
    np.testing.assert_array_equal(steps[-1].latents, array.latents)
    np.testing.assert_array_equal(pipe.decode(steps[-1].latents, "np"), array.frames)
    (clip,) = pipe.decode(steps[-1].latents)
    for image, other in zip(clip, pipe.images(steps[-1].latents), strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))


def test_sizes(pipe: Pipeline) -> None:
    """As asked for, else the latents', else the first control image's, whatever the others are."""
    clip = [drawing(0, 40, 32), drawing(1, 24, 16)]

    def size(**changes: Any) -> tuple[int, ...]:
        return pipe(**_arguments(control_images=clip, **changes)).latents.shape[3:]

    assert size() == (4, 5)
    assert size(height=16, width=24) == (2, 3)
    assert size(width=24) == (4, 3)
    assert size(latents=rand(0, 1, 2, 4, 6, 7)) == (6, 7)


def test_a_clip_may_be_shorter_than_its_control(pipe: Pipeline) -> None:
    assert pipe(**_arguments(5, num_frames=2)).latents.shape[1] == 2
    assert pipe(**_arguments(5, num_frames=np.int64(5))).latents.shape[1] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "no reference image was given; set `image`"),
        ({"image": "image.png"}, "image: .* of type str; give a PIL image"),
        ({"image": [drawing(1, 24, 16)] * 2}, "image has 2 images; give one"),
        ({"image": np.full((16, 24, 3), np.nan)}, "image: .* has values from nan"),
        ({"image": Image.new("RGB", (1, 9))}, "the image is 1 x 9 pixels; give one of 2 x 2 or more"),
        ({"control_images": None}, "no control clip was given; set `control_images`"),
        (
            {"control_images": "a.mp4"},
            r"control_images is 'a.mp4'; read the video first: controlnext",
        ),
        ({"control_images": drawing(1, 24, 16)}, "set `control_images` to a sequence of images"),
        ({"control_images": iter([])}, "no control clip was given"),
        ({"control_images": []}, "control_images is empty; give one image for every frame"),
        ({"control_images": np.zeros((16, 24, 3))}, r"array of shape \(16, 24, 3\); give \(frames, height"),
        ({"control_images": ["1.png"]}, "frame 0 of control_images: .* of type str"),
        ({"control_images": np.zeros((3, 7, 24, 3))}, "the height of the control image is 7; height"),
        ({"num_frames": 6}, "num_frames is 6, but the control has 5 frames; give an image for every frame"),
        ({"num_frames": 0}, "num_frames is 0; it must be a positive integer"),
        ({"num_frames": 2.0}, "num_frames is 2.0; it must be a positive integer"),
        ({"num_frames": True}, "num_frames is True; it must be a positive integer"),
        ({"frames_per_batch": 0}, "frames_per_batch is 0; it must be a positive integer"),
        ({"frames_per_batch": None}, "frames_per_batch is None; it must be a positive integer"),
        ({"overlap": None}, "overlap is None; it must be an integer of at least 0"),
        ({"min_guidance_scale": None}, "min_guidance_scale is None; it must be a finite number"),
        ({"noise_aug_strength": None}, "noise_aug_strength is None; it must be a finite number"),
        ({"frames_per_batch": 1}, "frames_per_batch is 1 for a clip of 5.*; give 2 or more"),
        ({"overlap": -1}, "overlap is -1; it must be an integer of at least 0"),
        ({"overlap": 0}, "overlap is 0 for windows of 3 frames over a clip of 5; give 1 to 2"),
        ({"overlap": 3}, "overlap is 3 for windows of 3 frames"),
        ({"decode_chunk_size": 0}, "decode_chunk_size is 0; it must be a positive integer"),
        ({"min_guidance_scale": float("nan")}, "min_guidance_scale is nan; it must be a finite number"),
        ({"max_guidance_scale": "high"}, "max_guidance_scale is 'high'; it must be a finite number"),
        ({"noise_aug_strength": -1}, "noise_aug_strength is -1; it must be from 0 to 10: "),
        ({"noise_aug_strength": 1e9}, "noise_aug_strength is 1000000000.0; it must be from 0 to 10: "),
        ({"noise_aug_strength": float("inf")}, "noise_aug_strength is inf; it must be a finite number"),
        ({"height": 20}, "height is 20; height and width must be multiples of 8"),
        ({"width": 0}, "width is 0; height"),
        ({"latents": rand(0, 5, 4, 2, 3)}, r"latents have shape \(5, 4, 2, 3\), expected \(1, frames, chan"),
        ({"latents": rand(0, 1, 4, 4, 2, 3)}, r"shape \(1, 4, 4, 2, 3\), expected \(1, 5, 4, 2, 3\)"),
        ({"latents": rand(0, 1, 5, 4, 3, 3), "height": 16}, r"expected \(1, 5, 4, 2, 3\)"),
        ({"latents": np.full((1, 5, 4, 2, 3), np.nan)}, "latents has 120 values of 120 that are NaN"),
        ({"control_scale": [1.0, 2.0]}, r"control_scale has shape \(2,\); give one number for the clip"),
        ({"control_scale": float("nan")}, "control_scale is nan; it must be a finite number"),
        ({"control_scale": "strong"}, "control_scale is .*; give numbers"),
        (
            {"control_start": 0.6, "control_end": 0.5},
            "control_end is 0.5; .* above `control_start`, which is 0.6",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"sampler": "unipc"}, "unknown sampler 'unipc' for Stable Video Diffusion; accepted: euler"),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809; it must be an integer from"),
        ({"output_type": "mp4"}, "unknown output_type 'mp4'; accepted: pil, np, latent"),
    ],
)
def test_bad_arguments_are_one_clear_error(pipe: Pipeline, changes: dict[str, Any], message: str) -> None:
    """Before the first step, with the argument at fault; a control of odd size asks for a height."""
    with pytest.raises(InputError, match=message) as caught:
        pipe.stream(**_arguments(**changes))
    assert "\n" not in str(caught.value)
    assert caught.value.argument in {*changes, "height"}


def test_a_bad_frame_is_named(pipe: Pipeline) -> None:
    """Frames are read when they are needed: it shows in the first step."""
    two = [drawing(1, 24, 16)] * 2
    for bad, message in (("5.png", ".* of type str"), (two, "has 2 images; give one")):
        clip = [*_arguments()["control_images"], bad]
        steps = pipe.stream(**_arguments(control_images=clip))
        with pytest.raises(InputError, match=f"frame 5 of control_images:? {message}") as caught:
            next(steps)
        assert caught.value.argument == "control_images"
