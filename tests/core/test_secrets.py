"""Secrets in text: every form is hidden, what is none stays."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from controlnext.errors import EngineError, InputError, WorkError
from controlnext.runtime.serving.log_format import JsonFormatter, TimedFormatter
from controlnext.secrets import has_password, without_secrets

CANARY = "cAnArY0123456789"
TEXTS = {
    "a password": (f"https://user:{CANARY}@host/a/b", "https://***@host/a/b"),
    "a path that was a URL": (f"cannot read https:/user:{CANARY}@host/k", "cannot read https:/***@host/k"),
    "a token alone": (f"https://{CANARY}@host/a", "https://***@host/a"),
    "a user's name, of a key": (f"s3://{CANARY}:x@bucket/toy", "s3://***@bucket/toy"),
    "one with slashes": (f"s3://KEY:{CANARY}/a+b/c@bucket/toy", "s3://***@bucket/toy"),
    "one with an at sign": (f"sftp://me:p@{CANARY}@host/toy", "sftp://***@host/toy"),
    "one without a scheme": (f"//user:{CANARY}@host/toy is no path", "//***@host/toy"),
    "one of a name": (f"'user:{CANARY}@owner/name' is no path", "'***@owner/name'"),
    "one of digits": ("ftp://me:1234567@host/toy", "ftp://***@host/toy"),
    "a signed URL": (f"https://b/k?X-Amz-Signature={CANARY}&X-Amz-Date=1", "https://b/k?***"),
    "one before a colon": (f"https://b/k?sig={CANARY}: offline", "https://b/k?***: offline"),
    "one in quotes": (f"url=URL('https://b/k?sig={CANARY}') failed", "url=URL('https://b/k?***') failed"),
    "a query alone": (f"with url: /k?X-Amz-Credential={CANARY} (x", "with url: /k?X-Amz-Credential=*** (x"),
    "a header": (f"Authorization: Bearer {CANARY}", "Authorization: Bearer ***"),
    "a token of the hub": (f"the token hf_{CANARY} is wrong", "the token *** is wrong"),
    "a key of a service": (f"sk-{CANARY}", "***"),
    "an argument": (f"storage_options: token={CANARY}, secret={CANARY}", "token=***, secret=***"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_secret_is_hidden(kind: str) -> None:
    text, hidden = TEXTS[kind]
    assert hidden in without_secrets(text)
    assert CANARY not in without_secrets(text)
    assert without_secrets(without_secrets(text)) == without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf://owner/name@revision/bundle",
        "https://host:8443/owner/name@revision",
        "http://127.0.0.1:8000/v1/images",
        "ray://head:10001 and s3://bucket/toy",
        "send one of its keys as Authorization: Bearer KEY",
        "give KEY=VALUE, such as prediction_type=v_prediction",
        "control_scale=0.5 steps=20; prompt is a red circle @ noon",
        "KEY=VALUE:1 is for me@host, at 12:30 @ noon",
        "tokens=3, its tokenizer has 49408 tokens",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text
    assert not has_password(text)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MY_API_KEY"]
)
def test_values_of_the_environment_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "somewhere")
    assert without_secrets(f"got {CANARY} somewhere") == "got *** somewhere"


def test_errors_have_no_secret() -> None:
    url = f"https://user:{CANARY}@host/toy"
    for error in (InputError(f"{url} is no path"), WorkError(url), EngineError(url, bundle=None, build={})):  # type: ignore[arg-type]
        assert CANARY not in f"{error} {error!r} {vars(error)}"


@pytest.mark.parametrize("form", [TimedFormatter, JsonFormatter])
def test_the_log_has_none_even_in_tracebacks_of_other_libraries(form: type[logging.Formatter]) -> None:
    try:
        raise ConnectionError(f"https://b/k?sig={CANARY}\\")
    except ConnectionError:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "%s", (f"s3://k:{CANARY}@b",), sys.exc_info())
    line = form(logging.Formatter("%(message)s")).format(record)
    assert CANARY not in line
    assert "ConnectionError" in line
    if form is JsonFormatter:
        assert "Traceback" in json.loads(line)["message"]


def test_the_traceback_of_a_bug_has_none() -> None:
    """Neither its message nor what it was raised from."""
    code = f"""
from controlnext.secrets import hide_secrets_of_tracebacks
hide_secrets_of_tracebacks()
try:
    raise OSError("https://user:{CANARY[:8]}" + "{CANARY[8:]}@host")
except OSError as error:
    raise KeyError("hf_" + 2 * "{CANARY[:8]}") from error
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "https://***@host" in done.stderr
    assert "KeyError: '***'" in done.stderr
