"""Cross normalization and its hooks: what the definition promises, for every variant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from controlnext.errors import CheckpointError
from controlnext.families import FAMILIES, Family, Variant, get_family
from controlnext.models.cross_normalization import (
    Control,
    CrossNormalization,
    adaptive_pool,
    averaging_pool,
    inject,
)
from support import recipe
from support.weights_models import example_inputs


class Promise(NamedTuple):
    """``strength``: what the aligned feature is multiplied by, of the scale asked for and the learned one."""

    pooled_first: bool
    eps: float
    strength: Callable[[Tensor, Tensor], Tensor]


PROMISES = {
    "sd15": Promise(True, 1e-12, lambda scale, _: scale),
    "sd15-mid": Promise(True, 1e-12, lambda scale, learned: learned * scale),
    "sdxl": Promise(False, 1e-12, lambda scale, _: scale),
    "svd": Promise(False, 1e-5, lambda scale, _: 0.2 * scale),
    "svd-v1": Promise(False, 1e-5, lambda scale, learned: 1.3 / (1 + torch.exp(-learned * scale))),
    "sd3": Promise(True, 1e-12, lambda scale, _: scale),
}
EVERY_VARIANT = pytest.mark.parametrize("name", PROMISES)

SIZE = st.tuples(st.integers(1, 12), st.integers(1, 12))
SEED = st.integers(0, 1000)
LEARNED = st.floats(0.1, 2)


def test_every_variant_is_tried() -> None:
    known = {(family.name, variant) for family in FAMILIES.values() for variant in family.variants}
    assert {recipe.VARIANTS[name] for name in PROMISES} == known


def _entry(name: str) -> tuple[Family, Variant]:
    family, variant = recipe.VARIANTS[name]
    return get_family(family), get_family(family).variant(variant)


def _maps(seed: int, *shape: int) -> Tensor:
    """Maps (B, C, h, w), each of a mean and a deviation of its own; in float64, so that what is left is not
    rounding."""
    values = torch.from_numpy(recipe.rand(seed, *shape)).double()
    mean, deviation = torch.from_numpy(recipe.rand(seed + 1, 2, shape[0], 1, 1, 1)).double()
    return values * deviation.exp() + 5 * mean


def _control(name: str, feature: Tensor, scale: Tensor, learned: float) -> Control:
    has_learned = _entry(name)[1].control.learned_scale
    return Control(feature, scale, torch.tensor(learned).to(feature) if has_learned else None)


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps.mean((1, 2, 3), keepdim=True), maps.std((1, 2, 3), keepdim=True)


@EVERY_VARIANT
@settings(max_examples=30)
@given(SIZE, SIZE, SEED, LEARNED, st.booleans())
def test_at_the_off_scale_nothing_is_added(name, size, control_size, seed, learned, flat) -> None:
    """Not a bit changes, also where the control has no structure at all."""
    variant = _entry(name)[1]
    x, c = _maps(seed, 2, 6, *size).float(), _maps(seed + 2, 2, 6, *control_size).float()
    c = c[:, :1, :1, :1].expand_as(c) if flat else c
    control = _control(name, c, torch.full((2,), variant.off_scale), learned)
    assert torch.equal(CrossNormalization(variant.injection)(x, [control]), x)


def test_the_first_video_release_is_half_on_at_scale_0() -> None:
    """A sigmoid of 0: what the unconditional half of its guided batches gets."""
    x, c = _maps(0, 2, 6, 4, 5), _maps(2, 2, 6, 4, 5)
    normalization = CrossNormalization(_entry("svd-v1")[1].injection)
    result = normalization(x, [_control("svd-v1", c, torch.zeros(2).double(), 0.7)])
    deviation, wanted = _statistics(result - x)[1], 0.65 * _statistics(x)[1]
    torch.testing.assert_close(deviation, wanted, rtol=1e-4, atol=0)


@EVERY_VARIANT
@settings(max_examples=40)
@given(
    size=SIZE,
    control_size=SIZE,
    seed=SEED,
    contrast=st.floats(1e-5, 10),
    scales=st.tuples(*(st.floats(0.05, 2),) * 3),
    learned=LEARNED,
)
def test_what_is_added_has_the_mean_and_the_deviation_of_the_feature(
    name, size, control_size, seed, contrast, scales, learned
) -> None:
    """Of each sample by itself, times the strength of the variant.

    Where pooling comes last, the mean and the deviation are those of the control before it is pooled. The
    deviation falls short by eps, which shows in controls of hardly any contrast.
    """
    promise, injection = PROMISES[name], _entry(name)[1].injection
    x, c = _maps(seed, 3, 6, *size), _maps(seed + 2, 3, 6, *control_size) * contrast
    scale = torch.tensor(scales).double()
    result = CrossNormalization(injection)(x, [_control(name, c, scale, learned)])
    strength = promise.strength(scale, torch.tensor(learned).double())
    added = (result - x) / strength.reshape(-1, 1, 1, 1)
    pooled = F.adaptive_avg_pool2d(c, size)
    mean, deviation = _statistics(x)
    control_mean, control_deviation = _statistics(pooled if promise.pooled_first else c)
    wanted = deviation * control_deviation / (control_deviation + promise.eps)
    pattern = (pooled - control_mean) / control_deviation
    torch.testing.assert_close(added, pattern * wanted + mean, rtol=1e-9, atol=1e-9)
    if promise.pooled_first or control_size == size:
        got_mean, got_deviation = _statistics(added)
        torch.testing.assert_close(got_mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got_deviation, wanted, rtol=1e-9, atol=0)


@EVERY_VARIANT
@settings(max_examples=20)
@given(SIZE, st.lists(st.tuples(SIZE, st.floats(-2, 2)), min_size=2, max_size=4), SEED, LEARNED)
def test_several_controls_add_what_each_adds(name, size, given_controls, seed, learned) -> None:
    """Each is aligned to the same feature, whatever the others are."""
    normalization = CrossNormalization(_entry(name)[1].injection)
    x = _maps(seed, 2, 6, *size)
    controls = [
        _control(name, _maps(seed + 2 + n, 2, 6, *control_size), torch.tensor(scale).double(), learned)
        for n, (control_size, scale) in enumerate(given_controls)
    ]
    together = normalization(x, controls) - x
    alone = [normalization(x, [control]) - x for control in controls]
    torch.testing.assert_close(together, sum(alone), rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(SIZE, SIZE, SEED, st.floats(-2, 2))
def test_tokens_get_what_a_map_of_the_same_numbers_gets(size, control_size, seed, scale) -> None:
    injection = _entry("sd3")[1].injection
    assert injection.tokens
    normalization = CrossNormalization(injection)
    x, c = _maps(seed, 2, 6, *size), _maps(seed + 2, 2, 6, *control_size)
    control = _control("sd3", c, torch.tensor([scale, 1.0]).double(), 1.0)
    tokens = normalization(x.permute(0, 2, 3, 1).flatten(1, 2), [control], size)
    maps = normalization(x, [control])
    torch.testing.assert_close(tokens.unflatten(1, size).permute(0, 3, 1, 2), maps, rtol=1e-9, atol=1e-9)


@settings(max_examples=200)
@given(*(st.tuples(st.integers(1, 80), st.integers(1, 80)),) * 2)
# SVD's features at 576 x 1024: two of its convolutions are not padded
@example((71, 127), (36, 64))
@example((3, 80), (80, 3))
def test_averaging_matrices_pool_as_pytorch_does(size, pooled) -> None:
    """At every size: windows that overlap or differ, and more of them than pixels."""
    maps = torch.from_numpy(recipe.rand(0, 2, 3, *size))
    # sums of float32 numbers of about 1, in another order
    torch.testing.assert_close(
        averaging_pool(maps, pooled), F.adaptive_avg_pool2d(maps, pooled), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("module", ["mid_block", "down_blocks.7", "pos_embed"])
def test_a_denoiser_without_the_module_is_refused(module: str) -> None:
    denoiser = torch.nn.Module()
    denoiser.down_blocks, denoiser.mid_block = torch.nn.ModuleList([torch.nn.Identity()]), None
    injection = replace(_entry("sd15")[1].injection, module=module)
    with (
        pytest.raises(
            CheckpointError,
            match=f"has no module {module}, where the control is injected at the output; give a base",
        ),
        inject(denoiser, CrossNormalization(injection), []),
    ):
        pass


@EVERY_VARIANT
@pytest.mark.parametrize("pool", [adaptive_pool, averaging_pool])
@torch.no_grad()
def test_hooks_at_the_off_scale_leave_the_denoiser_as_it_is(name, pool) -> None:
    """To the last bit, whatever the control; at scale 1 they reach its output, and once gone nothing."""
    family, variant = _entry(name)
    denoiser = recipe.tiny_networks(name)[family.denoiser]
    arguments = {**example_inputs(family, family.denoiser), "return_dict": False}
    (uncontrolled,) = denoiser(**arguments)
    normalization = CrossNormalization(variant.injection, pool)
    width = variant.injection.width(denoiser.config)
    rows = uncontrolled[..., 0, 0, 0].numel()

    def run(scale: float, seed: int, size: tuple[int, int]) -> Tensor:
        features = (_maps(seed + n, rows, width, *size).float() for n in (0, 10))
        controls = [_control(name, feature, torch.tensor(scale), 1.0) for feature in features]
        with inject(denoiser, normalization, controls):
            return denoiser(**arguments)[0]

    for seed, size in enumerate([(8, 8), (7, 5), (1, 1), (13, 20)]):
        assert torch.equal(run(variant.off_scale, seed, size), uncontrolled)
        change = torch.linalg.norm(run(1.0, seed, size) - uncontrolled)
        assert change > 0.01 * torch.linalg.norm(uncontrolled)
    assert torch.equal(denoiser(**arguments)[0], uncontrolled)
