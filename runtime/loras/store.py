"""The LoRAs of a pipeline: read once, chosen by each call, given to the graphs as inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import numpy as np

from controlnext.bundle.files import sha256
from controlnext.bundle.manifest import Manifest
from controlnext.errors import CheckpointError, InputError, blames
from controlnext.families import get_family
from controlnext.runtime.loras.reader import Lora, Packed, read_lora
from controlnext.runtime.request import Scales
from controlnext.tensor_spec import LORA_DOWN, LORA_UP

Choice = tuple[tuple[Lora, float], ...]
"""LoRAs with their scales, none of them 0: what a row of the batch has."""


class Loras:
    """The LoRAs of a pipeline with this ``manifest``, by name. Several threads may use them."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._denoiser = get_family(manifest.family).denoiser
        self._added: dict[str, Lora] = {}
        self._offered: dict[str, Path] = {}
        self._checksums: dict[str, str] = {}
        self._turn = Lock()
        # what was computed for a run, for as long as a run has it: equal runs then have the same arrays
        self._inputs: WeakValueDictionary[tuple[str, str, Choice], np.ndarray] = WeakValueDictionary()

    @property
    def room(self) -> int:
        """The largest rank of all LoRAs of a row together; 0 for a bundle without room."""
        graph = self._manifest.graphs.get(self._denoiser)
        return graph.lora.rank if graph and graph.lora else 0

    @property
    def ranks(self) -> dict[str, int]:
        """The LoRAs that were added: the rank of each, by name."""
        return {name: lora.rank for name, lora in dict(self._added).items()}

    def add(self, name: str, path: str | Path) -> None:
        """Read a LoRA; see :meth:`controlnext.runtime.Pipeline.add_lora`."""
        self._check_room()
        if not isinstance(name, str) or not name:
            raise InputError(f"the name of a LoRA is {name!r}; give a text", argument="name")
        if name in self._added:
            raise InputError(
                f"there is a LoRA named {name} already; give another name, or remove it first",
                argument="name",
            )
        if not isinstance(path, (str, PathLike)):
            raise InputError(f"path is {path!r}; give the path of a LoRA's file", argument="path")
        self._read(name, Path(path).expanduser())

    def offer(self, paths: Mapping[str, Path]) -> None:
        """Have calls choose LoRAs by these names that are read when they are first chosen."""
        if self.room:
            self._offered |= paths

    def remove(self, name: str) -> None:
        """Forget a LoRA; runs that have it keep it."""
        with self._turn:
            self._checksums.pop(name, None)
            if self._added.pop(name, None) is None:
                raise InputError(f"there is no LoRA named {name}; {self._accepted()}", argument="name")

    def checksum(self, name: str) -> str:
        """Return the SHA-256 of the file of a LoRA; raise :class:`InputError` for an unknown name."""
        lora = self._find(name)
        if name not in self._checksums:
            self._checksums[name] = sha256(lora.file)
        return self._checksums[name]

    def choose(self, given: Scales | Sequence[Scales | None] | None, count: int) -> ChosenLoras:
        """Return the LoRAs of each of ``count`` prompts, for the ``lora`` of a call.

        Raises :class:`InputError` for an unknown name, for ranks that do not fit together, and for any LoRA
        if the bundle has no room.
        """
        if given is None or isinstance(given, Mapping):
            return ChosenLoras(self, [self._choice(given or {})] * count)
        if len(given) != count:
            raise InputError(
                f"`lora` has {len(given)} entries for {count} prompts; give one for all, or one for each",
                argument="lora",
            )
        return ChosenLoras(self, [self._choice(scales or {}) for scales in given])

    def inputs(self, graph_name: str, rows: Sequence[Choice]) -> dict[str, np.ndarray]:
        """Return the inputs of a graph for the LoRAs of each row; none if no row has one there."""
        own = [tuple(one for one in row if graph_name in one[0].graphs) for row in rows]
        if not any(own):
            return {}
        kinds: dict[str, Callable[[Packed, float], np.ndarray]] = {
            LORA_DOWN: lambda packed, _scale: packed.down,
            LORA_UP: lambda packed, scale: packed.up * np.float32(scale),
        }
        return {name: self._rows(graph_name, name, own, make) for name, make in kinds.items()}

    def _rows(
        self,
        graph_name: str,
        name: str,
        rows: Sequence[Choice],
        make: Callable[[Packed, float], np.ndarray],
    ) -> np.ndarray:
        """Return an input with a row for each of the ``rows``, or a single one if they are equal."""
        single = {row: self._row(graph_name, name, row, make) for row in dict.fromkeys(rows) if row}
        if len(set(rows)) == 1:
            return single[rows[0]]
        widest = max(single.values(), key=lambda array: array.shape[1])
        joined = np.zeros((len(rows), *widest.shape[1:]), np.float32)
        for number, row in enumerate(rows):
            if row:
                joined[number, : single[row].shape[1]] = single[row][0]
        return joined

    def _row(
        self, graph_name: str, name: str, row: Choice, make: Callable[[Packed, float], np.ndarray]
    ) -> np.ndarray:
        """Return the matrices (1, rank, columns) of several LoRAs, one below the other."""
        with self._turn:
            found = self._inputs.get((graph_name, name, row))
            if found is None:
                found = np.concatenate([make(lora.graphs[graph_name], scale) for lora, scale in row])[None]
                self._inputs[graph_name, name, row] = found
        return found

    def _choice(self, scales: Scales) -> Choice:
        if scales:
            self._check_room()
        chosen = [(self._find(name), float(scale)) for name, scale in sorted(scales.items())]
        choice = tuple((lora, scale) for lora, scale in chosen if scale)
        ranks = {lora.name: lora.rank for lora, _ in choice}
        if sum(ranks.values()) > self.room:
            listed = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
            raise InputError(
                f"`lora` has a rank of {sum(ranks.values())} in all ({listed}), but the bundle has room for"
                f" {self.room}; choose fewer, or export it again with `lora_rank` {sum(ranks.values())}",
                argument="lora",
            )
        return choice

    def _find(self, name: str) -> Lora:
        found = self._added.get(name)
        if found is None and name in self._offered:
            return self._read_offered(name)
        if found is None:
            raise InputError(f"there is no LoRA named {name}; {self._accepted()}", argument="lora")
        return found

    def _read_offered(self, name: str) -> Lora:
        """Read a LoRA that was offered; errors do not tell callers the directory of its file."""
        path = self._offered[name]
        try:
            return self._read(name, path)
        except (CheckpointError, InputError) as error:
            told = str(error).replace(str(path), path.name)
            raise type(error)(told, argument=error.argument) from error

    def _read(self, name: str, path: Path) -> Lora:
        with blames("lora"):
            lora = read_lora(name, path, self._manifest)
        if lora.rank > self.room:
            raise InputError(
                f"{path.name} has rank {lora.rank}, but the bundle has room for {self.room}; export it again"
                f" with `lora_rank` {lora.rank}",
                argument="lora",
            )
        with self._turn:
            return self._added.setdefault(name, lora)

    def _accepted(self) -> str:
        names = sorted({*self._added, *self._offered})
        return f"accepted: {', '.join(names)}" if names else "none was added"

    def _check_room(self) -> None:
        if not self.room:
            raise InputError(
                "the bundle has no room for LoRAs; export it again with `lora_rank` N, the largest rank of"
                " those that are used together",
                argument="lora",
            )


@dataclass(frozen=True)
class ChosenLoras:
    """The LoRAs of a request: those of each prompt."""

    loras: Loras
    prompts: Sequence[Choice]

    def inputs(self, graph_name: str, each: int = 1, halves: int = 1) -> dict[str, np.ndarray]:
        """Return the inputs of a graph for a batch of ``each`` rows a prompt, ``halves`` times over."""
        rows = [choice for choice in self.prompts for _ in range(each)]
        return self.loras.inputs(graph_name, rows * halves)
