"""LoRAs that are chosen at run time."""

from __future__ import annotations

from pathlib import Path
from random import Random

from fuzz.proposals import byte_change, file_change, json_change
from fuzz.target import Case
from fuzz.targets.bundles import Bundles, fake

_FILE = "lora.safetensors"


class Loras(Bundles):
    """Makes an image with a LoRA."""

    def __init__(self) -> None:
        super().__init__("lora", fake(lora_rank=4), ("--lora", f"@{_FILE}"))

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change the LoRA's file: its header, its bytes, or what there is in its place."""
        if rng.random() < 0.1:
            return Case(self.name, [file_change(_FILE, rng, outside=False)])
        change = (json_change if rng.random() < 0.7 else byte_change)(sound / _FILE, _FILE, rng)
        return Case(self.name, [change])


TARGETS = (Loras(),)
