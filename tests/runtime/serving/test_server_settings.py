"""The settings of the server refuse what makes no sense, and keep keys to themselves."""

from __future__ import annotations

from typing import Any

import pytest

from controlnext.errors import InputError
from controlnext.runtime.serving.settings import ServerSettings


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("max_rows", 0, "positive integer"),
        ("max_waiting", 1.5, "positive integer"),
        ("max_body", True, "positive integer"),
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


def test_keys_are_not_shown() -> None:
    settings = ServerSettings(api_keys=("secret",), memory=1.5)
    assert "secret" not in repr(settings)
    assert settings.memory_bytes == 1.5 * 1024**3
    assert ServerSettings().memory_bytes == float("inf")
    with pytest.raises(InputError) as caught:
        ServerSettings(api_keys=("a secret",))
    assert "secret" not in str(caught.value)
