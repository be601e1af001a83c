"""IP-Adapters of both kinds for small models, named as the published files, and their image encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from controlnext.bundle.manifest import Quantization
from controlnext.export import export_bundle
from controlnext.families import get_family
from controlnext.image_prompts import AdapterSpec
from controlnext.models.image_prompt import cross_attentions
from controlnext.weights import load_checkpoint
from controlnext.weights.ip_adapter import empty_adapter
from controlnext.weights.networks import shapes_of
from controlnext.weights.random_weights import random_tensors
from support.recipe import fill
from support.roomy import Roomy, write_roomy

_HIDDEN, _PROJECTED, _POSITIONS = 32, 24, 5


@dataclass(frozen=True)
class Prompted:
    """A model: its family, and the directory of ``base/``, ``control.safetensors``, the adapters
    ``base.safetensors`` and ``plus.safetensors``, and their ``image_encoder/``."""

    family: str
    directory: Path

    def checkpoint(self, kinds: Sequence[str] = (), controls: int = 1) -> Any:
        """Load it with adapters of these kinds."""
        return load_checkpoint(
            get_family(self.family),
            base=self.directory / "base",
            control=[self.directory / "control.safetensors"] * controls,
            ip_adapter=[self.directory / f"{kind}.safetensors" for kind in kinds],
        )

    def export(
        self,
        bundle: Path,
        kinds: Sequence[str],
        precision: str = "fp32",
        quantized: Quantization | None = None,
        **options: Any,
    ) -> None:
        """Export it."""
        checkpoint = self.checkpoint(kinds, options.pop("controls", 1))
        export_bundle(checkpoint, precision, bundle, calibrated=quantized, **options)


def write_prompted(family: str, tiny_checkpoint: Callable[[str], Path], directory: Path) -> None:
    """Write the model, its adapters and LoRAs for it to ``directory``."""
    write_roomy(family, tiny_checkpoint, directory)
    for kind, spec in _specs(Roomy(family, directory).checkpoint()).items():
        # alike numbers in keys and values leave attention nothing to choose
        tensors = random_tensors(shapes_of(empty_adapter(spec)), kind, 3)
        save_file(
            {name: tensor.read().float() for name, tensor in tensors.items()},
            directory / f"{kind}.safetensors",
        )
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=_HIDDEN,
        intermediate_size=_HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=_PROJECTED,
    )
    fill(transformers.CLIPVisionModelWithProjection(config), 5).save_pretrained(directory / "image_encoder")


def _specs(checkpoint: Any) -> dict[str, AdapterSpec]:
    unet = checkpoint.networks["unet"]
    layers = tuple(one.to_q.out_features for _, one in cross_attentions(unet.meta_module()))
    width = unet.config["cross_attention_dim"]
    return {
        "base": AdapterSpec("base", (_PROJECTED,), 4, width, layers),
        "plus": AdapterSpec("plus", (_POSITIONS, _HIDDEN), 6, width, layers, hidden=40, heads=1, depth=4),
    }
