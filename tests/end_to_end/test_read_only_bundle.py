"""A bundle that cannot be written to, by root neither, is run and served; only a build has to say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from controlnext.bundle.format import ENGINES
from controlnext.runtime import Pipeline
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.links import from_many_directories
from support.serving import open_pipeline, serve
from support.small_disk import read_only


@pytest.mark.parametrize("linked", [False, True])
def test_it_is_run_without_what_a_run_keeps(cli: Cli, tmp_path: Path, linked: bool) -> None:
    """Also where its files are symbolic links, which need a place beside them or among temporary files."""
    toy = write_fake_bundle(tmp_path / "toy", "sd15", text_encoders=True)
    bundle = from_many_directories(toy, tmp_path / "links" / "bundle") if linked else toy
    Image.new("RGB", (64, 64), "white").save(tmp_path / "control.png")
    (tmp_path / "jobs.jsonl").write_text(
        '{"id": "a", "prompt": "a", "control_image": "control.png", "num_inference_steps": 2}\n'
    )
    run = ["--backend=onnxruntime", "--device=cpu", "--threads=1"]
    with read_only(bundle):
        image = ["--control-image", tmp_path / "control.png", "--prompt=a", "--steps=2"]
        done = cli("run", bundle, *image, "--output", tmp_path / "image.png", *run)
        assert (done.status, done.err) == (0, "")
        done = cli("batch", bundle, "--jobs", tmp_path / "jobs.jsonl", "--output", tmp_path / "out", *run)
        assert done.status == 0, done.err
        with serve([bundle], load=open_pipeline) as site:
            assert site.http.get("/health/ready").status_code == 200
        assert not (bundle / ENGINES).exists()
        assert_refused(cli("build", bundle, "--backend=tensorrt-rtx"), "Read-only file system", status=1)


def test_what_is_kept_there_and_damaged_is_gone_around(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "toy", "sd15")
    control = Image.new("RGB", (64, 64), "white")

    def image() -> bytes:
        with Pipeline.load(bundle, "onnxruntime", "cpu", threads=1) as pipe:
            return pipe("a", control_image=control, num_inference_steps=2, seed=1).images[0].tobytes()

    wanted = image()
    for path in (bundle / ENGINES).rglob("*.onnx"):
        path.write_bytes(b"damaged")
    with read_only(bundle):
        assert image() == wanted
    shutil.rmtree(bundle / ENGINES)
    assert image() == wanted
