"""The metadata of the distribution when it is built; setuptools loads this file alone, nothing else does."""

from __future__ import annotations

from pathlib import Path

from setuptools.command.egg_info import egg_info

OWN = "controlnext"


class EggInfo(egg_info):
    """Metadata in which ``optimum`` is no package of this distribution.

    A file of it lies there (:mod:`controlnext.cli.optimum_register`), but programs that ask whose package
    ``optimum`` is, diffusers among them, would take this version for optimum's.
    """

    def run(self) -> None:
        """Write the metadata, and this package's name alone as that of the top level."""
        super().run()
        Path(self.egg_info, "top_level.txt").write_text(f"{OWN}\n", encoding="utf-8")
