"""The files of a run, by what a family makes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from controlnext.runtime.media.image_files import ImageFiles
from controlnext.runtime.media.video_files import ClipFiles

Files = ImageFiles | ClipFiles

FILES: Mapping[str, type[Files]] = MappingProxyType({"image": ImageFiles, "video": ClipFiles})
"""Reader and writer of files by a family's ``task`` in the registry."""
