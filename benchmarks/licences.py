"""Write docs/licences.md: the licences of what is shipped and of what an installation brings along.

    python benchmarks/licences.py

What packages say of themselves is read from those that are installed here, which `make` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import MappingProxyType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
EXTRAS = ("cpu", "openvino", "rtx", "preprocess", "video", "serve", "ray", "export", "bench")
"""Those that users install; `gpu` has what `cpu` has, `tensorrt` what `rtx` has, from NVIDIA."""
BEGIN, END = "<!-- packages: written by benchmarks/licences.py -->", "<!-- end of packages -->"
COPYLEFT = re.compile(r"\bA?L?GPL|\bMPL|General Public|Mozilla", re.IGNORECASE)
PROPRIETARY = re.compile(r"proprietary|NVIDIA", re.IGNORECASE)
SAYS_NOTHING: Mapping[str, str] = MappingProxyType(
    {
        "sentencepiece": "Apache-2.0",
        "tokenizers": "Apache-2.0",
        "safetensors": "Apache-2.0",
    }
)
"""Packages whose metadata names no licence, with that of their sources."""


def closure(extra: str) -> set[str]:
    """Return the packages that ``controlnext[extra]`` brings along here, by their canonical names.

    ``extra``: empty for the package alone. Packages of other platforms are left out.
    """
    found: set[str] = set()
    left = [("controlnext", frozenset({extra} if extra else ()))]
    seen = set(left)
    while left:
        name, extras = left.pop()
        for requirement in _requirements(name, extras):
            child = canonicalize_name(requirement.name)
            entry = (child, frozenset(requirement.extras))
            if entry not in seen and _installed(child):
                found.add(child)
                seen.add(entry)
                left.append(entry)
    return found - {"controlnext"}


def _requirements(name: str, extras: Iterable[str]) -> list[Requirement]:
    every = [Requirement(text) for text in distribution(name).requires or ()]
    wanted = [{"extra": ""}, *({"extra": extra} for extra in extras)]
    return [one for one in every if one.marker is None or any(map(one.marker.evaluate, wanted))]


def _installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def licence_of(name: str) -> str:
    """Return what a package says of its licence: an SPDX expression, or words."""
    metadata = distribution(name).metadata.json
    kinds = [
        one.rpartition(" :: ")[2] for one in metadata.get("classifier", []) if one.startswith("License ::")
    ]
    classifiers = [kind for kind in kinds if kind != "OSI Approved"]
    text = str(metadata.get("license", "")).strip().splitlines()
    short = text[0] if text and len(text[0]) <= 60 and text[0] not in ("UNKNOWN", "Copyright") else ""
    told = str(metadata.get("license_expression", "")) or "; ".join(classifiers) or short
    return told or SAYS_NOTHING.get(name, _of_file(distribution(name)))


def _of_file(package: Distribution) -> str:
    """Return the first line of a package's licence file that has text."""
    for file in package.files or ():
        if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING")):
            lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
            return lines[0][:60] if lines else "unknown"
    return "unknown"


def table() -> list[str]:
    """Return the table's lines: package, licence, what it comes with."""
    by_extra = {"": closure(""), **{extra: closure(extra) for extra in EXTRAS}}
    base = by_extra.pop("")
    lines = ["| package | licence | comes with |", "| --- | --- | --- |"]
    for name in sorted(base.union(*by_extra.values())):
        users = [extra for extra, names in by_extra.items() if name in names]
        told = licence_of(name).replace("|", "/")
        mark = " **(copyleft)**" if COPYLEFT.search(told) else ""
        mark += " **(proprietary)**" if PROPRIETARY.search(told) else ""
        lines.append(
            f"| {name} | {told}{mark} | {'every installation' if name in base else ', '.join(users)} |"
        )
    return lines


def main() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n".join([before + BEGIN, "", *table(), "", END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
