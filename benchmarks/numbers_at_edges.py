"""Compare runs at the edges of what is accepted with PyTorch: sizes, batches, steps, scales and weights.

    python benchmarks/numbers_at_edges.py

Prints a Markdown table for the tests' tiny models, which have the structure of the real ones. A row is right
if the latents are PyTorch's, or if neither has finite numbers and the run says so. The status is 1 if one is
not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from batching import outline
from soak_bundles import support
from torch import Tensor

from controlnext.errors import InputError, WorkError
from controlnext.evaluation.metrics import relative_l2
from controlnext.export import export_bundle
from controlnext.reference import reference_pipeline
from controlnext.runtime import ImagePipeline
from controlnext.weights import Checkpoint

LIMIT = 1e-3
"""The largest relative L2 of latents: ten times what was measured at usual sizes, for sums over 2048."""
FAMILIES = ("sd15", "sdxl", "sd3")
SIZES = ((1, 1), (1, 8), (8, 1), (256, 8), (8, 256))
"""Heights and widths in units of the smallest size."""
WEIGHTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "denormal": (".weight", lambda tensor: 1e-41 * tensor),
    "a few denormal": (".bias", lambda tensor: tensor.where(tensor > 0, 1e-42 * tensor)),
    "1000 times as large": ("conv_in.weight", lambda tensor: 1e3 * tensor),
    "1e30 times as large": ("conv_in.weight", lambda tensor: 1e30 * tensor),
}
"""Changes of weights: the end of the tensors' names, and what becomes of them."""
NETWORKS = ("control", "denoiser", "vae")

Call = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exit with 1 if a row is not right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", action="append", choices=FAMILIES, help="may be repeated")
    parser.add_argument("--only", action="append", choices=[*KINDS, "weights"], help="may be repeated")
    parser.add_argument("--steps", type=int, default=1000, help="the most steps of a run")
    given = parser.parse_args(arguments)
    print("| family | case | relative L2 to PyTorch |\n| --- | --- | --- |", flush=True)
    wrong = 0
    for family in given.family or FAMILIES:
        with TemporaryDirectory() as scratch:
            kinds = given.only or [*KINDS, "weights"]
            for case, told, right in _rows(family, Path(scratch), kinds, given.steps):
                wrong += not right
                print(f"| {family} | {case} | {told}{'' if right else ', **wrong**'} |", flush=True)
    print("nothing is wrong" if not wrong else f"{wrong} rows are wrong")
    sys.exit(bool(wrong))


def _rows(family: str, scratch: Path, kinds: Sequence[str], steps: int) -> Iterator[tuple[str, str, bool]]:
    directory = support("recipe").write_checkpoint(family, scratch / "model")
    checkpoint = support("exports").load_tiny(family, directory)
    export_bundle(checkpoint, "fp32", scratch / "bundle")
    reference = reference_pipeline(checkpoint)
    with ImagePipeline.load(scratch / "bundle", device="cpu") as pipe:
        for kind in kinds:
            for case, changes in KINDS[kind](pipe, steps) if kind in KINDS else ():
                yield (case, *_compared(pipe, reference, _call(pipe, **changes)))
    if "weights" in kinds:
        for network in NETWORKS:
            for title, (ending, change) in WEIGHTS.items():
                name = checkpoint.family.denoiser if network == "denoiser" else network
                changed = _changed(checkpoint, name, ending, change)
                export_bundle(changed, "fp32", scratch / "changed", force=True)
                with ImagePipeline.load(scratch / "changed", device="cpu") as pipe:
                    told, right = _compared(pipe, reference_pipeline(changed), _call(pipe))
                yield f"{name}: weights {title}", told, right


def _sizes(pipe: Any, _steps: int) -> Iterator[tuple[str, Call]]:
    unit = pipe.family.size_multiple
    for high, wide in SIZES:
        height, width = unit * high, min(unit * wide, 2048)
        yield f"{width} x {height}", {"height": min(height, 2048), "width": width}


def _batches(pipe: Any, _steps: int) -> Iterator[tuple[str, Call]]:
    for count in (1, 2, 3, 5, 8, 16):
        yield f"{count} images of a prompt", {"num_images_per_prompt": count}
        yield f"{count} prompts", _embeddings(pipe, count)


def _runs(pipe: Any, steps: int) -> Iterator[tuple[str, Call]]:
    for sampler in pipe.family.samplers:
        for count in (1, steps):
            yield f"{sampler}, {count} steps", {"sampler": sampler, "num_inference_steps": count}


def _scales(_pipe: Any, _steps: int) -> Iterator[tuple[str, Call]]:
    for scale in (-1.0, -0.01, 0.0, 1e-30, 1.0, 2.0, 5.0):
        yield f"control scale {scale:g}", {"control_scale": scale}
    for guidance in (-3.0, 0.0, 1.0, 100.0):
        yield f"guidance {guidance:g}", {"guidance_scale": guidance}


KINDS: dict[str, Callable[[Any, int], Iterator[tuple[str, Call]]]] = {
    "sizes": _sizes,
    "batches": _batches,
    "steps": _runs,
    "scales": _scales,
}


def _call(pipe: Any, **changes: Any) -> Call:
    usual = {
        **_embeddings(pipe, 1),
        "control_image": outline(64, 1),
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "seed": 4,
    }
    return {**usual, **changes}


def _embeddings(pipe: Any, count: int) -> Call:
    widths = {name: spec.shape[-1] for name, spec in pipe.inputs.items()}
    random = np.random.RandomState(count)
    sides: dict[str, tuple[int, ...]] = {"prompt_embeds": (77, widths["encoder_hidden_states"])}
    if pooled := pipe.family.pooled_input:
        sides["pooled_prompt_embeds"] = (widths[pooled],)
    return {
        f"{side}{name}": random.standard_normal((count, *shape)).astype(np.float32)
        for name, shape in sides.items()
        for side in ("", "negative_")
    }


def _compared(pipe: Any, reference: Any, call: Call) -> tuple[str, bool]:
    """Return what was found, and whether it is right."""
    wanted = _wanted(reference, call)
    theirs = wanted if isinstance(wanted, str) else "PyTorch has finite numbers"
    try:
        made = pipe(**call, output_type="np")
    except (InputError, WorkError) as error:
        return f"{theirs}; refused: {error}", isinstance(wanted, str)
    if isinstance(wanted, str):
        return f"{wanted}, the run has a result", False
    found = max(relative_l2(made.latents, wanted.latents), relative_l2(made.images, wanted.images))
    return f"{found:.1e}", found < LIMIT


def _repeated(call: Call) -> Call:
    """Return a call with the embeddings of every image: diffusers' SD3 does not repeat those it is given."""
    count = call.get("num_images_per_prompt", 1)
    each = {name: np.repeat(value, count, axis=0) for name, value in call.items() if name.endswith("embeds")}
    return {**call, **each, "num_images_per_prompt": 1}


def _wanted(reference: Any, call: Call) -> Any:
    """Return PyTorch's result, or what is wrong with it."""
    try:
        with np.errstate(all="ignore"):
            wanted = reference(**_repeated(call))
    except (ArithmeticError, AssertionError, LookupError, ValueError, RuntimeError) as error:
        return f"PyTorch fails ({type(error).__name__})"
    finite = np.isfinite(wanted.latents).all() and np.isfinite(wanted.images).all()
    return wanted if finite else "PyTorch has no finite numbers"


def _changed(
    checkpoint: Checkpoint, name: str, ending: str, change: Callable[[Tensor], Tensor]
) -> Checkpoint:
    network = checkpoint.networks[name]
    tensors = {
        key: change(tensor.float()) if key.endswith(ending) else tensor
        for key, tensor in network.tensors.items()
    }
    return replace(checkpoint, networks={**checkpoint.networks, name: replace(network, tensors=tensors)})


if __name__ == "__main__":
    main()
