"""``controlnext env`` shows the environment for people and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import controlnext
from support.cli import Cli


def test_people_get_tables(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890abcdefghij")
    done = cli("env")
    assert (done.status, done.err) == (0, "")
    for words in (
        "Environment",
        controlnext.__version__,
        "CPUExecutionProvider",
        "onnxruntime-gpu",
        "HF_TOKEN",
    ):
        assert words in done.out
    assert "hf_1234567890" not in done.out


def test_json_has_the_same(cli: Cli) -> None:
    done = cli("env", "--json")
    found = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert found["controlnext"] == controlnext.__version__
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {one["name"] for one in found["backends"]} >= {"onnxruntime", "openvino"}
    assert found["cores"] >= 1
    assert found["problems"] == []


def test_it_works_without_any_extra() -> None:
    """Where ONNX Runtime is missing too."""
    block = "sys.modules.update(dict.fromkeys(('torch', 'onnxruntime', 'openvino', 'huggingface_hub')))"
    code = f"import sys; {block}; sys.argv[1:] = ['env']; from controlnext.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Backends" in done.stdout
