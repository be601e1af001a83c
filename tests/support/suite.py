"""What holds for the whole suite: the marker of tests that export, and the report on the machine."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

EXPORTED = {"tiny", "shapes_bundle", "shapes_bundle_fp16", "shapes_bundle_int8"}
"""The fixtures that export: who asks for one of them, or for a fixture that does, has the marker by that."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``export`` marks every test that needs an exported model; ``make check`` leaves them out.

    They come first, and of them those of int8, whose models take longest to make: one process makes models
    while the other has tests that need none, and hardly ever waits for a model that is being made.
    """
    for item in items:
        if EXPORTED & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.export)
    items.sort(key=lambda item: (item.get_closest_marker("export") is None, "int8" not in item.nodeid))


def pytest_collection_finish() -> None:
    """What was imported stays: walking through it again and again to find garbage is a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test without the marker fails where it, or a fixture of it, traces a graph."""
    if item.get_closest_marker("export"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        # not ``trace`` itself, which a session's fixture replaces for good while this patch may be in force
        patch.setattr("controlnext.export.exporter._meta_module", _refuse)
        return (yield)


def _refuse(*_arguments: object) -> None:
    pytest.fail("This test exports a model: mark it with @pytest.mark.export.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which processor the run was on: which kernels were tested depends on it."""
    from controlnext.bench.hardware import find_hardware

    terminalreporter.section("machine")
    terminalreporter.write_line(find_hardware().title)
