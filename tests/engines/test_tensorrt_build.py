"""TensorRT-RTX engines of every family, built on any machine."""

from __future__ import annotations

import mmap
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from controlnext.bundle.reader import read_manifest
from controlnext.engines.tensorrt.build import BuildOptions, build_engine
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import Gpu
from controlnext.engines.tensorrt.memory import released_pages
from controlnext.engines.tensorrt.profile import choose_ranges
from controlnext.engines.tensorrt.progress import Phases
from controlnext.engines.tensorrt.store import find_engine
from controlnext.families import get_family
from support.recipe import FAMILY_VARIANTS

RTX = FLAVORS["tensorrt-rtx"]
AMPERE = Gpu("NVIDIA RTX A4000", "sm86")
READ = [("sd15-mid", "fp32"), ("svd-v1", "fp32"), ("svd", "int8")]
"""Bundles whose denoisers are looked at by the parser alone."""
EVERY_BUNDLE = [(variant, precision) for variant in FAMILY_VARIANTS for precision in ("fp16", "int8")]
EVERY_BUNDLE = [one for one in (*EVERY_BUNDLE, ("sd15", "fp32")) if one not in READ]


@pytest.mark.parametrize(("variant", "precision"), EVERY_BUNDLE)
def test_every_graph_builds(variant: str, precision: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """The engine is found again by a GPU that it was built for, and by no other.

    Of int8 and float32 bundles the denoiser: their other graphs differ by no operator from those in float16.
    SDXL's VAE is SD1.5's."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny(variant, precision), bundle)
    manifest = read_manifest(bundle)
    ranges = choose_ranges(manifest, {})
    options = BuildOptions(RTX.hardware(["8.6"]))
    denoiser = get_family(manifest.family).denoiser
    alone = precision != "fp16" or variant == "sdxl"
    for folder in (denoiser,) if alone else tuple(manifest.graphs):
        built = build_engine(bundle, manifest, folder, RTX, ranges, options)
        assert built.new
        found = find_engine(bundle, manifest, folder, RTX.requirements(AMPERE))
        assert found == built.engine
        assert found.entry.key.precision == manifest.graphs[folder].precision
        weights = manifest.files[f"{folder}/model.onnx.data"].bytes
        assert found.path.stat().st_size > weights
        assert not RTX.suits(found.entry.key.hardware, Gpu("NVIDIA RTX 4090", "sm89"))


@pytest.mark.parametrize(("variant", "precision"), READ)
def test_other_denoisers_are_read(variant: str, precision: str, tiny: Callable[..., Path]) -> None:
    """Variants have what their families have but for the control, and SVD's int8 layers are those of other
    families: that operators are known will do."""
    trt = RTX.polygraphy()
    # the whole with the feature for the step cache, and the shallow part
    for name, outputs in (("model.onnx", 2), ("shallow.onnx", 1)):
        graph = tiny(variant, precision) / "unet" / name
        _builder, network, _parser = trt.NetworkFromOnnxPath(str(graph), strongly_typed=True)()
        assert network.num_outputs == outputs


def _attention(dtype: int, head: int) -> bytes:
    tensors = [
        helper.make_tensor_value_info(name, dtype, ["batch", 4, "tokens", head])
        for name in ("q", "k", "v", "y")
    ]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    graph = helper.make_graph([node], "attention", tensors[:3], tensors[3:])
    opset = [helper.make_opsetid("", 23)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def _attention_engine(dtype: int, head: int, *, decomposable: bool) -> int | None:
    """The size in bytes of an engine of one Attention; None where TensorRT-RTX refuses it."""
    trt = RTX.polygraphy()
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.exception import PolygraphyException

    profile = trt.Profile()
    for name in "qkv":
        profile.add(name, (1, 4, 64, head), (2, 4, 64, head), (2, 4, 256, head))
    network = trt.NetworkFromOnnxBytes(_attention(dtype, head), strongly_typed=True)
    if decomposable:
        network = trt.SetDecomposableAttentions(network)
    try:
        return trt.EngineBytesFromNetwork(network, CreateConfigRTX(profiles=[profile]))().nbytes
    except PolygraphyException:
        return None


@pytest.mark.parametrize("head", [40, 64, 80, 160])
def test_attention_keeps_its_dedicated_kernel(head: int) -> None:
    """That it may be decomposed changes nothing where there is a kernel: at the families' head sizes."""
    engine = _attention_engine(TensorProto.FLOAT16, head, decomposable=False)
    assert engine is not None
    assert _attention_engine(TensorProto.FLOAT16, head, decomposable=True) == engine


@pytest.mark.parametrize(("dtype", "head"), [(TensorProto.FLOAT, 64), (TensorProto.FLOAT16, 512)])
def test_attention_without_a_kernel_is_decomposed(dtype: int, head: int) -> None:
    """Float32, and the VAE's one head of 512: refused as it stands."""
    assert _attention_engine(dtype, head, decomposable=False) is None
    assert _attention_engine(dtype, head, decomposable=True) is not None


def test_progress_only_grows_and_ends_at_one() -> None:
    """Phases of phases, one of which starts again and again."""
    phases, seen = Phases(), [0.0]

    def step(name: str, number: int) -> None:
        phases.step(name, number)
        seen.append(phases.fraction)

    phases.start("all", None, 2)
    phases.start("first", "all", 4)
    for number in range(4):
        step("first", number)
    phases.finish("first")
    assert phases.fraction == pytest.approx(0.5)
    step("all", 0)
    for _ in range(2):
        phases.start("again", "all", 10)
        step("again", 4)
        phases.finish("again")
    assert phases.fraction == pytest.approx(0.75)
    step("all", 1)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_build_tells_how_far_it_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny("sd15"), bundle)
    manifest, told = read_manifest(bundle), []
    build_engine(
        bundle,
        manifest,
        "vae_encoder",
        RTX,
        choose_ranges(manifest, {}),
        BuildOptions("sm86"),
        report=lambda what, done: told.append((what, done)),
    )
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1][1] == 1.0
    assert any("optimizing" in what for what, _ in told)


def test_ctrl_c_ends_a_build(tiny: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny("sd15"), bundle)
    manifest, before = read_manifest(bundle), _engines(bundle)

    def interrupt(_what: str, done: float) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(
            bundle, manifest, "unet", RTX, choose_ranges(manifest, {}), BuildOptions("sm86"), report=interrupt
        )
    assert _engines(bundle) == before


def _engines(bundle: Path) -> set[Path]:
    """Where whole engines lie; what ONNX Runtime made of the graphs may be among them."""
    return {path for path in bundle.glob("engines/*/*") if path.is_dir()}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_weights_that_are_mapped_take_no_memory(tmp_path: Path) -> None:
    """They are given back again and again, and read the same afterwards."""
    path, size = tmp_path / "weights", 64 << 20
    path.write_bytes(b"\x07" * size)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in range(2):
            assert mapped[:: mmap.PAGESIZE] == b"\x07" * (size // mmap.PAGESIZE)
        held = _mapped_bytes()
        with released_pages(path):
            deadline = time.monotonic() + 20
            while _mapped_bytes() > held - 0.9 * size and time.monotonic() < deadline:
                time.sleep(0.05)
        assert _mapped_bytes() < held - 0.9 * size
        assert mapped[:: mmap.PAGESIZE] == b"\x07" * (size // mmap.PAGESIZE)


def _mapped_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    ("targets", "expected"),
    [([], "portable"), (["8.6"], "sm86"), (["sm120", "8.9"], "sm89+sm120")],
)
def test_hardware_is_named_the_same_however_it_is_written(targets: list[str], expected: str) -> None:
    assert RTX.hardware(targets) == expected


@pytest.mark.parametrize(
    ("hardware", "architecture", "suits"),
    [
        ("portable", "sm80", True),
        ("portable", "sm120", True),
        ("portable", "sm75", False),
        ("sm86+sm89", "sm89", True),
        ("sm86+sm89", "sm80", False),
    ],
)
def test_gpus_that_an_rtx_engine_is_for(hardware: str, architecture: str, suits: bool) -> None:
    assert RTX.suits(hardware, Gpu("any", architecture)) is suits


def test_a_tensorrt_engine_is_for_one_model_of_gpu() -> None:
    """Two models of one architecture may differ in what TensorRT chose for them."""
    from controlnext.engines.tensorrt.flavors import own_hardware

    gpu = Gpu("NVIDIA A100-SXM4-80GB", "sm80")
    flavor = FLAVORS["tensorrt"]
    assert own_hardware(gpu) == "sm80-nvidia-a100-sxm4-80gb"
    assert flavor.suits(own_hardware(gpu), gpu)
    assert not flavor.suits(own_hardware(gpu), Gpu("NVIDIA A30", "sm80"))
