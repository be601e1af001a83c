"""Checkpoints: configurations, tokenizers, tensors as .safetensors and as pickles, adapters."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from fuzz import commands
from fuzz.proposals import byte_change, file_change, files_of, json_change
from fuzz.target import Case, Target

FORMS = ("zip", "legacy", "pickle", "tar")
"""Forms of pickles with code in them, of which torch reads some."""
BOM = "efbbbf"
_WRITTEN: list[Path] = []
"""Where the checkpoint was written before, which takes seconds."""


class Checkpoints(Target):
    """Reads a tiny SD1.5 checkpoint by ``controlnext export``, stopped once all tensors are read; a few are
    exported whole.

    ``changed``: the files below which are changed; ``arguments``: further ones of the command, those that
    begin with ``@`` names of files.
    """

    memory, seconds = 6 << 30, 120

    def __init__(self, name: str, changed: Sequence[str], arguments: Sequence[str] = ()) -> None:
        self.name = name  # type: ignore[misc]
        self._changed, self._arguments = tuple(changed), tuple(arguments)

    def write_sound(self, directory: Path) -> None:
        """Write a base with a text encoder, a control module and adapters."""
        if written := next((path for path in _WRITTEN if path.is_dir()), None):
            shutil.copytree(written, directory)
            return
        from support.fuzz_checkpoint import write_whole_checkpoint

        write_whole_checkpoint(directory)
        _WRITTEN.append(directory)
        # what every case needs: imported once
        import controlnext.evaluation.parity
        import controlnext.export
        import controlnext.weights  # noqa: F401

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change one of the files."""
        names = [name for name in files_of(sound) if name.startswith(self._changed)]
        name = rng.choice(names)
        file, luck = sound / name, rng.random()
        if file.suffix in (".bin", ".pt") and luck < 0.3:
            return Case(self.name, [{"kind": "payload", "file": name, "form": rng.choice(FORMS)}], "refused")
        if file.suffix == ".json" and "tokenizer" not in name and luck < 0.05:
            return Case(
                self.name, [{"kind": "bytes", "file": name, "at": 0, "remove": 0, "insert": BOM}], "same"
            )
        if luck < 0.15:
            return Case(self.name, [file_change(name, rng, outside=False)])
        with_json = file.suffix in (".json", ".safetensors") and rng.random() < 0.8
        return Case(self.name, [(json_change if with_json else byte_change)(file, name, rng)])

    def attempt(self, directory: Path, output: Path) -> str:
        """Read the checkpoint as an export does."""
        import controlnext.export

        read: list[str] = []
        export = controlnext.export.export_bundle

        def stop_once_read(checkpoint: Any, *arguments: Any, **options: Any) -> Any:
            read.append(_digest(checkpoint))
            if not _is_chosen(read[0]):
                raise _ReadError
            return export(checkpoint, *arguments, **options)

        controlnext.export.export_bundle = stop_once_read
        further = [str(directory / one[1:]) if one.startswith("@") else one for one in self._arguments]
        with suppress(_ReadError):
            commands.run(
                *("export", "--model", "sd15", "--base", directory / "base", "--control"),
                *(directory / "control.safetensors", "--output", output / "bundle", *further),
                *("--precision", "fp32", "--no-verify"),
            )
        return read[0]


def _is_chosen(digest: str) -> bool:
    """Return whether a checkpoint is one of the few that are exported whole, which takes long: 1 of 32."""
    return int(digest[:2], 16) < 8


class _ReadError(Exception):
    """The end of an attempt."""


def _digest(checkpoint: Any) -> str:
    """Read every tensor as the export does, and return a digest of all that it gets."""
    total = hashlib.sha256()
    for name, network in checkpoint.networks.items():
        for tensor_name, tensor in network.tensors.items():
            values = tensor.float().numpy()
            total.update(f"{name} {tensor_name} {values.shape}".encode() + values.tobytes())
        total.update(json.dumps(network.config, sort_keys=True).encode())
    for adapter in checkpoint.adapters:
        for tensor in adapter.tensors.values():
            total.update(tensor.float().numpy().tobytes())
    # the origins of settings may differ
    rest = [checkpoint.tokenizers, checkpoint.scheduler, checkpoint.options, checkpoint.clip_skip]
    total.update(json.dumps(rest, sort_keys=True).encode())
    return total.hexdigest()


TARGETS = (
    Checkpoints("checkpoint", ("base/", "control")),
    Checkpoints(
        "adapters",
        ("lora", "inversion", "previews/", "vae.", "ip_adapter", "image_encoder/"),
        (
            *("--lora", "@lora.safetensors", "--textual-inversion", "@inversion.pt:cat-toy-2"),
            *("--vae", "@vae.safetensors", "--preview-vae", "@previews", "--ip-adapter", "@ip_adapter.bin"),
        ),
    ),
)
"""A base with its control; and what may be given besides."""
