"""The preprocessor of ``--preprocess``, and the controls that it makes of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.errors import InputError
from controlnext.image_input import ImageReader, open_image
from controlnext.runtime.media.image_files import unchanged
from controlnext.runtime.media.kinds import Files
from controlnext.runtime.media.video_files import ClipFiles
from controlnext.types import Progress

if TYPE_CHECKING:
    from controlnext.runtime.preprocess import Preprocessor


@dataclass(frozen=True)
class ControlFiles:
    """Makes the controls of a run of its files, with a preprocessor or as they are.

    A clip is preprocessed as a whole, and fitted to the image that it begins with.
    """

    files: Files
    preprocessor: Preprocessor | None
    report: Progress

    def __call__(self, path: Path, given: Mapping[str, Any]) -> Any:
        """Return the control in a file or directory; ``given``: the run's options."""
        if self.preprocessor is None:
            return self.files.control(path, unchanged)
        # one reader per control: all its frames get the same background
        reader = ImageReader(str(path), one_ground=True)
        if not isinstance(self.files, ClipFiles):
            return self.files.control(path, partial(self.preprocessor, reader=reader))
        clip = self.files.control(path, unchanged)
        count = min(len(clip), given.get("frames") or len(clip))
        reference = open_image(given["image"]) if "image" in given else None
        return self.preprocessor.clip(_First(clip, count), reader, reference=reference, progress=self.report)


class _First(Sequence[Any]):
    """The first ``count`` frames of a clip, read when they are asked for."""

    def __init__(self, clip: Any, count: int) -> None:
        self._clip, self._count = clip, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if number >= self._count:
            raise IndexError(number)
        return self._clip[number]


def opened(name: str | None, models: Sequence[str] | None) -> AbstractContextManager[Preprocessor | None]:
    """Open the preprocessor ``name`` with its ``models``, each ``[OPTION=]PATH_OR_ID[:FILE]``.

    Raises :class:`InputError` for models that it does not have.
    """
    from controlnext.runtime.preprocess import PREPROCESSORS, make_preprocessor

    if name is None:
        if models:
            raise InputError("--preprocessor-model needs --preprocess, which is not given; give both")
        return nullcontext()
    accepted = PREPROCESSORS[name].models if name in PREPROCESSORS else ()
    options: dict[str, str] = {}
    for given in models or ():
        option, equals, value = given.partition("=")
        if not equals and len(accepted) == 1:
            option, value = accepted[0], given
        if not value or option in options or (name in PREPROCESSORS and option not in accepted):
            forms = ", ".join(f"{one}=PATH_OR_ID[:FILE]" for one in accepted) or "none; remove it"
            raise InputError(
                f"--preprocessor-model {given} does not suit --preprocess {name}; accepted, each once:"
                f" {forms}"
            )
        options[option] = value
    return make_preprocessor(name, **options)
