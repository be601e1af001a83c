"""Values and increments told apart, whatever their size and closeness to the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from controlnext.weights.kinds import kind_of
from controlnext.weights.lazy import LazyTensor
from support.cli import Cli, assert_refused
from support.recipe import numbers

SHAPES = Path(__file__).parents[2] / "examples" / "shapes" / "model"
PUBLISHED = {
    "conv_in.weight": (32, 4, 3, 3),
    "resnets.0.norm1.weight": (64,),
    "resnets.0.norm1.bias": (64,),
    "resnets.0.conv1.weight": (64, 32, 3, 3),
    "attentions.0.to_q.weight": (64, 64),
    "attentions.0.to_q.bias": (64,),
    "attentions.0.norm1.weight": (64,),
    "ff.weight": (256, 64),
}
"""Names and shapes of a small network."""
MATRICES = {name: shape for name, shape in PUBLISHED.items() if len(shape) > 1}
GAINS = {name: shape for name, shape in PUBLISHED.items() if "norm1.weight" in name} | {
    "norm2.weight": (256,)
}
SHAPES_OF = pytest.mark.parametrize("shapes", [PUBLISHED, MATRICES], ids=["all", "matrices"])
SIZES = (0.01, 0.03, 0.1, 0.3, 0.5, 1.0, 2.0)
COSINES = (-0.2, 0.0, 0.19)


def network(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return numbers(shapes, 0)


def towards(base: dict[str, Tensor], size: float, cosine: float) -> dict[str, Tensor]:
    """Tensors of ``size`` times the base's, at that cosine to the base's."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, tensor in base.items():
        across = torch.randn(tensor.shape, generator=generator)
        across -= tensor * (across * tensor).sum() / tensor.square().sum()
        across *= tensor.norm() / across.norm()
        found[name] = size * (cosine * tensor + (1 - cosine**2) ** 0.5 * across)
    return found


def kind(base: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    lazy = [
        {name: LazyTensor.from_tensor(tensor) for name, tensor in tensors.items()}
        for tensors in (base, found)
    ]
    return kind_of(*lazy)[0]


@SHAPES_OF
@pytest.mark.parametrize("cosine", COSINES)
@pytest.mark.parametrize("size", SIZES)
def test_increments_and_the_values_they_make(
    shapes: dict[str, tuple[int, ...]], size: float, cosine: float
) -> None:
    base = network(shapes)
    increments = towards(base, size, cosine)
    assert kind(base, increments) == "increments"
    assert kind(base, {name: base[name] + increments[name] for name in base}) == "values"


@SHAPES_OF
@pytest.mark.parametrize("cosine", [1.0, 0.999, 0.99, 0.9, 0.7, 0.5, 0.4])
@pytest.mark.parametrize("size", [0.7, 1.0, 1.5])
def test_values_of_every_closeness(shapes: dict[str, tuple[int, ...]], cosine: float, size: float) -> None:
    base = network(shapes)
    assert kind(base, towards(base, size, cosine)) == "values"


def test_values_that_were_trained_from_the_start_are_told_by_the_gains_of_their_norms() -> None:
    assert kind(network(PUBLISHED), numbers(PUBLISHED, 1)) == "values"
    assert kind(network(MATRICES), numbers(MATRICES, 1)) == "increments"


def test_gains_alone_are_enough() -> None:
    base = network(GAINS)
    assert kind(base, {name: tensor + 0.1 for name, tensor in base.items()}) == "values"
    assert kind(base, {name: 0.1 * tensor for name, tensor in base.items()}) == "increments"


@pytest.mark.parametrize(
    "shapes", [{"conv_out.bias": (400,)}, {"proj.weight": (3, 4)}, {"norm.weight": (12,)}]
)
def test_too_little_tells_nothing(shapes: dict[str, tuple[int, ...]]) -> None:
    base = network(shapes)
    assert kind(base, base) == kind(base, towards(base, 0.1, 0.0)) == "unknown"


def test_what_was_not_trained_counts_too() -> None:
    """Increments of 0, and values that equal the base's; tensors of zeros in the base say nothing."""
    base = network(PUBLISHED) | {"proj_out.weight": torch.zeros(64, 64)}
    assert kind(base, {name: torch.zeros_like(tensor) for name, tensor in base.items()}) == "increments"
    assert kind(base, base | {"proj_out.weight": torch.ones(64, 64)}) == "values"


def test_a_few_reads_of_a_large_network_are_enough() -> None:
    """They are spread over all, and over kinds that come by turns."""
    base = network({"to_q.weight": (256, 256)})["to_q.weight"]
    reads: list[str] = []

    def lazy(name: str) -> LazyTensor:
        return LazyTensor((256, 256), lambda: reads.append(name) or 2 * base)

    names = [
        f"blocks.{number}.{part}.weight" for number in range(64) for part in ("to_q", "to_k", "ff", "out")
    ]
    assert (
        kind_of(dict.fromkeys(names, LazyTensor.from_tensor(base)), {name: lazy(name) for name in names})[0]
        == "values"
    )
    assert len(reads) == 64
    counts = [sum(part in name for name in reads) for part in ("to_q", "to_k", "ff", "out")]
    assert min(counts) >= 8


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The small trained model's UNet, and its increments."""
    base = load_file(SHAPES / "base/unet/diffusion_pytorch_model.safetensors")
    return base, load_file(SHAPES / "unet.safetensors")


@pytest.mark.parametrize(
    "part", [lambda _name: True, lambda name: "attn" in name, lambda name: "conv1" in name]
)
def test_the_small_trained_model(
    trained: tuple[dict[str, Tensor], dict[str, Tensor]], part: Callable[[str], bool]
) -> None:
    base, increments = trained
    increments = {name: tensor for name, tensor in increments.items() if part(name)}
    assert kind(base, increments) == "increments"
    assert kind(base, {name: base[name] + tensor for name, tensor in increments.items()}) == "values"


def test_the_command_line_refuses_the_small_models_increments_as_values(cli: Cli, tmp_path: Path) -> None:
    """Parity cannot see it: the reference has the same garbage."""
    sources = [f"--base={SHAPES / 'base'}", f"--control={SHAPES / 'controlnet.safetensors'}"]
    weights = f"--unet-weights={SHAPES / 'unet.safetensors'}"
    done = cli("export", "--model=sdxl", *sources, weights, f"--output={tmp_path / 'out'}")
    assert_refused(done, "unet.safetensors holds increments, not values", "give --unet-increments")
    assert not (tmp_path / "out").exists()
