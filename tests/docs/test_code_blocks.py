"""Every code block of the pages runs, on small things that have the pages' names, or says why it does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.settings import ServerSettings
from support.cli import Cli
from support.doc_blocks import BLOCKS, FILE, IN_PART, NOT_RUN, PAGES, Block
from support.doc_commands import SERVER, Commands
from support.doc_folder import write_bundles, write_page_folder
from support.exports import once
from support.fake_loras import write_fake_lora
from support.serving import Site, serve

SERVED = {"shapes-fp32": "sdxl", "svd": "svd"}
LANGUAGES = {"sh", "python", "text", "json", "toml", "yaml", "ini", "nginx", "dockerfile"}
SHELL = [block for block in BLOCKS if block.language == "sh"]
PAGES_OF_PYTHON = [
    page for page in PAGES if any(block.page == page and block.language == "python" for block in BLOCKS)
]


@pytest.fixture(scope="module")
def bundles(shared_folder: Path) -> Path:
    return once(shared_folder / "bundles-of-pages", write_bundles)


@pytest.fixture
def folder(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter the folder in which a page's blocks run."""
    write_page_folder(tmp_path / "page", bundles)
    monkeypatch.chdir(tmp_path / "page")
    return tmp_path / "page"


@pytest.fixture(scope="module")
def site(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Site]]:
    """Return a function that starts the server which the blocks ask, if there is none."""
    made: list[Site] = []
    with ExitStack() as stack:

        def start() -> Site:
            if not made:
                folder = tmp_path_factory.mktemp("served")
                for name, source in SERVED.items():
                    shutil.copytree(bundles / source, folder / name)
                (folder / "styles").mkdir()
                write_fake_lora(folder / "styles" / "ink.safetensors", 0, rank=16)
                settings = ServerSettings(loras=str(folder / "styles"))
                made.append(stack.enter_context(serve([folder / name for name in SERVED], settings)))
            return made[0]

        yield start


def write_files(block: Block) -> None:
    """Write the files that the block's page shows."""
    for one in BLOCKS:
        if one.page == block.page and one.mark == FILE:
            Path(one.reason).write_text(one.text)


@pytest.mark.parametrize("block", SHELL, ids=str)
@pytest.mark.usefixtures("folder")
def test_commands_run(
    block: Block, cli: Cli, monkeypatch: pytest.MonkeyPatch, site: Callable[[], Site]
) -> None:
    """Those that take long, or need what is not here, are parsed; the page says so, and only where it is."""
    write_files(block)
    commands = Commands(cli, monkeypatch, site)
    ran = [commands.carry_out(command, run=block.mark != NOT_RUN) for command in block.commands]
    expected = {True: {"", FILE}, False: {IN_PART, NOT_RUN}}[all(ran)]
    assert block.mark in expected, f"{sum(ran)} of {len(ran)} commands ran"


@pytest.mark.parametrize("page", PAGES_OF_PYTHON, ids=lambda page: page.stem)
def test_python_runs(page: Path, folder: Path, site: Callable[[], Site]) -> None:
    """The blocks of a page in their order, each with the names that those before it made."""
    blocks = [block for block in BLOCKS if block.page == page and block.language == "python"]
    with Pipeline.load(folder / "build" / "sdxl") as pipe:
        names = {"__name__": "page", **given(pipe)}
        for block in blocks:
            text = block.text
            if SERVER in text and block.mark != NOT_RUN:
                text = text.replace(SERVER, site().address)
            code = compile("\n" * block.line + text, str(block), "exec")
            if block.mark != NOT_RUN:
                exec(code, names)


def given(pipe: Pipeline) -> dict[str, Any]:
    """Return the names that fragments use and no block of their page makes."""
    edges = Image.open("edges.png")
    return {"pipe": pipe, "prompt": "a red circle", "edges": edges, "image": edges}


def test_every_block_has_a_language() -> None:
    """One of those that are highlighted; what no program reads is ``text``."""
    assert not [str(block) for block in BLOCKS if block.language not in LANGUAGES]


def test_every_mark_is_known_and_has_a_reason() -> None:
    marked = [block for block in BLOCKS if block.mark]
    assert not [str(block) for block in marked if block.mark not in (NOT_RUN, IN_PART, FILE)]
    assert not [str(block) for block in marked if block.mark != FILE and len(block.reason.split()) < 3]


def test_what_only_other_programs_read_is_marked() -> None:
    others = [block for block in BLOCKS if block.language in ("ini", "nginx", "dockerfile", "json", "toml")]
    assert not [str(block) for block in others if not block.mark]


def test_yaml_is_read() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            assert yaml.safe_load(block.text)
