"""The fenced blocks of README.md and docs/, and what their pages say of how far the tests run them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN, IN_PART, FILE = "not run", "run in part", "file"
"""Marks, each in an HTML comment in the line before its block: ``<!-- not run: needs a GPU -->`` (commands
are parsed), ``<!-- run in part: ... -->`` (some commands are only parsed), ``<!-- file: jobs.jsonl -->`` (the
block is the content of a file that blocks of the page read)."""
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- ([\w ]+?): (.+?) -->\n?$")
_EXAMPLE = re.compile(r"^````.*?^````$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block: its page, line, language and text, and its mark with the reason, or two empty strings."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Return the command lines of a block of ``sh``: joined where they go on, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def words_of(command: str) -> list[str]:
    """Split a command line as the shell does, without the comment at its end."""
    return shlex.split(command, comments=True)


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = _EXAMPLE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2], _dedented(found), *_mark(text, found))
        for found in _FENCE.finditer(text)
    ]


def _dedented(found: re.Match[str]) -> str:
    return re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE)


def _mark(text: str, found: re.Match[str]) -> tuple[str, str]:
    marked = _MARK.search(text, max(0, found.start() - 300), found.start())
    return (marked[1], marked[2]) if marked else ("", "")


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
