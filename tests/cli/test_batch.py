"""``controlnext batch``: exit status, summary, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controlnext.bundle.files import MANIFEST
from controlnext.runtime.bulk.ledger import LEDGER
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.gate import until
from support.recipe import drawing


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    drawing(1, 24, 16).save(tmp_path / "control.png")
    call = {"prompt": "a", "control_image": "control.png", "num_inference_steps": 2, "sampler": "ddim"}
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(json.dumps({**call, "seed": seed}) for seed in range(5)) + "\n{\n")
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("batch") / "fake")


def ledger(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output / LEDGER).read_text().splitlines()]


def test_a_run_and_the_next_one(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    """A bad job is told and gives status 1; what was done is not done again, and that one is tried again."""
    output = tmp_path / "out"
    first = cli("batch", bundle, "--jobs", jobs, "--output", output, "--threads", 1)
    assert first.status == 1
    assert f"{output}/{LEDGER}: 6 jobs, 5 done, 1 failed, 0 done before" in first.out
    assert "line 6 is not JSON" in str(ledger(output)[5]["error"])
    jobs.write_text(jobs.read_text().replace("{\n", '{"prompt": "b", "control_image": "control.png"}\n'))
    second = cli("batch", bundle, "--jobs", jobs, "--output", output, "--json")
    assert second.status == 0, second.err
    summary = json.loads(second.out)
    assert (summary["done"], summary["done_before"], summary["failed"]) == (1, 5, 0)
    assert [record["id"] for record in ledger(output)] == ["1", "2", "3", "4", "5", "6"]


def test_another_bundle_does_all_again(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    """And so does a control image with another content; what is no bundle leaves the results alone."""
    jobs.write_text("\n".join(jobs.read_text().splitlines()[:2]))
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = other / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    given = ["--jobs", jobs, "--output", tmp_path / "out", "--threads", 1, "--json"]
    for location, done_before in ((bundle, 0), (bundle, 2), (other, 0), (other, 2)):
        done = cli("batch", location, *given)
        assert json.loads(done.out)["done_before"] == done_before
    kept = (tmp_path / "out" / LEDGER).read_bytes()
    assert_refused(cli("batch", tmp_path / "nothing", *given), "nothing")
    assert (tmp_path / "out" / LEDGER).read_bytes() == kept
    drawing(2, 24, 16).save(tmp_path / "control.png")
    assert json.loads(cli("batch", other, *given).out)["done_before"] == 0


def test_it_stops_at_the_first_failure_if_told_so(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    bad = json.dumps({"prompt": "a", "control_image": "none.png"})
    jobs.write_text("\n".join([bad, *jobs.read_text().splitlines()[:5]]))
    options = ["--jobs", jobs, "--output", tmp_path / "out", "--fail-fast", "--json"]
    done = cli("batch", bundle, *options)
    assert done.status == 1
    summary = json.loads(done.out)
    assert (summary["failed"], summary["not_begun"]) == (1, 5 - summary["done"])
    assert summary["not_begun"] > 0


def test_bad_usage(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    given = ["--jobs", jobs, "--output", tmp_path / "out"]
    assert_refused(cli("batch", bundle, "--jobs", tmp_path / "none", *given[2:]), "cannot read", "none")
    assert_refused(cli("batch", bundle, *given, "--replicas", 2), "--replicas is for a Ray cluster", "--ray")
    assert_refused(cli("batch", bundle, *given, "--max-rows", 0), "--max-rows is 0")
    assert_refused(cli("batch", tmp_path / "nothing", *given), "nothing")
    assert_refused(cli("batch", bundle, "--jobs", jobs, "--output", jobs), "give a directory")


def test_results_stay_if_they_cannot_be_made_anew(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    """With a bundle that is damaged, or without the control image; as before they are done."""
    jobs.write_text("\n".join(jobs.read_text().splitlines()[:2]))
    output, image = tmp_path / "out", tmp_path / "control.png"
    given = ["--jobs", jobs, "--output", output, "--threads", 1, "--json"]
    assert cli("batch", bundle, *given).status == 0
    made, lines = {path: path.read_bytes() for path in output.glob("*.png")}, ledger(output)
    other = shutil.copytree(bundle, tmp_path / "other")
    # what was made of the graphs before has its own checksums
    shutil.rmtree(other / "engines", ignore_errors=True)
    (other / MANIFEST).write_text((other / MANIFEST).read_text() + " ")
    graph = other / "vae_decoder" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    assert_refused(cli("batch", other, *given), "vae_decoder/model.onnx is damaged")
    assert ledger(output) == lines
    image.rename(tmp_path / "away.png")
    failed = cli("batch", bundle, *given)
    assert (failed.status, json.loads(failed.out)["failed"]) == (1, 2)
    assert [{**line, "error": ""} for line in ledger(output)] == [{**line, "error": ""} for line in lines]
    assert all("cannot read image" in str(line["error"]) for line in ledger(output))
    (tmp_path / "away.png").rename(image)
    assert json.loads(cli("batch", bundle, *given).out)["done_before"] == 2
    assert ledger(output) == lines
    assert {path: path.read_bytes() for path in output.glob("*.png")} == made


def test_errors_of_jobs_name_keys_of_jobs(
    cli: Cli, bundle: Path, jobs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.write_text('{"control_image": "control.png"}\n')
    assert cli("batch", bundle, "--jobs", jobs, "--output", tmp_path / "out").status == 1
    assert "job 1 failed: no prompt was given; set `prompt`" in caplog.messages


def test_paths_are_on_this_machine(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    """And not empty; also those of other commands."""
    told = "it must be a path on this machine"
    for given, word in (("s3://b/x", "s3://b/x"), ("", "empty")):
        wrong = f"--output is {word}; {told}"
        assert_refused(cli("batch", bundle, "--jobs", jobs, "--output", given), wrong)
        assert_refused(cli("triton", bundle, "--output", given), wrong)
        assert_refused(cli("run", bundle, "--output", given), wrong)
        jobs_given = cli("batch", bundle, "--jobs", given, "--output", tmp_path)
        assert_refused(jobs_given, f"--jobs is {word}; {told}")


def test_nothing_of_the_user_is_replaced(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    jobs.write_text(json.dumps({**json.loads(jobs.read_text().splitlines()[0]), "id": "control"}))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    refused = cli("batch", bundle, "--jobs", jobs, "--output", tmp_path)
    assert_refused(refused, "the result of job control would replace", "which job control reads")
    assert {path: path.read_bytes() for path in before} == before


def test_ctrl_c_keeps_what_is_done(bundle: Path, jobs: Path, tmp_path: Path) -> None:
    """It ends at once, says how to go on, and the same command does the rest."""
    call = {**json.loads(jobs.read_text().splitlines()[0]), "num_inference_steps": 100}
    jobs.write_text("\n".join(json.dumps({**call, "seed": seed}) for seed in range(12)))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "controlnext", "batch", str(bundle), f"--jobs={jobs}"]
    command += [f"--output={output}", "--max-rows=1", "--threads=1", "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        # a job is in the ledger before its file has its name
        until(lambda: any(output.glob("*.png")))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.startswith(f"controlnext: warning: stopped; what is done stays in {output}")
    assert said.count("\n") == 1
    summary = json.loads(subprocess.check_output(command, text=True))
    assert 1 <= summary["done_before"] < 12
    assert summary["done"] == 12 - summary["done_before"]
    assert [record["id"] for record in ledger(output)] == [str(number) for number in range(1, 13)]


@pytest.mark.export
def test_what_a_cluster_cannot_do_is_one_line(cli: Cli, bundle: Path, jobs: Path, tmp_path: Path) -> None:
    given = ["--jobs", jobs, "--output", tmp_path / "out", "--ray", "--max-rows"]
    assert_refused(cli("batch", bundle, *given, 0), "--max-rows is 0")
    done = cli("batch", bundle, *given, 2, "--threads", 9999)
    assert (done.status, done.out) == (2, "")
    # Ray has lines of its own before it
    assert done.err.splitlines()[-1].startswith("controlnext: error: --threads is 9999")
    assert "Traceback" not in done.err
