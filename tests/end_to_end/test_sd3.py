"""SD3 against our own PyTorch reference: no control weights were ever published, and no runs recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.errors import InputError
from controlnext.evaluation.inputs import graph_feeds
from controlnext.evaluation.ranges import open_graph, start_session
from controlnext.export import export_bundle
from controlnext.export.adapters import wrap
from controlnext.export.passes.emulate import emulate_float16
from controlnext.families import get_family
from controlnext.models.cross_normalization import CrossNormalization
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.weights import Checkpoint, load_checkpoint
from support.cli import Cli, assert_refused
from support.exports import once
from support.float16 import T5_STREAM, enlarge, error
from support.recipe import drawing, rand, write_checkpoint
from support.weights_models import add_text_encoders

pytestmark = pytest.mark.export

SD3 = get_family("sd3")
(TRANSFORMER,) = (graph for graph in SD3.graphs if graph.name == SD3.denoiser)
T5 = "text_encoder_3"
BUNDLES = {"fp32": ("fp32", ()), "fp32-no-t5": ("fp32", (T5,)), "fp16": ("fp16", ())}
"""Precision, and what is left out."""

# Relative L2 of the transformer's output and of what a run of 10 steps gives, with room for processors that
# add in another order. Measured: 3.2e-6 and 3.8e-6; of float16's 11 bits 6.8e-4 and 3.8e-3.
LIMITS = {"fp32": (1e-5, 2e-5), "fp16": (4e-3, 1e-2)}

# in pixels; graphs are traced at 112 x 80
SIZES = ((128, 128), (96, 160))

Load = Callable[[str], Checkpoint]
Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def load(shared_folder: Path) -> Load:
    """The checkpoint behind the bundle of a name: a tiny SD3 with its text encoders, and a control module."""

    def make(folder: Path) -> None:
        add_text_encoders(write_checkpoint("sd3", folder) / "base", SD3)

    made = once(shared_folder / "sd3-source", make)
    control = made / "control.safetensors"
    return lambda name: load_checkpoint(SD3, base=made / "base", control=control, leave_out=BUNDLES[name][1])


@pytest.fixture(scope="module")
def bundles(shared_folder: Path, load: Load) -> Bundles:
    """The bundle of a name in :data:`BUNDLES`."""

    def make(folder: Path) -> None:
        for name, (precision, _) in BUNDLES.items():
            export_bundle(load(name), precision, folder / name)

    made = once(shared_folder / "sd3-bundles", make)
    return lambda name: made / name


@pytest.fixture(scope="module")
def controlled(load: Load) -> nn.Module:
    """The stock transformer with its control, PyTorch's own pooling between them."""
    checkpoint = load("fp32")
    (control,) = (network.module() for network in checkpoint.controls)
    transformer = checkpoint.networks["transformer"].module()
    return wrap(TRANSFORMER, transformer, [control], CrossNormalization(checkpoint.variant.injection))


@pytest.fixture(scope="module")
def stock(controlled: nn.Module) -> nn.Module:
    """The same transformer as diffusers has it."""
    return controlled.get_submodule("denoiser")


def _feed(height: int, width: int, batch: int, seed: int = 0, scale: float | None = None) -> list[Tensor]:
    """The transformer's inputs for a latent of ``height`` x ``width`` patches and one control image."""
    random = [
        rand(seed, batch, 16, 2 * height, 2 * width),
        np.full(batch, rand(seed + 1, 1, kind="uniform").item() * 1000, np.float32),
        rand(seed + 2, batch, 77 + 256, 32),
        rand(seed + 3, batch, 40),
        rand(seed + 4, 1, 3, 16 * height, 16 * width, kind="uniform"),
        # one a row
        0.2 + rand(seed + 5, batch, kind="uniform") if scale is None else np.full(batch, scale, np.float32),
    ]
    return [torch.from_numpy(array) for array in random]


@torch.no_grad()
def _uncontrolled(stock: nn.Module, feed: list[Tensor]) -> Tensor:
    names = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")
    return stock(**dict(zip(names, feed, strict=False)), return_dict=False)[0]


def _run(engine, feed: list[Tensor]) -> np.ndarray:
    names = [spec.name for spec in TRANSFORMER.inputs]
    return engine.run({n: t.numpy() for n, t in zip(names, feed, strict=True)})["noise_pred"]


def _relative(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", BUNDLES)
def test_the_graph_equals_pytorch(bundles: Bundles, controlled: nn.Module, name: str) -> None:
    """A guided batch with one image, at sizes that were not traced."""
    path = bundles(name)
    with open_engine(path, read_manifest(path), "transformer", cache=False) as engine:
        for height, width in SIZES:
            feed = _feed(height // 16, width // 16, batch=2)
            with torch.no_grad():
                wanted = controlled(*feed).numpy()
            assert _relative(_run(engine, feed), wanted) <= LIMITS[BUNDLES[name][0]][0], (height, width)


def test_the_graph_at_scale_0_is_the_uncontrolled_transformer(bundles: Bundles, stock: nn.Module) -> None:
    """The image does not change a single bit then."""
    path = bundles("fp32")
    with open_engine(path, read_manifest(path), "transformer", cache=False) as engine:
        for height, width in SIZES:
            feed = _feed(height // 16, width // 16, batch=2, scale=0)
            got = _run(engine, feed)
            assert _relative(got, _uncontrolled(stock, feed).numpy()) <= LIMITS["fp32"][0]
            feed[4] = 1 - feed[4]
            np.testing.assert_array_equal(_run(engine, feed), got)


PATCHES = st.integers(1, 12)
SEEDS = st.integers(0, 1000)


@settings(max_examples=15)
@given(PATCHES, PATCHES, st.integers(1, 3), SEEDS)
def test_scale_0_is_exactly_the_uncontrolled_transformer(
    stock: nn.Module, controlled: nn.Module, height: int, width: int, batch: int, seed: int
) -> None:
    feed = _feed(height, width, batch, seed, scale=0)
    with torch.no_grad():
        assert torch.equal(controlled(*feed), _uncontrolled(stock, feed))


@settings(max_examples=15)
@given(PATCHES, PATCHES, st.integers(1, 3), SEEDS)
def test_the_first_block_gets_the_tokens_and_a_feature_of_their_mean_and_deviation(
    stock: nn.Module, controlled: nn.Module, height: int, width: int, batch: int, seed: int
) -> None:
    """Over the tokens and channels of each sample, at every size; the pattern is that of the control, pooled
    to the patches, times the scale of the sample."""
    feed, seen = _feed(height, width, batch, seed), {}

    def keep_output(module: nn.Module, _args: object, output: Tensor) -> None:
        seen[module] = output.double()

    def keep_tokens(module: nn.Module, _args: object, kwargs: dict[str, Tensor]) -> None:
        seen[module] = kwargs["hidden_states"].double()

    control, first = controlled.get_submodule("control"), stock.transformer_blocks[0]
    hooks = [module.register_forward_hook(keep_output) for module in (stock.pos_embed, control)]
    hooks.append(first.register_forward_pre_hook(keep_tokens, with_kwargs=True))
    try:
        with torch.no_grad():
            controlled(*feed)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = seen[stock.pos_embed]
    feature = (seen[first] - tokens) / feed[-1].double()[:, None, None]
    (mean, deviation), (got_mean, got_deviation) = _statistics(tokens), _statistics(feature)
    # float32 numbers of about 1, divided by a scale of 0.2 or more
    torch.testing.assert_close(got_mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(got_deviation, deviation, rtol=5e-6, atol=0)
    pattern = F.adaptive_avg_pool2d(seen[control], (height, width)).permute(0, 2, 3, 1).flatten(1, 2)
    pattern_mean, pattern_deviation = _statistics(pattern)
    wanted = (pattern - pattern_mean) / pattern_deviation
    torch.testing.assert_close((feature - mean) / deviation, wanted.expand_as(feature), rtol=0, atol=1e-5)


def _statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    return tokens.mean((1, 2), keepdim=True), tokens.std((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("name", "height", "width"), [("fp32", *SIZES[0]), ("fp32", *SIZES[1]), ("fp32-no-t5", *SIZES[1])]
)
def test_a_run_equals_pytorch(bundles: Bundles, load: Load, name: str, height: int, width: int) -> None:
    _compare_run(bundles(name), load(name), height, width, LIMITS["fp32"][1])


def test_a_run_in_float16_is_close_to_pytorch(bundles: Bundles, load: Load) -> None:
    _compare_run(bundles("fp16"), load("fp16"), *SIZES[1], LIMITS["fp16"][1])


def _compare_run(path: Path, checkpoint: Checkpoint, height: int, width: int, limit: float) -> None:
    """Guided steps, from words to latents and the image."""
    arguments = {
        "prompt": "a photo of a cat",
        "negative_prompt": "a chair, a cart",
        "control_image": drawing(3, width, height),
        "num_inference_steps": 5,
        "height": height,
        "width": width,
        "seed": 5,
    }
    wanted = reference_pipeline(checkpoint)(**arguments)
    with Pipeline.load(path, cache=False) as pipeline:
        got = pipeline(**arguments, output_type="np")
    assert wanted.latents.shape == (1, 16, height // 8, width // 8)
    assert _relative(got.latents, wanted.latents) <= limit
    assert _relative(got.images, wanted.images) <= limit


def test_without_t5_nothing_of_it_is_in_the_bundle(bundles: Bundles) -> None:
    path, whole = bundles("fp32-no-t5"), bundles("fp32")
    missing = {entry.name for entry in whole.iterdir()} - {entry.name for entry in path.iterdir()}
    assert missing == {T5, "tokenizer_3"}
    assert set(read_manifest(whole).graphs) - set(read_manifest(path).graphs) == {T5}
    assert T5 not in read_manifest(path).configs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 136, "width": 128}, "height is 136"),
        ({"height": 128, "width": 120}, "width is 120"),
        ({"latents": rand(0, 1, 16, 17, 16)}, "height of the latents is 136"),
    ],
)
def test_sizes_that_do_not_divide_into_patches_are_refused(bundles: Bundles, options, words: str) -> None:
    """Multiples of 8, which is enough for the other families."""
    arguments = {"prompt": "a cat", "control_image": drawing(0, 128, 128), **options}
    with (
        Pipeline.load(bundles("fp32"), cache=False) as pipeline,
        pytest.raises(InputError, match=f"{words}; height and width must be multiples of 16 "),
    ):
        pipeline(**arguments)


def test_an_export_without_a_control_tells_that_none_was_published(cli: Cli, tmp_path: Path) -> None:
    done = cli("export", "--model", "sd3", "--output", tmp_path / "bundle")
    assert_refused(done, "no control weights were published for SD3; give --control your own")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoder", [*SD3.prompt_encoders, T5])
def test_text_encoders_in_float16_keep_the_limit(bundles: Bundles, encoder: str) -> None:
    """As the engine runs them, and with every operator's result rounded as on an accelerator."""
    exact, lowered = bundles("fp32"), bundles("fp16")
    feed = graph_feeds(exact, read_manifest(exact))[encoder][0]
    wanted = start_session(open_graph(exact, encoder), exact, encoder).run(None, feed)
    rounded = emulate_float16(open_graph(lowered, encoder))
    found = start_session(rounded, lowered, encoder).run(None, feed)
    assert max(map(error, found, wanted)) < LIMITS["fp16"][0]
    with open_engine(lowered, read_manifest(lowered), encoder, cache=False) as engine:
        assert max(map(error, engine.run(feed).values(), wanted)) < LIMITS["fp16"][0]


def test_t5s_residual_stream_may_leave_the_range_of_float16(bundles: Bundles) -> None:
    """That of the published T5-XXL does."""
    exact, lowered, factor = bundles("fp32"), bundles("fp16"), 16384
    feed = graph_feeds(exact, read_manifest(exact))[T5][0]
    (wanted,) = start_session(open_graph(exact, T5), exact, T5).run(None, feed)
    plain = emulate_float16(enlarge(open_graph(exact, T5), factor, T5_STREAM), lambda _value: True)
    # no overflow shows in the end: one over an infinite norm is zero
    assert not start_session(plain, exact, T5).run(None, feed)[0].any()
    shipped = emulate_float16(enlarge(open_graph(lowered, T5), factor, T5_STREAM))
    (found,) = start_session(shipped, lowered, T5).run(None, feed)
    assert error(found, wanted) < LIMITS["fp16"][0]
