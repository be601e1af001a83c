"""How the code reads, as far as it can be counted (CONTRIBUTING.md, "How the code reads")."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ("controlnext", "export", "engines", "runtime")
FILES = [path for folder in PACKAGE for path in sorted((ROOT / folder).rglob("*.py"))]
COMMANDS = {"export", "run", "batch", "serve", "verify", "bench", "build"}
"""Subcommands: an option is a parameter with its type, its help and its default."""
CALLS = {f"runtime/pipelines/image.py:{name}" for name in ("__call__", "stream")}
"""Each names an argument of a call twice, in two lines, so that editors and type checkers know them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions() -> Iterator[tuple[str, Function]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{_name(path)}:{node.name}", node


def _public(tree: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """Classes and functions of a module, and of its public classes, whose names begin with no underscore."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name.startswith("_"):
                continue
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def test_functions_are_short() -> None:
    lengths = {
        name: node.end_lineno - node.lineno + 1
        for name, node in _functions()
        if node.end_lineno
        and not (name.startswith("controlnext/cli/") and node.name in COMMANDS)
        and name not in CALLS
    }
    assert statistics.median(lengths.values()) <= 8
    assert not {name: length for name, length in lengths.items() if length > 60}


@pytest.mark.parametrize("folder", [*PACKAGE, "tests", "benchmarks", "examples"])
def test_files_are_short(folder: str) -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert not {name: length for name, length in lengths.items() if length > 300}


def test_public_names_say_what_they_are() -> None:
    """Docstrings of at least 95 % of them."""
    documented = {
        f"{_name(path)}:{node.name}": ast.get_docstring(node) is not None
        for path in FILES
        for node in _public(ast.parse(path.read_text()))
    }
    missing = [name for name, there in documented.items() if not there]
    assert len(missing) <= 0.05 * len(documented), missing


def test_docstrings_say_what_a_thing_does() -> None:
    """ "Return the graph", not "What the graph is"."""
    found = [
        f"{_name(path)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.match(r'\s*"""What\b', line)
    ]
    assert not found


def test_no_call_of_locals_and_no_formatting_of_a_name_alone() -> None:
    """An f-string of one placeholder turns None into "None" without a word."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "locals":
                found.append(f"{_name(path)}:{node.lineno} locals()")
            if isinstance(node, ast.JoinedStr) and len(node.values) == 1:
                (value,) = node.values
                if isinstance(value, ast.FormattedValue) and value.format_spec is None:
                    found.append(f"{_name(path)}:{node.lineno} f-string")
    assert not found


def test_durations_are_not_told_by_a_clock_that_jumps() -> None:
    """The time of day is told to clients, and nothing is decided by it; what lasts is ``time.monotonic``."""
    told = {f"runtime/serving/{name}.py" for name in ("clip_jobs", "image_work", "loading", "log_format")}
    uses = re.compile(r"\btime\.time\b|\bdatetime\b|\bst_mtime\b")
    assert {_name(path) for path in FILES if uses.search(path.read_text())} <= told


def test_tests_mirror_the_tree() -> None:
    """A room for each room of the package, for docs, what is shipped, and several rooms together."""
    rooms = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    top = {"export", "engines", "runtime"}
    inside = {path.name for path in (ROOT / "controlnext").iterdir() if path.is_dir()}
    assert rooms - {"core", "docs", "end_to_end", "fuzz", "shipping", "support"} <= top | inside
    assert top <= rooms


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "README.md", "docs/architecture.md"])
def test_files_that_documents_name_are_there(document: str) -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|md))`", (ROOT / document).read_text())
    named = [name for name in named if "/" in name and not name.startswith("build/")]
    missing = [
        name
        for name in named
        if not any((ROOT / base / name).exists() for base in ("", "controlnext", "controlnext/weights"))
        and not list(ROOT.glob(f"*/{name}"))
    ]
    assert not missing
