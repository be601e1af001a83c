"""Messages hold text of unknown origin: none of it controls a terminal, and none is endless."""

from __future__ import annotations

import pytest

from controlnext.errors import LONGEST, InputError, is_failure


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\0b\tc\x7f", "a\\x00b\\tc\\x7f"),
        ("abc\u202ecba", "abc\\u202ecba"),
        ("half \ud800", "half \\ud800"),
        ("two\nlines, naïve 日本語 👩‍🚀", "two\nlines, naïve 日本語 👩‍🚀"),
    ],
)
def test_control_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert str(InputError(text)) == shown


def test_the_middle_of_a_long_message_is_left_out() -> None:
    message = str(InputError("begin" + "x" * 10**6 + "end"))
    assert len(message) < LONGEST + 10
    assert message.startswith("beginxx")
    assert message.endswith("xxend")


def test_a_panic_is_a_failure_and_an_interrupt_is_none() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    assert is_failure(panic())
    assert is_failure(ValueError())
    assert not is_failure(KeyboardInterrupt())
