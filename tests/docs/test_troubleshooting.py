"""The messages of docs/troubleshooting.md are those of the code, word by word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from support.doc_blocks import ROOT, read_blocks

PAGE = ROOT / "docs" / "troubleshooting.md"
_PLACE = re.compile(r"%\.?\d*[sdf]( %%)?")
"""The place of a value in a line of the log."""
MESSAGES = [block.text.strip() for block in read_blocks(PAGE)]


def _texts() -> Iterator[str]:
    """Yield the texts of the code, with ``...`` for what depends on the case."""
    for folder in ("controlnext", "export", "engines", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield _PLACE.sub("...", node.value)


@pytest.fixture(scope="module")
def texts() -> str:
    return "\n".join(_texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_has_the_message(message: str, texts: str) -> None:
    assert message in texts


def test_each_message_has_a_meaning_and_a_remedy() -> None:
    """At least 20 of them; below each what it means and, in a paragraph of its own, what to do."""
    parts = re.split(r"```text\n.*?\n```\n", PAGE.read_text(), flags=re.DOTALL)[1:]
    assert len(parts) == len(MESSAGES) >= 20
    assert len(set(MESSAGES)) == len(MESSAGES)
    for part in parts:
        meaning, _, remedy = part.partition("*What to do:* ")
        assert meaning.strip()
        assert remedy.strip()
