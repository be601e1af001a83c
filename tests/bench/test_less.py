"""Images that multiply less are measured beside the plain ones, and judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from controlnext.bench.choices import Surroundings, changed, ways_of_less
from controlnext.bench.engines import EngineRunner
from controlnext.bench.messages import Target, Turn, Work
from controlnext.bench.quality import Exam
from controlnext.bench.requests import image_arguments
from controlnext.bench.session import measure
from controlnext.bench.settings import Settings
from controlnext.bench.targets import all_targets
from controlnext.bench.worker import _take
from controlnext.bundle.reader import read_manifest
from controlnext.runtime import Pipeline
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle

WORK = Work(height=64, width=64, steps=3)
LESS = ways_of_less(3, 0.7, True, 4)


def test_each_way_is_added_to_those_before() -> None:
    few = {"steps": 4, "sampler": "lcm", "guidance": 1.0}
    both = {"cache_interval": 3, "guidance_end": 0.7}
    assert [{"cache_interval": 3}, both, {**both, "tiny": True}, few, {**few, "tiny": True}] == LESS
    assert not ways_of_less(None, None, False, None)


def test_ways_of_less_are_targets(tmp_path: Path) -> None:
    """PyTorch's reference computes what the step cache leaves out: its peer in time is DeepCache."""
    bundle = write_fake_bundle(tmp_path / "fake", "sd15", previews=True)
    found = {one.name: one for one in all_targets([bundle], Surroundings(tmp_path, "cpu", less=LESS))}
    assert {
        "engine fp32, cache 3",
        "engine fp32, cache 3, guidance to 0.7",
        "engine fp32, cache 3, guidance to 0.7, tiny decoder",
        "engine fp32, 4 LCM steps",
        "engine fp32, 4 LCM steps, tiny decoder",
        "torch eager float32, guidance to 0.7, tiny decoder",
        "torch eager bfloat16, 4 LCM steps, tiny decoder",
        "diffusers DeepCache float32, cache 3",
        "diffusers DeepCache bfloat16, cache 3, tiny decoder",
    } < set(found)
    assert not any(name.startswith("torch") and "cache" in name for name in found)
    assert found["torch eager float32"].own(WORK) == WORK
    assert found["engine fp32, 4 LCM steps"].own(WORK).rows == 1


def test_without_a_tiny_vae_nothing_decodes_with_it(bundle: Path) -> None:
    plain = Target("engine", "engine", str(bundle), (), 0, 0)
    names = [one.name for one in changed(plain, read_manifest(bundle), LESS)]
    assert names == ["engine, cache 3", "engine, cache 3, guidance to 0.7", "engine, 4 LCM steps"]


def test_plain_images_and_others_stand_side_by_side(cli: Cli, bundle: Path) -> None:
    """In one run, with their nearness to the plain ones of the float32 engine."""
    ways = ["--cache-interval=2", "--guidance-end=0.5", "--few-steps=2"]
    sizes = ["--height=64", "--steps=3", "--rounds=2", "--runs=1", "--threads=1"]
    done = cli("bench", bundle, "--measure=image", *ways, *sizes, "--only=engine fp32*", "--json")
    assert done.status == 0, done.err
    results = json.loads(done.out)
    assert not results["missing"]
    found = {m["contestant"]: m for m in results["measurements"]}
    plain, cached = found["engine fp32"], found["engine fp32, cache 2"]
    assert (plain["work"]["cache_interval"], plain["quality"]) == (1, {})
    assert (cached["work"]["cache_interval"], cached["work"]["steps"]) == (2, 3)
    assert cached["quality"]["PSNR"] > 10
    few = found["engine fp32, 2 LCM steps"]["work"]
    assert (few["steps"], few["sampler"], few["guidance"]) == (2, "lcm", 1.0)
    assert found["engine fp32 offloaded"]["quality"]["PSNR"] > 60


def test_an_exam_judges_images_of_its_own(bundle: Path, tmp_path: Path) -> None:
    """Steps, sampler and guidance are the benchmark's, the rest is the exam's."""
    call = image_arguments(read_manifest(bundle), WORK)
    asked = {name: call[name] for name in call if name in ("control_image", "height", "width")}
    asked |= {name: call[name] for name in call if name.endswith("prompt_embeds") or name == "prompt"}
    seen: list[tuple[int, ...]] = []

    def score(images: np.ndarray) -> dict[str, float]:
        seen.append(images.shape)
        return {"mean": float(images.mean())}

    less = {"steps": 2, "cache_interval": 2}
    settings = Settings(["image"], ["engine fp32*"], 64, 64, 1, 1, "cpu", **less, threads=1)
    exam = Exam([{**asked, "seed": 5}, {**asked, "seed": 6}], score)
    results = measure([bundle], settings, tmp_path, lambda _turn, _share: None, exam)
    with Pipeline.load(bundle, threads=1) as pipe:
        images = [pipe(**asked, num_inference_steps=2, seed=seed, output_type="np").images for seed in (5, 6)]
    wanted = float(np.concatenate(images).mean())
    first = results.measurements[0]
    assert (first.target, seen[0]) == ("engine fp32", (2, 64, 64, 3))
    assert first.quality["mean"] == pytest.approx(wanted, abs=1e-3)
    assert results.measurements[1].quality.keys() == {"mean", "PSNR"}


def test_a_long_image_is_warmed_up_with_a_short_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that is kept is the measured one."""
    taken: list[int] = []
    runner = EngineRunner(bundle, 1, device="cpu")

    def turn(_task: str, work: Work, runs: int) -> list[dict[str, float]]:
        taken.extend([work.steps] * runs)
        runner.images = np.full((1, 1, 1, 3), work.steps, np.uint8)
        return [{"image": 4.0 * work.steps}] * runs

    monkeypatch.setattr(runner, "turn", turn)
    work, keep = Work(height=64, width=64, steps=20), tmp_path / "kept.npy"
    assert len(_take(runner, Turn("image", work, 3, keep=str(keep)))) == 1
    assert taken == [8, 20]
    assert np.load(keep).max() == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--measure=step", "--cache-interval=3"], ["--cache-interval", "no effect", "step", "image"]),
        (["--measure=decode", "--steps=3"], ["--steps", "no effect"]),
        (["--measure=step", "--guidance-end=0"], ["--guidance-end", "no effect"]),
        (["--measure=image", "--size=64"], ["--size", "no effect", "size"]),
        (["--measure=image", "--batch=2"], ["--batch", "no effect"]),
        (["--measure=first", "--sdcpp=python"], ["--sdcpp", "no effect"]),
        (["--measure=image", "--cache-interval=1"], ["--cache-interval", "greater than or equal to 2"]),
        (["--measure=image", "--guidance-end=1"], ["--guidance-end is 1", "below 1"]),
        (["--measure=image", "--guidance-end=0.5", "--guidance=1"], ["--guidance-end", "--guidance 1"]),
        (["--measure=image", "--guidance=nan"], ["--guidance is nan", "a finite number"]),
        (["--measure=image", "--threads=1000000"], ["--threads is 1000000", "an integer from 1 to"]),
        (["--measure=image", "--sdcpp=/nowhere"], ["--sdcpp is '/nowhere'", "no program"]),
        (["--measure=image", "--tiny-decoder"], ["--tiny-decoder", "no bundle has a tiny VAE"]),
        (
            ["--measure=image", "--few-steps=60"],
            ["--few-steps is 60", "supports 1 to 50 steps", "reduce --few-steps"],
        ),
        (["--measure=image", "--sampler=flow_euler"], ["--sampler", "no sampler 'flow_euler'", "unipc"]),
    ],
)
def test_what_has_no_effect_is_refused(
    cli: Cli, bundle: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(cli("bench", bundle, *arguments), *words)


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_run_leaves_no_directory(cli: Cli, bundle: Path, tmp_path: Path, there: bool) -> None:
    """But for one that was there before."""
    output = tmp_path / "new" / "results"
    if there:
        output.mkdir(parents=True)
    assert_refused(cli("bench", bundle, "--threads=1000000", "--output", output), "--threads")
    assert output.exists() == output.parent.exists() == there


def test_where_nothing_could_be_measured_the_reasons_are_written(
    cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    where = tmp_path / "out"
    program = f"--sdcpp={sys.executable}"
    done = cli("bench", bundle, "--measure=image", "--only=stable*", program, "--output", where)
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("controlnext: error: nothing was measured: ")
    assert json.loads((where / "bench.json").read_text())["missing"]
    assert not (where / "bench.png").exists()
