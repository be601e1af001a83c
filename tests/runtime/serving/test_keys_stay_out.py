"""The keys of a real server, and the tokens in its environment, are in nothing that it writes or answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support.fake_bundle import write_fake_bundle
from support.serving import image_call

KEY, OTHER, TOKEN = "cAnArYkEy01234567", "cAnArYoThEr012345", "cAnArYtOkEn012345"


def _answers(http: httpx.Client) -> str:
    """Make requests that succeed and fail, with keys in right and wrong places; return all answers."""
    right, wrong = ({"Authorization": f"Bearer {key}"} for key in (KEY, f"{KEY}x"))
    answers = [
        http.post("/v1/images/generations", json=image_call(num_inference_steps=2), headers=right),
        http.post("/v1/images/generations", json=image_call(sampler="none"), headers=right),
        http.get("/v1/models", headers=wrong),
        http.get("/v1/models", headers={"Authorization": KEY}),
        http.get("/v1/models", params={"api_key": KEY}),
        http.get("/metrics", headers=right),
        *(http.get(path, headers=right) for path in ("/v1/models", "/openapi.json", "/", "/health/ready")),
    ]
    assert {answer.status_code for answer in answers} == {200, 400, 401}
    # a path that no route has is in the log, and in the answer to who sent it
    assert http.get(f"/{OTHER}/v2").status_code == 404
    return "\n".join(f"{answer.headers} {answer.text}" for answer in answers)


@pytest.mark.parametrize("form", ["", "--log-json"])
def test_a_key_is_nowhere(form: str, tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "toy", "sd15")
    (tmp_path / "keys").write_text(f"{KEY}\n{OTHER}\n")
    command = [sys.executable, "-m", "controlnext", "serve", str(bundle), "--port", "0", "--threads", "1"]
    command += ["--device", "cpu", "--api-keys", str(tmp_path / "keys"), *([form] if form else [])]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN},
    )
    try:
        assert process.stdout is not None
        title = process.stdout.readline()
        with httpx.Client(base_url=title.split(" on ")[1].split(" (")[0], timeout=60) as http:
            answers = _answers(http)
        line = Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert "/v1/images/generations" in err
    assert "***/v2" in err
    for secret in (KEY, OTHER, TOKEN):
        assert secret not in title + out + err + answers + line
