"""Judges an outcome: what no input may bring about."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from fuzz.isolation import Outcome
from fuzz.target import Case

LONGEST = 4000
"""Number of characters of the longest message."""


def find_fault(case: Case, outcome: Outcome, sound: str, folder: Path) -> str | None:
    """Return what is wrong with the outcome of a case, in ``folder``, or None.

    ``sound``: the digest of the result of the input without changes.
    """
    if outcome.kind in ("broken", "crashed", "hung"):
        return f"{outcome.kind}: {outcome.detail}"
    if outcome.trespasses:
        return f"trespassed: {'; '.join(outcome.trespasses)}"
    if strange := [path.name for path in folder.iterdir() if path.name not in _EXPECTED]:
        return f"left behind: {', '.join(strange)}"
    if outcome.kind == "refused":
        return _wrong_refusal(outcome, folder)
    if case.expected == "refused":
        return "accepted, but it has to be refused"
    if case.expected == "same" and outcome.detail != sound:
        return "another result than that of the sound input, without an error"
    return None


_LIBRARIES = {".ses"}
"""Temporary files of libraries: ONNX Runtime makes one when it is imported."""
_EXPECTED = {"input", "outside", "output", "tmp", "home", "outcome.json", "stderr.txt", "stdout.txt"}


def _wrong_refusal(outcome: Outcome, folder: Path) -> str | None:
    message = outcome.detail
    if not message.strip():
        return "refused without a message"
    if len(message) > LONGEST:
        return f"a message of {len(message)} characters: {message[:300]}"
    if odd := [c for c in message if unicodedata.category(c) in ("Cc", "Cs") and c != "\n"]:
        return f"a message with the character {odd[0]!r}: {message!r}"
    if left := [path.name for path in (folder / "output").rglob("*") if path.is_file()]:
        return f"refused, and left {', '.join(left)}: {message}"
    if left := [path.name for path in (folder / "tmp").iterdir() if path.name not in _LIBRARIES]:
        return f"refused, and left temporary files {', '.join(left)}: {message}"
    return None
