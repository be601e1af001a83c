"""The Dockerfiles: linted; the one for processors is built step by step, and what it starts is asked."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.dockerfiles import context_files, read_dockerfile
from support.fake_bundle import write_fake_bundle
from support.image_steps import ImageSteps
from support.programs import program
from support.recipe import drawing
from support.serving import file_of
from support.wheels import PROJECT, ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
CPU = ROOT / "docker" / "cpu.Dockerfile"
SERVERS = ("cpu", "cuda")
CONTROL = b64encode(file_of(drawing(0, 64, 64))).decode()
PATIENCE = 120


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path: Path) -> None:
    """Also of what it calls a matter of style."""
    command = [program("hadolint"), "--no-color", "--failure-threshold", "style", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_runs_as_a_user_and_keeps_no_cache(path: Path) -> None:
    """The last stage's user is a number, which Kubernetes can tell from root."""
    steps = read_dockerfile(path)
    last = max(number for number, step in enumerate(steps) if step.name == "FROM")
    users = [step.text for step in steps[last:] if step.name == "USER"]
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
    runs = " ".join(step.text for step in steps if step.name == "RUN")
    assert runs.count("/pip install") == runs.count("--no-cache-dir --constraint constraints.txt") == 1
    assert runs.count("apt-get install") == runs.count("rm -rf /var/lib/apt/lists/*")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_its_extras_are_ours(path: Path) -> None:
    """One ONNX Runtime alone; PyTorch on the build machine only."""
    (given,) = [step.text for step in read_dockerfile(path) if step.text.startswith("EXTRAS=")]
    extras = set(given.removeprefix("EXTRAS=").split(","))
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    assert len(extras & {"cpu", "gpu"}) == 1
    assert ("export" in extras) == (path.stem == "build")
    assert ("serve" in extras) == (path.stem in SERVERS)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_a_server_tells_its_port_and_its_health(path: Path) -> None:
    text = {step.name: step.text for step in read_dockerfile(path)}
    if path.stem in SERVERS:
        assert text["EXPOSE"] == "8000"
        assert "/health/live" in text["HEALTHCHECK"]
    else:
        assert text["HEALTHCHECK"] == "NONE"
        assert "EXPOSE" not in text


def test_a_build_sees_the_package_and_nothing_else() -> None:
    """All of its files, and no tests, models or what was built."""
    seen = {name.parts[0] for name in context_files(ROOT)}
    copies = [step.words[:-1] for step in read_dockerfile(CPU) if step.name == "COPY"]
    assert seen == {name for names in copies for name in names if not name.startswith(("-", "/"))}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageSteps]:
    """Build the image for processors step by step, with a fake bundle where its command looks for one."""
    folder = tmp_path_factory.mktemp("image")
    steps = ImageSteps(folder / "root", ROOT)
    for step in read_dockerfile(CPU):
        steps.carry_out(step)
    write_fake_bundle(steps.place("/bundle"), "sd15")
    yield steps
    shutil.rmtree(folder)


@pytest.mark.export
def test_the_image_for_processors_serves(image: ImageSteps) -> None:
    """Built without a container engine: its command becomes healthy, answers, writes nothing, ends when told.

    On a free port of loopback in place of port 8000 of every address."""
    before = _files(image.root)
    port = _free_port()
    words = [*image.started["ENTRYPOINT"], *image.started["CMD"], "--port", str(port)]
    places = {"0.0.0.0": "127.0.0.1", "/bundle": str(image.place("/bundle"))}
    words = [places.get(word, word) for word in words]
    words[0] = str(shutil.which(words[0], path=image.environment()["PATH"]))
    assert Path(words[0]).is_relative_to(image.root)
    options = {"cwd": image.place("."), "env": image.environment(), "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **options) as server:
        try:
            _wait_until_healthy(image, port, server)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                assert client.get("/").text.startswith("<!doctype html>")
                assert client.get("/v1/models").json()["data"][0]["id"] == "bundle"
                asked = {"prompt": "a red circle", "num_inference_steps": 2, "control_image": CONTROL}
                answer = client.post("/v1/images/generations", json=asked, timeout=PATIENCE)
                assert answer.status_code == 200, answer.text
            server.send_signal(getattr(signal, image.started["STOPSIGNAL"][0]))
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
    assert _files(image.root) - before <= _files(image.place("/bundle"))


def _wait_until_healthy(image: ImageSteps, port: int, server: subprocess.Popen[bytes]) -> None:
    """Repeat the image's check of its health until it succeeds, which at first it does not."""
    check = [word.replace("8000", str(port)) for word in image.started["HEALTHCHECK"]]
    end = time.monotonic() + PATIENCE
    while subprocess.run(check, env=image.environment(), capture_output=True).returncode:
        assert server.poll() is None, server.stderr.read().decode() if server.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.2)


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _engine() -> str:
    """Return why no image can be built here, or nothing."""
    docker = shutil.which("docker")
    if docker is None:
        return "no docker here"
    done = subprocess.run([docker, "info"], capture_output=True, timeout=30)
    return "docker's engine does not run here" if done.returncode else ""


@pytest.mark.export
def test_a_container_engine_builds_the_image_for_processors() -> None:
    """Where there is one."""
    if reason := _engine():
        pytest.skip(reason)
    tag = "controlnext:tested"
    subprocess.run(["docker", "build", "--file", CPU, "--tag", tag, ROOT], check=True)
    told = subprocess.check_output(["docker", "run", "--rm", tag, "env", "--json"], text=True)
    assert re.search(r'"problems": ?\[\]', told)
