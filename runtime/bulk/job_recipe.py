"""The recipes of the images of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlnext.runtime.bulk.basis import files_of
from controlnext.runtime.bulk.jobs import Job
from controlnext.runtime.media.image_files import MakeRecipe
from controlnext.runtime.media.recipe import Recipe
from controlnext.runtime.pipelines.base import Pipeline
from controlnext.runtime.recipes import IMAGES, make_recipe
from controlnext.runtime.request import Request


def recipe_of_job(pipe: Pipeline, job: Job, call: Mapping[str, Any], root: Path) -> MakeRecipe | None:
    """Return what makes the recipe of a job's images; None for clips. ``root``: as of the job's paths."""
    if pipe.request is not Request:
        return None

    def make(size: tuple[int, int]) -> Recipe:
        files = {name: list(files_of(job, name, root)) for name in IMAGES}
        return make_recipe(pipe, Request(**call), files, size)

    return make
