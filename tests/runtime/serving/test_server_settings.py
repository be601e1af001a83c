"""The settings of the server refuse what makes no sense, and keep keys to themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlnext.errors import InputError
from controlnext.runtime.serving.settings import ServerSettings, read_keys


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("max_rows", 0, "integer of at least 1"),
        ("max_waiting", -1, "integer of at least 0"),
        ("max_steps", 1.5, "integer of at least 1"),
        ("max_size", 3, "integer of at least 16"),
        ("max_body", True, "integer of at least 1"),
        ("memory", 0, "positive number of GiB"),
        ("memory", float("nan"), "positive number of GiB"),
        ("grace", -1, "at least 0"),
        ("api_keys", ("fine", "two words"), "key 2 of api_keys"),
        ("api_keys", ("",), "key 1 of api_keys"),
        ("api_keys", ("schlüssel",), "ASCII"),
    ],
)
def test_values_that_are_refused(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(InputError, match=accepted) as caught:
        ServerSettings(**{name: value})
    assert caught.value.argument == name


def test_keys_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team A\n first-key \n\nsecond-key\n")
    assert read_keys(path) == ("first-key", "second-key")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot read .*keys: No such file"), (b"\n# none\n", "has no key"), (b"\xff", "not a text file")],
)
def test_files_that_have_no_keys(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as caught:
        read_keys(path)
    assert caught.value.argument == "api_keys"


def test_keys_are_not_shown() -> None:
    settings = ServerSettings(api_keys=("secret",), memory=1.5)
    assert "secret" not in repr(settings)
    assert settings.memory_bytes == 1.5 * 1024**3
    assert ServerSettings().memory_bytes == float("inf")
    with pytest.raises(InputError) as caught:
        ServerSettings(api_keys=("a secret",))
    assert "secret" not in str(caught.value)
