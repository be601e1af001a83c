"""Dockerfiles as instructions, and what of a checkout their builds see."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """An instruction: its name in capitals, and the text behind it in one line."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Return the words: of a JSON list, or as the shell splits them."""
        listed = self.text.startswith("[")
        return [str(word) for word in json.loads(self.text)] if listed else shlex.split(self.text)

    def options(self) -> tuple[dict[str, str], Instruction]:
        """Return the options ``--NAME=VALUE`` at the beginning, and the instruction without them."""
        given: dict[str, str] = {}
        text = self.text
        while found := re.match(r"--([\w-]+)=(\S+)\s+", text):
            given[found[1]] = found[2]
            text = text[found.end() :]
        return given, Instruction(self.name, text)

    def with_values(self, values: Mapping[str, str]) -> Instruction:
        """Put values in the place of ``$NAME`` and ``${NAME}``; one that is not known is an error."""
        text = re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda name: values[name[1] or name[2]], self.text)
        return Instruction(self.name, text)


def read_dockerfile(path: Path) -> list[Instruction]:
    """Return the instructions of a Dockerfile in their order."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [Instruction(name.upper(), " ".join(text.split())) for name, text in pairs]


def context_files(checkout: Path) -> list[Path]:
    """Return the files of a checkout that a build sees, relative to it, by its ``.dockerignore``."""
    text = (checkout / ".dockerignore").read_text()
    rules = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    # what is left out as a whole has many thousands of files
    tops = [top for top in checkout.iterdir() if top.is_file() or not _ignored(Path(top.name), rules)]
    paths = [path for top in tops for path in (top, *top.rglob("*")) if path.is_file()]
    names = sorted(path.relative_to(checkout) for path in paths)
    return [name for name in names if not _ignored(name, rules)]


def _ignored(name: Path, rules: list[str]) -> bool:
    """Tell whether the last of the rules that a file or a directory above it matches leaves it out."""
    ignored = False
    for rule in rules:
        pattern = _pattern(rule.removeprefix("!").strip("/"))
        if any(pattern.fullmatch(one.as_posix()) for one in (name, *name.parents)):
            ignored = not rule.startswith("!")
    return ignored


def _pattern(rule: str) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?)", rule)
    return re.compile("".join(parts.get(part, re.escape(part)) for part in found))


def copy_from_context(checkout: Path, sources: list[str], target: Path, into: bool) -> None:
    """Copy files and directories of a checkout as COPY does: of a directory what is in it.

    ``into``: whether ``target`` is a directory even for a file. Raises :class:`AssertionError` for a source
    of which the build sees nothing.
    """
    files = context_files(checkout)
    for source in sources:
        given = Path(source)
        seen = [name for name in files if name == given or given in name.parents]
        assert seen, f"COPY {source}: .dockerignore leaves it out, or it is not there"
        for name in seen:
            inside = name.relative_to(given) if name != given else Path(name.name if into else ".")
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / name, target / inside)
