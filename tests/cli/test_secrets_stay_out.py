"""Canaries in every place where a secret is given: none comes out, whether a command fails or succeeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from controlnext.runtime.bulk.ledger import LEDGER
from support.cli import Cli, Done
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing

CANARY = "cAnArY0123456789"
WITH_PASSWORD = f"https://user:{CANARY}@127.0.0.1:1/toy"
WITH_TOKEN = f"https://hf_{CANARY}@127.0.0.1:1/owner/name"
SIGNED = f"https://127.0.0.1:1/toy?X-Amz-Signature={CANARY}"
IN_MEMORY = f"memory://user:{CANARY}@models/toy"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("secrets") / "toy", "sd15")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("CONTROLNEXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{CANARY} two words\n")
    return file


def check_silent(done: Done, *written: Path) -> None:
    """Check that neither the output nor a file or its name has the canary."""
    assert CANARY not in done.out + done.err
    for path in (path for place in written for path in [place, *place.rglob("*")] if path.exists()):
        assert CANARY not in str(path)
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


FAILING = {
    "inspect": ["inspect", WITH_PASSWORD, "--json"],
    "a signed URL": ["inspect", SIGNED],
    "a scheme that is unknown": ["inspect", f"foo://user:{CANARY}@host/toy"],
    "a host alone": ["inspect", f"ftp://user:{CANARY}@"],
    "run": ["run", WITH_PASSWORD, "--prompt", "a", "--control-image", "c.png", "--output", "o.png"],
    "build": ["build", WITH_PASSWORD],
    "verify": ["verify", WITH_PASSWORD],
    "serve": ["serve", WITH_PASSWORD],
    "serve on a cluster": ["serve", WITH_PASSWORD, "--ray", "local", "--threads", "1"],
    "a configuration": [
        "serve",
        IN_MEMORY,
        "--ray",
        "--device=cpu",
        "--threads=1",
        "--write-config={tmp}/serve.yaml",
    ],
    "keys": ["serve", "{bundle}", "--api-keys", "{tmp}/keys"],
    "a preprocessor": [
        *("run", "{bundle}", "--prompt", "a", "--control-image", "{tmp}/c.png", "--output", "{tmp}/o.png"),
        *("--preprocess", "depth", "--preprocessor-model", WITH_TOKEN),
    ],
    **{
        option: ["export", "--model", "sd15", "--output", "{tmp}/made", f"--{option}", WITH_TOKEN]
        for option in ("base", "control")
    },
    "a path that is none": ["batch", "{bundle}", "--jobs", WITH_PASSWORD, "--output", "{tmp}/out"],
}


@pytest.mark.parametrize("command", FAILING)
def test_a_command_that_fails(command: str, cli: Cli, bundle: Path, keys: Path, tmp_path: Path) -> None:
    drawing(1, 24, 16).save(tmp_path / "c.png")
    done = cli(*(word.format(tmp=tmp_path, bundle=bundle) for word in FAILING[command]))
    assert done.status in (1, 2)
    assert done.err.count("\n") == 1
    keys.unlink()
    check_silent(done, tmp_path)


@pytest.fixture
def elsewhere(bundle: Path) -> Iterator[str]:
    """The location of the bundle in a file system whose address has a password."""
    system = fsspec.filesystem("memory")
    system.put(str(bundle), f"/user:{CANARY}@models/toy", recursive=True)
    yield IN_MEMORY
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_commands_that_succeed(cli: Cli, elsewhere: str, tmp_path: Path) -> None:
    drawing(1, 24, 16).save(tmp_path / "c.png")
    few = ["--prompt", "a", "--control-image", tmp_path / "c.png", "--steps", 2, "--sampler", "ddim"]
    ran = cli("run", elsewhere, *few, "--output", tmp_path / "made.png", "--json")
    assert ran.status == 0, ran.err
    check_silent(ran, tmp_path)
    told = cli("inspect", elsewhere, "--json")
    assert told.status == 0, told.err
    check_silent(told, tmp_path)


def test_jobs_that_fail(cli: Cli, elsewhere: str, tmp_path: Path) -> None:
    """What a job's file names is in no error in the ledger: it may be passed on."""
    jobs = tmp_path / "jobs.jsonl"
    call = {"prompt": "a", "control_image": WITH_PASSWORD, "num_inference_steps": 2}
    jobs.write_text("\n".join(json.dumps(one) for one in (call, {**call, "lora": {SIGNED: 1.0}})))
    done = cli("batch", elsewhere, "--jobs", jobs, "--output", tmp_path / "out", "--threads", 1)
    assert done.status == 1
    assert '"error"' in (tmp_path / "out" / LEDGER).read_text()
    jobs.unlink()
    check_silent(done, tmp_path)


def test_a_password_is_not_given_to_a_cluster(cli: Cli, elsewhere: str, tmp_path: Path) -> None:
    """Ray would write it to its logs and show it on its dashboard."""
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a", "control_image": "c.png"}')
    jobs = ["--jobs", tmp_path / "jobs.jsonl", "--output", tmp_path / "out"]
    for command in (["batch", elsewhere, *jobs], ["serve", elsewhere]):
        done = cli(*command, "--ray", "local", "--threads", 1)
        assert done.status == 2
        assert "has a user name or password in it, which Ray would store and show" in done.err
        check_silent(done, tmp_path)
