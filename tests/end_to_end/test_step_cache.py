"""The step cache: runs equal the reference with the same schedule, and full steps are those of plain runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from controlnext.bundle.format import MODEL, PROLOGUE, SHALLOW, STEP
from controlnext.bundle.manifest import shallow_name
from controlnext.bundle.reader import read_manifest
from controlnext.engines.base import Engine
from controlnext.engines.onnxruntime.sessions import OrtEngine
from controlnext.engines.steps import StepKind
from controlnext.errors import InputError
from controlnext.evaluation.inputs import denoiser_feed
from controlnext.evaluation.metrics import relative_l2
from controlnext.families import get_family
from controlnext.reference import reference_pipeline
from controlnext.runtime import Batcher, Pipeline
from controlnext.runtime import step_cache as limits
from controlnext.tensor_spec import control_inputs
from support.exports import load_tiny
from support.recipe import FAMILY_VARIANTS, LATENTS, drawing, rand

pytestmark = pytest.mark.export

HEIGHT, WIDTH = 80, 112
LIVE = {"sd15": False, "sdxl": True, "svd": False, "sd3": True}
"""Whether the control acts at shallow steps too: where it joins the denoiser in the shallow part."""


def _image_call(pipe: Pipeline, count: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a guided call of ``count`` prompts, at a size that no graph was traced at."""
    widths = {name: spec.shape[-1] for name, spec in pipe.inputs.items()}
    given = {
        "prompt_embeds": rand(1, count, 77, widths["encoder_hidden_states"]),
        "negative_prompt_embeds": rand(2, count, 77, widths["encoder_hidden_states"]),
        "control_image": drawing(3, WIDTH, HEIGHT),
        "control_scale": 0.8,
        "height": HEIGHT,
        "width": WIDTH,
        "guidance_scale": 3.0,
        "seed": 4,
    }
    if pooled := pipe.family.pooled_input:
        given |= {f"{side}pooled_prompt_embeds": rand(5, count, widths[pooled]) for side in ("", "negative_")}
    return {**given, **changes}


def _clip_call(_pipe: Pipeline, **changes: Any) -> dict[str, Any]:
    """Return a call of five frames in windows of three."""
    frames = [drawing(number, 64, 64) for number in range(5)]
    given = {"image": drawing(9, 64, 64), "control_images": frames, "height": 64, "width": 64, "seed": 4}
    return {**given, "frames_per_batch": 3, "overlap": 1, "max_guidance_scale": 2.0, **changes}


def _call(pipe: Pipeline, **changes: Any) -> dict[str, Any]:
    return {"image": _image_call, "video": _clip_call}[pipe.family.task](pipe, **changes)


RUNS = [
    ("sd15", "fp32", {"cache_interval": 2, "num_inference_steps": 5}),
    ("sd15", "fp32", {"cache_interval": 3, "num_inference_steps": 4, "guidance_scale": 1.0}),
    ("sd15-mid", "fp32", {"cache_interval": 3, "num_inference_steps": 4}),
    ("sdxl", "fp32", {"cache_interval": 3, "num_inference_steps": 7, "count": 2}),
    ("sdxl", "fp32", {"cache_interval": 2, "num_inference_steps": 5, "control_end": 0.6}),
    ("sdxl", "fp32", {"cache_interval": 3, "num_inference_steps": 6, "guidance_end": 0.3}),
    ("sdxl", "fp16", {"cache_interval": 2, "num_inference_steps": 4}),
    ("sd3", "fp32", {"cache_interval": 3, "num_inference_steps": 5}),
    ("svd", "fp32", {"cache_interval": 2, "num_inference_steps": 3}),
    ("svd", "fp32", {"cache_interval": 3, "num_inference_steps": 4, "guidance_end": 0.3}),
]


@pytest.mark.parametrize(("variant", "precision", "changes"), RUNS)
def test_runs_equal_the_reference_with_the_same_schedule(
    tiny: Callable[..., Path],
    tiny_checkpoint: Callable[[str], Path],
    variant: str,
    precision: str,
    changes: dict[str, Any],
) -> None:
    """Within the limits of runs without the cache; the cache does change the result."""
    with Pipeline.load(tiny(variant, precision), cache=False) as pipe:
        call = _call(pipe, **changes)
        found = pipe(**call, output_type="latent").latents
        plain = pipe(**{**call, "cache_interval": 1}, output_type="latent").latents
    wanted = reference_pipeline(load_tiny(variant, tiny_checkpoint(variant)))(**call).latents
    assert relative_l2(found, wanted) <= LATENTS[precision]
    assert relative_l2(plain, wanted) > 2 * LATENTS[precision]


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_outputs_for_the_cache_do_not_change_the_others(tiny: Callable[..., Path], variant: str) -> None:
    """To the last bit, in the form that ONNX Runtime runs: with an interval of 1 all is as without them."""
    bundle = tiny(variant)
    manifest = read_manifest(bundle)
    denoiser = get_family(manifest.family).denoiser
    files = [bundle / denoiser / name for name in (PROLOGUE, STEP)]
    sessions = [onnxruntime.InferenceSession(file) for file in files if file.exists()]
    without = onnx.load(files[1])
    assert without.graph.output[0].name == "noise_pred"
    del without.graph.output[1:]
    plain = [*sessions[:-1], onnxruntime.InferenceSession(without.SerializeToString())]
    feed = denoiser_feed(bundle, manifest, 64, 80, 2, 2)
    with (
        OrtEngine(sessions, manifest, denoiser, "") as found,
        OrtEngine(plain, manifest, denoiser, "") as wanted,
    ):
        np.testing.assert_array_equal(found.run(feed)["noise_pred"], wanted.run(feed)["noise_pred"])


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_which_steps_are_full(
    tiny: Callable[..., Path], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of each three; what it costs is counted in rows. Nothing follows the last one."""
    ran: list[tuple[StepKind, int]] = []
    plain = Engine.run_bound

    def counted(engine: Engine, bound: Any, feed: Any, replaced: Any, kind: Any = StepKind.PLAIN) -> Any:
        if "noise_pred" in [spec.name for spec in engine.outputs]:
            ran.append((kind, len(feed["sample"])))
        return plain(engine, bound, feed, replaced, kind)

    monkeypatch.setattr(Engine, "run_bound", counted)
    full, shallow, last = StepKind.FULL, StepKind.SHALLOW, StepKind.PLAIN
    with Pipeline.load(tiny(variant), cache=False) as pipe:
        call = _call(pipe, cache_interval=3, num_inference_steps=7, output_type="latent")
        pipe(**call)
    windows = len(ran) // 7
    assert ran == [
        (kind, 2) for kind in (full, shallow, shallow, full, shallow, shallow, last) for _ in range(windows)
    ]


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_where_the_control_acts_at_shallow_steps(tiny: Callable[..., Path], variant: str) -> None:
    bundle = tiny(variant)
    manifest = read_manifest(bundle)
    denoiser = get_family(manifest.family).denoiser
    shallow = manifest.graphs[denoiser].shallow
    assert shallow is not None
    assert bool(control_inputs(shallow.inputs)) is LIVE[variant]
    feed = denoiser_feed(bundle, manifest, 64, 64, 2, 2)
    with Pipeline.load(bundle, cache=False) as pipe:
        engine = pipe.bundle.engine(denoiser)
        engine.open_shallow()
        bound = engine.bind({})
        features = {
            name: array for name, array in bound.run(feed, StepKind.FULL).items() if name != "noise_pred"
        }
        on, off = (
            bound.run({**feed, "control_scale": np.full(2, scale, np.float32)}, StepKind.SHALLOW, features)
            for scale in (1, 0)
        )
    assert np.array_equal(on["noise_pred"], off["noise_pred"]) is not LIVE[variant]


@pytest.mark.parametrize("variant", ["sdxl", "sd3"])
def test_requests_of_a_batch_give_what_they_give_alone(tiny: Callable[..., Path], variant: str) -> None:
    """At steps of their own: full rows and shallow ones never share a run, whatever the intervals."""
    with Pipeline.load(tiny(variant), cache=False) as pipe, Batcher(pipe, max_rows=6) as batcher:
        calls = [
            _image_call(
                pipe, seed=seed, cache_interval=interval, num_inference_steps=steps, output_type="latent"
            )
            for seed, (interval, steps) in enumerate([(1, 3), (2, 5), (3, 5), (3, 4)])
        ]
        futures = [batcher.submit(**call) for call in calls]
        for call, future in zip(calls, futures, strict=True):
            alone = pipe(**call).latents
            assert relative_l2(future.result(60).latents, alone) <= 1e-5


def test_the_shallow_part_has_no_weights_of_its_own(tiny_bundle: Path) -> None:
    """On disk: each of its tensors is one of the whole graph, at the same place in the same file."""
    whole, shallow = (
        onnx.load(tiny_bundle / "unet" / name, load_external_data=False) for name in (MODEL, SHALLOW)
    )
    places = {t.name: [(e.key, e.value) for e in t.external_data] for t in whole.graph.initializer}
    weights = [tensor for tensor in shallow.graph.initializer if tensor.external_data]
    assert weights
    for tensor in weights:
        assert [(entry.key, entry.value) for entry in tensor.external_data] == places[tensor.name]
    assert shallow_name("unet") in read_manifest(tiny_bundle).parts


@pytest.mark.parametrize("variant", FAMILY_VARIANTS)
def test_the_shallow_part_of_int8_is_that_of_float32(tiny: Callable[..., Path], variant: str) -> None:
    _same_shallow_part(tiny(variant), tiny(variant, "int8"))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_shallow_part_of_the_small_model_is_that_of_float32(
    request: pytest.FixtureRequest, shapes_bundle: Path, precision: str
) -> None:
    """It begins right behind a convolution, which is normalized in int8."""
    _same_shallow_part(shapes_bundle, request.getfixturevalue(f"shapes_bundle_{precision}"))


def _same_shallow_part(exact: Path, lowered: Path) -> None:
    """Hold that it reads the same inputs, and none of the deep layers' weights."""
    parts, weights = [], []
    for bundle in (exact, lowered):
        manifest = read_manifest(bundle)
        denoiser = get_family(manifest.family).denoiser
        parts.append(manifest.graphs[denoiser].shallow)
        read = onnx.load(bundle / denoiser / SHALLOW, load_external_data=False).graph.initializer
        names = {tensor.name for tensor in read if tensor.name.startswith(("denoiser.", "control"))}
        weights.append({name.removesuffix(".scale").removesuffix(".transposed") for name in names})
    assert parts[0] == parts[1]
    assert weights[0]
    assert {name for name in weights[1] if name.endswith("weight")} <= weights[0]


def test_a_bundle_of_an_earlier_release_is_refused_with_the_remedy(tmp_path: Path) -> None:
    kept = Path(__file__).parents[1] / "data" / "old_bundle" / "bundle"
    bundle = shutil.copytree(kept, tmp_path / "bundle")
    with Pipeline.load(bundle, device="cpu", cache=False) as pipe:
        call = _image_call(pipe, height=64, width=64, num_inference_steps=2, output_type="latent")
        pipe(**call)
        with pytest.raises(InputError, match=r"no shallow graph of unet.*export the bundle again") as refused:
            pipe(**call, cache_interval=2)
    assert refused.value.argument == "cache_interval"


@pytest.mark.parametrize("interval", [0, -1, 1.5, True, None])
def test_an_interval_is_a_positive_integer(tiny_bundle: Path, interval: Any) -> None:
    with (
        Pipeline.load(tiny_bundle, cache=False) as pipe,
        pytest.raises(InputError, match="integer of at least 1"),
    ):
        pipe(**_image_call(pipe, cache_interval=interval))


def test_what_windows_keep_is_limited(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two windows keeps 64 channels of 8 x 8 for three frames of two rows."""
    each = 2 * 3 * 64 * 8 * 8 * 4
    with Pipeline.load(tiny("svd"), cache=False) as pipe:
        call = _clip_call(pipe, cache_interval=2, num_inference_steps=2, output_type="latent")
        monkeypatch.setattr(limits, "MOST_BYTES", 2 * each)
        pipe(**call)
        monkeypatch.setattr(limits, "MOST_BYTES", 2 * each - 1)
        with pytest.raises(InputError, match="would keep"):
            pipe(**call)
