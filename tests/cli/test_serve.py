"""``controlnext serve``: bad input is one line; a real process lets requests finish when it has to stop."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlnext.cli.serve import serve
from controlnext.runtime.serving.log_format import JsonFormatter, TimedFormatter
from support.cli import Cli, Done, assert_refused
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing

LONG = {"num_inference_steps": 250, "size": "512x512"}
"""A request that still runs when the server is told to stop: more than half a second."""


PROMPT = "a secret house on a secret hill by a secret lake"
"""Longer than the text encoder takes: the runtime's warning of that has a part of it."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("serve") / "fake", "sd15")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "0"], ["--memory is 0.0", "positive number of GiB"]),
        (["--memory", "nan"], ["--memory is nan"]),
        (["--max-rows", "0"], ["--max-rows is 0", "at least 1"]),
        (["--queue", "-1"], ["--queue is -1", "at least 0"]),
        (["--port", "70000"], ["--port is 70000", "65535"]),
        (["--host", "no.such.host.invalid"], ["--host is 'no.such.host.invalid'", "127.0.0.1"]),
        (["--api-keys", "{tmp}/none"], ["cannot read", "none", "--api-keys"]),
        (["--api-keys", "{tmp}/empty"], ["empty has no key", "--api-keys"]),
        (["--backend", "magic"], ["unknown backend 'magic'", "onnxruntime"]),
        (["{tmp}"], ["is not a bundle"]),
        (["{bundle}"], ["is given twice; give it once"]),
        (["{tmp}/other/fake"], ["have the same name 'fake'", "rename one"]),
    ],
)
def test_what_is_refused(
    cli: Cli, tmp_path: Path, bundle: Path, options: list[str], words: list[str]
) -> None:
    (tmp_path / "empty").touch()
    shutil.copytree(bundle, tmp_path / "other" / "fake")
    given = [option.format(tmp=tmp_path, bundle=bundle) for option in options]
    assert_refused(cli("serve", bundle, "--port", 0, *given), *words)


def test_a_port_in_use_is_refused(cli: Cli, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = cli("serve", bundle, "--port", port)
    assert_refused(done, f"--port is {port}, which another program uses", "0 for a free one")


def test_without_the_web_framework_the_extra_is_named(bundle: Path) -> None:
    block = "sys.modules.update(dict.fromkeys(('fastapi', 'uvicorn', 'prometheus_client')))"
    arguments = ["serve", str(bundle)]
    code = f"import sys; {block}; sys.argv[1:] = {arguments}; from controlnext.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert_refused(Done(done.returncode, done.stdout, done.stderr), 'pip install "controlnext[serve]"')


def test_the_document_has_every_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    options = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters} - {"--bundles"}
    assert len(options) > 15
    assert not {option for option in options if f"`{option}" not in text}


def _until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; fail if it never does."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it took too long")


def _generate(client: httpx.Client, **fields: Any) -> httpx.Response:
    file = BytesIO()
    drawing(1, 64, 48).save(file, "PNG")
    image = b64encode(file.getvalue()).decode()
    call = {"prompt": PROMPT, "control_image": image, "sampler": "euler", **fields}
    return client.post("/v1/images/generations", json=call)


def _requests(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [line for line in lines if line["message"] == "request"]


def test_a_process_ends_well(bundle: Path) -> None:
    """Told to stop, it finishes the running request, refuses a new one, logs both, and exits with 0."""
    command = [sys.executable, "-m", "controlnext", "serve", str(bundle), "--port", "0", "--log-json"]
    command += ["--host", "0.0.0.0", "--max-steps", "250", "--threads", "1"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(1) as beside,
    ):
        assert process.stdout
        assert process.stderr
        try:
            title = process.stdout.readline()
            url = title.split()[3].replace("0.0.0.0", "127.0.0.1")
            assert title == f"serving fake on {title.split()[3]} (Ctrl-C stops)\n"
            client = httpx.Client(base_url=url, timeout=60)
            assert client.get("/health/ready").status_code == 200
            running = beside.submit(_generate, client, **LONG)
            at_work = 'requests_running{model="fake"} 1.0'
            _until(lambda: running.done() or at_work in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            _until(lambda: client.get("/health/ready").status_code == 503)
            refused = _generate(client, num_inference_steps=1)
            assert running.result().status_code == 200, running.result().text
            log = process.stderr.read()
            assert process.wait(timeout=30) == 0, log
        finally:
            process.kill()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "secret" not in log
    assert "--api-keys" in log.splitlines()[0]
    outcomes = [(line["status"], line["outcome"]) for line in _requests(log) if line["method"] == "POST"]
    assert outcomes == [(503, "refused"), (200, "ok")]
    assert _requests(log)[-1]["steps"] == 250


def test_lines_of_the_log() -> None:
    """Each is one line, with the time; those of requests have their fields in JSON."""
    inner = logging.Formatter("controlnext: %(message)s")
    record = logging.makeLogRecord(
        {"msg": "two\nlines", "levelname": "WARNING", "created": 0.5, "request": None}
    )
    assert TimedFormatter(inner).format(record) == "1970-01-01T00:00:00.500Z controlnext: two\nlines"
    assert json.loads(JsonFormatter(inner).format(record)) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "message": "two\nlines",
    }
    record.request = {"status": 200}
    assert json.loads(JsonFormatter(inner).format(record)) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "message": "request",
        "status": 200,
    }
