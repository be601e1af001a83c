"""Links of the pages lead somewhere, on GitHub and on the site."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from support.doc_blocks import PAGES, ROOT

SPEC = importlib.util.spec_from_file_location("site_links", ROOT / "docs" / "site" / "links.py")
assert SPEC
assert SPEC.loader
links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(links)

SOURCES = [*PAGES, *(path for path in map(ROOT.joinpath, links.PAGES) if path.suffix and path not in PAGES)]


def _without_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_links_to_are_there(page: Path) -> None:
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", _without_code(page))
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_site_has_every_page_that_is_linked_to(page: Path) -> None:
    name = str(page.relative_to(ROOT))
    there = links.PAGES.get(name, name.removeprefix("docs/"))
    links.rewritten(_without_code(page), there)


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("architecture.md", "../CONTRIBUTING.md#the-words", "contributing.md#the-words"),
        ("readme.md", "docs/scale.md#bulk-jobs", "scale.md#bulk-jobs"),
        ("readme.md", "docs/images/serve.png", "images/serve.png"),
        ("small-model.md", "../../docs/fewer.md", "fewer.md"),
        ("reference/errors.md", "../troubleshooting.md", "../troubleshooting.md"),
        ("index.md", "https://example.org/a", "https://example.org/a"),
        ("index.md", "#here", "#here"),
    ],
)
def test_links_are_those_of_the_site(page: str, link: str, expected: str) -> None:
    assert links.rewritten(f"see [it]({link}).", page) == f"see [it]({expected})."


def test_a_link_out_of_the_site_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runtime/denoise\.py, which is no page of the site"):
        links.rewritten("[code](../runtime/denoise.py)", "index.md")


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")} | set(links.PAGES.values())
    assert named == pages
