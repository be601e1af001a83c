"""One request for a clip, from its fields to the file of its clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image

from controlnext.errors import InputError, WorkError
from controlnext.runtime.denoise import Step
from controlnext.runtime.media.clip_formats import DEFAULT_FPS, HIGHEST_FPS, LOWEST_FPS
from controlnext.runtime.media.inline_images import decode_image
from controlnext.runtime.media.video_files import write_clip
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.serving.access_log import RequestFacts
from controlnext.runtime.serving.clip_calls import ClipFields
from controlnext.runtime.serving.clip_inputs import control_clip, holds_video
from controlnext.runtime.serving.generation import Generation
from controlnext.runtime.serving.service import Service
from controlnext.runtime.serving.settings import check_size
from controlnext.types import FloatArray


@dataclass(frozen=True)
class ClipUploads:
    """The files of a request: those of the image, and those of the control clip."""

    image: Sequence[bytes]
    control: Sequence[bytes]


class ClipWork:
    """A request for a clip: checks its fields, and writes the clip to the file ``path``.

    Attributes:
        seed: the one that is used.
        size, seconds: of the clip as texts, as far as they are known yet.
        steps: number of steps that are taken, and of all.

    Raises :class:`InputError` and :class:`UnknownModelError`.
    """

    def __init__(self, service: Service, call: ClipFields, files: ClipUploads, path: Path) -> None:
        call.check(service.settings)
        self._service, self._call, self._files, self._path = service, call, files, path
        # first, since no file helps where no bundle makes clips
        self.profile = service.choose(call.model, "video")
        _check_uploads(files)
        self.seed = call.chosen_seed()
        self.size, self.seconds = call.size or "auto", self._foreseen()
        self.steps = (0, call.steps(self.profile.family, service.settings))
        self._fps = DEFAULT_FPS
        self._opened, self._stopped = ExitStack(), Event()

    def _foreseen(self) -> str:
        """Return the length of the clip before its files are read, 0 where they alone tell it."""
        call, is_video = self._call, holds_video(self._files.control)
        fps = call.fps or (None if is_video else DEFAULT_FPS)
        if fps is None:
            return f"{call.seconds or 0:g}"
        frames = call.num_frames or (0 if is_video else len(self._files.control))
        if call.seconds is not None:
            frames = _frames(call.seconds, _fps(fps))
        return _seconds(frames / _fps(fps))

    def describe(self, facts: RequestFacts) -> None:
        """Fill in what the log says of the request."""
        facts.model, facts.prompt = self.profile.bundle.name, self._call.prompt
        facts.steps, facts.size, facts.images = self.steps[1], self._call.size, self._call.num_frames

    def start(self) -> Generation:
        """Begin the work."""
        generation = Generation(
            self._service, self.profile, self._arguments, on_step=self._took, finish=self._write
        )
        generation.task.add_done_callback(lambda _: self._end())
        return generation

    def stop(self) -> None:
        """Make the writing of the file end at the next frame."""
        self._stopped.set()

    def _took(self, _pipe: Pipeline, step: Step) -> None:
        self.steps = (step.index + 1, step.total)

    def _arguments(self, pipe: Pipeline) -> dict[str, Any]:
        call, settings = self._call, self._service.settings
        image = decode_image("input_reference", self._files.image[0], settings.max_pixels)
        clip = control_clip(
            self._files.control, call.preprocess, settings.max_frames, settings.max_pixels, self._opened
        )
        self._fps = _fps(call.fps or clip.fps or DEFAULT_FPS)
        if not LOWEST_FPS <= self._fps <= HIGHEST_FPS:
            raise InputError(
                f"the control clip has {float(self._fps):g} frames a second; give fps, from {LOWEST_FPS} to"
                f" {HIGHEST_FPS}",
                argument="fps",
            )
        frames = self._frames(len(clip))
        given = {**call.arguments(pipe.family, settings), "seed": self.seed, "image": image}
        if not call.width_and_height:
            width, height = clip[0].size
            check_size(
                (width, height), settings, f"size is missing and the clip has {width} x {height} pixels"
            )
        self.seconds = _seconds(frames / self._fps)
        return {**given, "control_images": clip, "num_frames": frames, "output_type": "latent"}

    def _frames(self, controls: int) -> int:
        """Return the number of frames of the clip."""
        call, most = self._call, self._service.settings.max_frames
        frames = call.num_frames or controls
        if call.seconds is not None:
            frames = _frames(call.seconds, self._fps)
        if frames > most:
            field = "seconds" if call.seconds is not None else "num_frames"
            raise InputError(
                f"the clip would have {frames} frames or more; this server makes at most {most}: give a lower"
                f" {field}",
                argument=field,
            )
        if call.seconds is not None and frames > controls:
            raise InputError(
                f"{call.seconds:g} seconds are {frames} frames, but the control has {controls}; give fewer"
                " seconds or a lower fps, or an image for every frame",
                argument="seconds",
            )
        return frames

    def _write(self, pipe: Pipeline, result: Any) -> None:
        latents: FloatArray = result.latents
        factor = pipe.family.vae_factor
        self.size = f"{latents.shape[-1] * factor}x{latents.shape[-2] * factor}"
        write_clip(self._path, self._unless_stopped(self._decoded(pipe, latents)), self._fps)

    def _decoded(self, pipe: Pipeline, latents: FloatArray) -> Iterator[Image.Image]:
        call = self._call
        chunk = call.decode_chunk_size or call.frames_per_batch
        return pipe.images(latents, chunk)

    def _unless_stopped(self, images: Iterator[Image.Image]) -> Iterator[Image.Image]:
        for image in images:
            if self._stopped.is_set():
                raise WorkError("the clip was cancelled")
            yield image

    def _end(self) -> None:
        """Remove the files that the clip was made of."""
        self._opened.close()
        self._files = ClipUploads((), ())


def _check_uploads(files: ClipUploads) -> None:
    """Raise :class:`InputError` unless there is one image and something to control the clip with."""
    if len(files.image) != 1:
        raise InputError(
            f"there are {len(files.image)} images to begin with; send one as input_reference",
            argument="input_reference",
        )
    if not files.control:
        raise InputError(
            "no control clip was given; send control_clip: a video, or an image for every frame",
            argument="control_clip",
        )


def _frames(seconds: float, fps: Fraction) -> int:
    """Return the number of frames of a clip of about so many seconds."""
    return max(1, round(seconds * fps))


def _seconds(length: Fraction) -> str:
    return f"{float(length):.3g}"


def _fps(fps: float | Fraction) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
