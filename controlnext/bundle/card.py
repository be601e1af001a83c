"""The model card of a bundle, as the model hub shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from controlnext.bundle.manifest import Manifest, ParityRow
from controlnext.families import get_family
from controlnext.secrets import without_secrets

CARD = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CALLS = {
    "image": (
        'out = pipe("a prompt", control_image=control, seed=0)  # a PIL image or an array',
        'out.images[0].save("image.png")',
    ),
    "video": ("out = pipe(image=image, control_images=frames, seed=0)  # PIL images or arrays",),
}
"""Calls by the task of a family."""
_TASKS = {"image": "text-to-image", "video": "image-to-video"}


def model_card(manifest: Manifest, repository: str, licence: str | None = None) -> str:
    """Return the card of a bundle: its family and precision, what it was made of, its measured parity.

    Args:
        repository: the name by which it is loaded, ``owner/name`` at the hub.
        licence: the identifier of its licence, which that of its weights decides; by default the card says
            that whoever publishes it has to look it up.
    """
    family = get_family(manifest.family)
    facts = {
        "license": licence,
        "library_name": "controlnext",
        "pipeline_tag": _TASKS.get(family.task),
        "base_model": sorted({*_base_models(manifest)}) or None,
        "tags": ["controlnext", "onnx", manifest.family, str(manifest.precision)],
    }
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in facts.items() if value is not None),
        "---",
        "",
        f"# {repository.rpartition('/')[2]}",
        "",
        f"A controlnext bundle: {family.title} with ControlNeXt, variant {manifest.variant}, precision"
        f" {manifest.precision}. It runs without PyTorch:",
        "",
        "```python",
        "from controlnext.runtime import Pipeline",
        "",
        f"pipe = Pipeline.from_pretrained({json.dumps(repository)})",
        *_CALLS.get(family.task, ()),
        "```",
        "",
        "It needs the package controlnext with its extras cpu (or gpu) and hub.",
        "",
        "## Licence",
        "",
        f"{licence}." if licence else "Not stated: it is that of the weights below, with their conditions.",
        "",
        "## Made of",
        "",
        *_table(("weights", "from"), [(source.role, source.name) for source in manifest.sources]),
        "",
        "## Parity with PyTorch",
        "",
        *_parity(manifest.parity),
        "",
        "## Made with",
        "",
        *_table(("tool", "version"), manifest.tools.items()),
    ]
    return without_secrets("\n".join(lines) + "\n")


def _base_models(manifest: Manifest) -> Iterator[str]:
    """Yield the repositories of weights that came from the hub."""
    for source in manifest.sources:
        if source.detail.rpartition("@")[2] and (found := _HUB_ID.match(source.name)):
            yield found[0]


def _parity(rows: Iterable[ParityRow]) -> list[str]:
    cells = [
        (
            row.name,
            row.metric,
            f"{row.value:.3g}",
            f"{'at least' if row.at_least else 'at most'} {row.limit:.3g}",
        )
        for row in rows
    ]
    if not cells:
        return ["The export was not compared with PyTorch; `controlnext verify` does that."]
    return _table(("what", "metric", "measured", "limit"), cells)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = [*columns]
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    shown = (" ".join(str(cell).split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(shown)} |"
