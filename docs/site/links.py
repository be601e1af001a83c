"""A hook of MkDocs: pages of the repository outside ``docs/``, and links that work on GitHub and on the site.

Pages link to each other as files of the repository do. Those outside ``docs/`` that the site has are in
``PAGES``; every other link that leaves ``docs/`` stops the build.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES: Mapping[str, str] = MappingProxyType(
    {
        "README.md": "readme.md",
        "CONTRIBUTING.md": "contributing.md",
        "SECURITY.md": "security.md",
        "LICENSE": "licence.md",
        "examples/shapes/README.md": "small-model.md",
    }
)
"""Files of the repository, by their pages of the site."""
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of files outside ``docs/``."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if not source.endswith(".md"):
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    return rewritten(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Show names that docstrings refer to, as Sphinx writes them, without their roles."""
    return re.sub(r":\w+:<code>~(?:\w+\.)*(\w+)</code>|:\w+:(?=<code>)", _name, html)


def _name(role: re.Match[str]) -> str:
    return f"<code>{role[1]}</code>" if role[1] else ""


def rewritten(markdown: str, page: str) -> str:
    """Return a page of the site with links to pages of the site.

    ``page``: its name in the site. Raises :class:`ValueError` for a link to a file that the site has not.
    """
    source = {name: path for path, name in PAGES.items()}.get(page, f"docs/{page}")

    def to_page(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if not target.startswith("docs/") and target not in PAGES:
            raise ValueError(
                f"{source} links to {target}, which is no page of the site; see docs/site/links.py"
            )
        there = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(there, posixpath.dirname(page) or ".")

    return _LINK.sub(to_page, markdown)
