"""Messages of the libraries: they know arguments of Python functions, and nothing of the command line."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlnext.bench.settings import Settings
from controlnext.engines import open_engine
from controlnext.engines.tensorrt.build import BuildOptions, build_engine
from controlnext.engines.tensorrt.flavors import Flavor
from controlnext.errors import (
    ControlNeXtError,
    EngineError,
    InputError,
    OutOfMemoryError,
    blames,
)
from controlnext.export import export_bundle
from controlnext.runtime import Pipeline
from controlnext.runtime.bulk.jobs import read_jobs
from controlnext.runtime.cluster.config import write_config
from controlnext.runtime.media import export_to_video, load_video, video_fps
from controlnext.runtime.media.video_files import ClipFiles
from controlnext.runtime.preprocess.maps import Depth
from controlnext.runtime.preprocess.plain import Tile
from controlnext.runtime.preprocess.pose import PosePreprocessor
from controlnext.runtime.ray_cluster import ReplicaRange, join_cluster
from controlnext.runtime.request import Request, VideoRequest
from controlnext.runtime.serving.calls import ImageCall
from controlnext.runtime.serving.clip_calls import ClipCall
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.server import open_listener
from controlnext.runtime.serving.settings import ServerSettings
from controlnext.runtime.triton.repository import write_model
from controlnext.runtime.triton.settings import TritonSettings
from controlnext.weights import load_checkpoint

ROOT = Path(__file__).parents[2]
FOLDERS = ("bundle", "families", "models", "weights", "reference", "evaluation", "bench")
LIBRARIES = [
    *(ROOT / "controlnext").glob("*.py"),
    *(path for name in FOLDERS for path in (ROOT / "controlnext" / name).rglob("*.py")),
    *(path for name in ("export", "runtime", "engines") for path in (ROOT / name).rglob("*.py")),
]
RUNS_COMMANDS = {Path("controlnext/bench/prepare.py"), Path("runtime/environment.py")}
"""Run other command lines in processes of their own: of the export and of optimum; of NVIDIA's tool."""
PUBLIC: tuple[Callable[..., Any], ...] = (
    load_checkpoint,
    export_bundle,
    open_engine,
    build_engine,
    BuildOptions,
    Flavor.hardware,
    Pipeline.load,
    Pipeline.from_pretrained,
    Pipeline.save_pretrained,
    Pipeline.push_to_hub,
    Pipeline.add_lora,
    Pipeline.decode,
    Request,
    VideoRequest,
    Depth,
    PosePreprocessor,
    Tile,
    ClipFiles,
    load_video,
    video_fps,
    export_to_video,
    Settings,
    ServerSettings,
    Models,
    Models.use,
    ImageCall,
    ClipCall,
    open_listener,
    write_model,
    TritonSettings,
    join_cluster,
    ReplicaRange.parse,
    read_jobs,
    write_config,
)
_OPTION = re.compile(r"(?<![\w-])--([a-z]|$)")


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in LIBRARIES:
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def _texts(tree: ast.AST) -> Iterator[str]:
    """All string literals and parts of f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _without_docstrings(tree: ast.Module) -> ast.Module:
    class Remover(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.AST:
            alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            return ast.copy_location(ast.Pass(), node) if alone else node

    return Remover().visit(tree)  # type: ignore[no-any-return]


def _named(tree: ast.Module) -> Iterator[str]:
    """The arguments that messages name in backticks, and those that errors say are at fault."""
    for text in _texts(_without_docstrings(tree)):
        yield from re.findall(r"`(\w+)`", text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            blamed = [word.value for word in node.keywords if word.arg == "argument"]
            if isinstance(node.func, ast.Name) and node.func.id == "blames":
                blamed += node.args
            for value in blamed:
                yield from _texts(value)


@pytest.fixture(scope="module")
def parameters() -> set[str]:
    return {name for function in PUBLIC for name in inspect.signature(function).parameters}


def test_no_library_names_an_option() -> None:
    trees = [(path, tree) for path, tree in _trees() if path not in RUNS_COMMANDS]
    wrong = [f"{path}: {text!r}" for path, tree in trees for text in _texts(tree) if _OPTION.search(text)]
    assert not wrong


def test_arguments_that_messages_name_are_parameters_of_public_functions(parameters: set[str]) -> None:
    found = [(path, name) for path, tree in _trees() for name in _named(tree)]
    assert {"unet_weights", "precision", "num_inference_steps"} <= {name for _, name in found}
    assert not [(str(path), name) for path, name in found if name not in parameters]


def test_an_error_within_a_block_gets_the_argument_unless_it_has_one() -> None:
    for own, expected in ((None, "base"), ("vae", "vae")):
        with pytest.raises(ControlNeXtError) as caught, blames("base"):
            raise InputError("wrong", argument=own)
        assert caught.value.argument == expected


def test_errors_with_settings_name_them_as_arguments() -> None:
    engine = EngineError("no engine", Path("bundle"), {"backend": "tensorrt", "height": "64"})
    assert str(engine) == "no engine; build one with `backend` tensorrt, `height` 64"
    memory = OutOfMemoryError(16, 8, ("vae_tiling",), "no room")
    assert str(memory).endswith(
        "16 x 8 pixels (no room); to need less, change `height`, `width`, `vae_tiling`"
    )
