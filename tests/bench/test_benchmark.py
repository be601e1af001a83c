"""The benchmark measures a tiny bundle in turns, reports targets that fail, and compares results with
goals."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import msgspec
import pytest
from goals import ratios
from PIL import Image

from controlnext import processor
from controlnext.bench.choices import MEASURES, Surroundings
from controlnext.bench.messages import Target, Turn, Work
from controlnext.bench.prepare import export_random
from controlnext.bench.results import Results, markdown, summarize
from controlnext.bench.targets import all_targets
from controlnext.bench.timeline import PARTS
from controlnext.bench.turns import Child, Log, TurnPlan, in_groups, run_cold, run_loads, run_warm
from controlnext.bundle.manifest import write_manifest
from controlnext.bundle.reader import read_manifest
from controlnext.errors import WorkError
from support.bench_results import made_up, measured
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle

WORK = Work(height=64, width=64, steps=2)
PLAN = TurnPlan(threads=1, rounds=2, runs=2, room=1e12)


def _targets(bundle: Path, made: Path) -> dict[str, Target]:
    found = all_targets([bundle], Surroundings(made, "cpu", optimum="python"))
    return {one.name: one for one in reversed(found)}


def test_the_command_writes_what_it_measured(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    names = ("step", "batch", "image", "first", "memory", "decode", "load")
    measures = [f"--measure={name}" for name in names]
    sizes = ["--height=64", "--batch=1", "--batch=2", "--steps=2", "--rounds=2", "--runs=1", "--threads=1"]
    done = cli("bench", bundle, *measures, *sizes, "--only=engine fp32", "--output", tmp_path, "--json")
    assert done.status == 0, done.err
    results = json.loads(done.out)
    assert results == json.loads((tmp_path / "bench.json").read_text())
    found = [(m["measure"], m["work"] and m["work"]["batch"]) for m in results["measurements"]]
    warm, cold = [("step", 1), ("batch", 1), ("batch", 2), ("image", 1)], [("first", 1), ("memory", 1)]
    assert found == [*warm, *cold, ("decode", 1), ("load first", None), ("load again", None)]
    assert not results["missing"]
    assert all(m["contestant"] == "engine fp32" and len(m["samples"]) == 2 for m in results["measurements"])
    by_name = {m["measure"]: m for m in results["measurements"]}
    assert list(by_name["first"]["parts"]) == ["start", "import", *PARTS]
    assert by_name["memory"]["unit"] == "bytes"
    assert by_name["memory"]["median"] > 50e6
    (ratio,) = ratios(msgspec.convert(results, Results))
    assert str(ratio.goal.what) == "engine fp32, load again"
    both = zip(by_name["load again"]["samples"], by_name["load first"]["samples"], strict=True)
    each = [again / first for again, first in both]
    assert (ratio.low, ratio.value, ratio.high) == (min(each), statistics.median(each), max(each))
    assert results["settings"]["threads"] == 1
    assert results["hardware"]["versions"]["onnxruntime"]
    assert "| load again |  | engine fp32 |" in (tmp_path / "bench.md").read_text()
    assert Image.open(tmp_path / "bench.png").width > 500


def test_targets_take_turns(bundle: Path) -> None:
    """Two processes are open at the same time; a third target cannot be opened."""
    engine = _targets(bundle, bundle)["engine fp32"]
    others = {"another": str(bundle), "nowhere": str(bundle / "nowhere")}
    others = {
        name: Target(name, "engine", path, MEASURES, 0, 0, engine.options) for name, path in others.items()
    }
    log = Log()
    run_warm([engine, *others.values()], "denoiser", [("step", "step", WORK)], PLAN, log)
    assert log.turns == ["engine fp32", "another"] * PLAN.rounds
    assert log.groups == {"denoiser": [["engine fp32", "another", "nowhere"]]}
    assert [(m.target, len(m.samples)) for m in log.measurements] == [("engine fp32", 4), ("another", 4)]
    (missing,) = log.missing
    assert (missing.target, missing.measure) == ("nowhere", "step")
    assert "is not a bundle" in missing.reason


def test_a_target_that_fails_in_its_turn_is_left_out_from_then_on(bundle: Path) -> None:
    engine, log = _targets(bundle, bundle)["engine fp32"], Log()
    options = {"device": "cpu", "backend": "abacus"}
    broken = Target("broken", "engine", str(bundle), MEASURES, 0, 0, options)
    run_cold([engine, broken], Work(64, 60), ["first"], PLAN, log)
    reasons = {missing.target: missing.reason for missing in log.missing}
    assert "height and width must be multiples of 8" in reasons["engine fp32"]
    assert "unknown backend 'abacus'" in reasons["broken"]
    assert not log.turns


def test_an_interrupt_leaves_no_linked_copies(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some readers refuse a weights file with a second link."""

    def interrupted(*_arguments: object, **_options: object) -> None:
        (copy,) = [path for path in tmp_path.glob("*/*") if path.is_dir()]
        assert (copy / "unet" / "model.onnx.data").stat().st_nlink == 2
        raise KeyboardInterrupt

    monkeypatch.setattr("controlnext.bench.turns._rounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_loads([_targets(bundle, bundle)["engine fp32"]], tmp_path, PLAN, Log())
    assert not list(tmp_path.iterdir())
    assert (bundle / "unet" / "model.onnx.data").stat().st_nlink == 1


def test_a_process_that_dies_is_an_error_with_its_status(bundle: Path) -> None:
    with Child(_targets(bundle, bundle)["engine fp32"], threads=1) as child:
        child.begin("denoiser")
        child._process.kill()
        with pytest.raises(WorkError, match="its process ended with status -9"):
            child.ask(Turn("step", WORK, 1))


def test_processes_are_grouped_by_memory() -> None:
    """For steps a process opens only the denoiser."""
    three = [Target(name, "engine", "", (), int(2e9), int(1e9)) for name in "abc"]
    groups = [[one.name for one in group] for group in in_groups(three, "pipeline", room=6e9)]
    assert groups == [["a", "b"], ["c"]]
    assert len(list(in_groups(three, "denoiser", room=6e9))) == 1
    assert len(list(in_groups(three, "pipeline", room=1))) == 3


def test_all_targets_are_listed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that multiplies bfloat16."""
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"amx_bf16"}))
    assert {
        "engine fp32",
        "engine fp32, OpenVINO",
        "engine fp32, OpenVINO bfloat16",
        "engine fp32 without control",
        "engine fp32 offloaded",
        "torch eager float32",
        "torch eager bfloat16",
        "torch eager float16",
        "torch eager float32 without control",
        "torch compiled float32",
        "torch compiled bfloat16",
        "diffusers ControlNet float32",
        "optimum float32 without control",
        "openvino float32 without control",
        "openvino bfloat16 without control",
    } == set(_targets(bundle, tmp_path))
    on_gpu = {one.name for one in all_targets([bundle], Surroundings(tmp_path, "cuda:0", gpu=True))}
    assert "engine fp32, ONNX Runtime cuda" in on_gpu


def test_a_preview_decoder_is_a_target_of_its_own(tmp_path: Path) -> None:
    """It decodes, and is compared with the full decoder."""
    bundle = write_fake_bundle(tmp_path / "fake", "sd15", previews=True)
    runners = [_targets(bundle, tmp_path)[f"engine fp32{name}"] for name in ("", " preview decoder")]
    assert (runners[1].measures, runners[1].options["decoder"]) == (("decode",), "preview_decoder")
    log = Log()
    run_warm(runners, "pipeline", [("decode", "decode", WORK)], PLAN, log)
    assert [m.target for m in log.measurements] == ["engine fp32", "engine fp32 preview decoder"]
    decodes = [
        measured(name, "decode", seconds)
        for name, seconds in (("engine fp32", 1.0), ("engine fp32 preview decoder", 0.1))
    ]
    (ratio,) = ratios(made_up(*decodes))
    assert (ratio.goal.at_most, ratio.value) == (0.12, 0.1)


def test_bundles_of_one_precision_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    names = [one.name for one in all_targets([bundle, other], Surroundings(tmp_path, "cpu"))]
    assert {"engine fp32 fp32", "engine fp32 other"} < set(names)


def test_a_summary_has_the_quartiles_of_the_sums_of_parts() -> None:
    samples = [{"a": float(number), "b": 1.0} for number in (4, 1, 3, 2, 0)]
    made = summarize("x", "first", None, [samples[:2], samples[2:]])
    assert (made.low, made.median, made.high) == (2.0, 3.0, 4.0)
    assert made.samples == [5.0, 2.0, 4.0, 3.0, 1.0]
    assert made.rounds == [3.5, 3.0]
    assert made.parts == {"a": 2.0, "b": 1.0}
    assert summarize("x", "step", None, [[{"step": 1.0}]]).parts == {}


def test_the_page_names_the_machine_and_what_is_missing() -> None:
    results = made_up(measured("engine fp32", "step", 1.0), measured("torch eager float32", "step", 2.0))
    page = markdown(results)
    assert results.hardware.processor in page
    assert "| step | 512 x 512, 2 rows | engine fp32 | 1 s | 1 s to 1 s | 0.50 |" in page


def test_a_complete_export_is_used_again(bundle: Path, tmp_path: Path) -> None:
    there = tmp_path / "sd15-auto-seed0-fp32"
    shutil.copytree(bundle, there)
    assert export_random("sd15", "auto", 0, "fp32", tmp_path) == there
    (there / "unet" / "model.onnx.data").write_bytes(b"cut")
    with pytest.raises(WorkError, match="sd15 has no variant 'none'"):
        export_random("sd15", "none", 0, "fp32", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["neither a bundle nor --model", "--random-weights"]),
        (["BUNDLE", "--model", "sd15"], ["both bundles and --model"]),
        (["--model", "sd15"], ["without --random-weights"]),
        (["--model", "sd16", "--random-weights", "0"], ["unknown model 'sd16'"]),
        (["--model", "sd15", "--random-weights", "0", "--variant", "up"], ["no variant 'up'"]),
        (["BUNDLE", "--precision", "fp32"], ["require --model"]),
        (["/nowhere"], ["/nowhere is not a bundle"]),
        (["BUNDLE", "--measure", "speed"], ["unknown --measure 'speed'", "step"]),
        (["BUNDLE", "--measure", "frames"], ["--measure frames is not supported by Stable Diffusion 1.5"]),
        (["BUNDLE", "--only", "onnx*"], ["--only onnx*", "torch eager float32"]),
        (["BUNDLE", "--height", "60"], ["--height is 60", "multiple of 8"]),
        (["BUNDLE", "--measure", "size", "--size", "100"], ["--size is 100", "multiple of 8"]),
        (["BUNDLE", "--batch", "0"], ["0", "must be a positive integer"]),
        (["BUNDLE", "--device", "gpu"], ["unknown device 'gpu'"]),
        (["BUNDLE", "OTHER"], ["is sd15 mid", "give bundles of one model"]),
    ],
)
def test_bad_input_is_one_line(
    cli: Cli, bundle: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    write_manifest(tmp_path, msgspec.structs.replace(read_manifest(bundle), variant="mid"))
    names = {"BUNDLE": bundle, "OTHER": tmp_path}
    assert_refused(cli("bench", *(names.get(argument, argument) for argument in arguments)), *words)
