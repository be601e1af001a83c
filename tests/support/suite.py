"""Rules of the whole suite: the marker of tests that export, and the report on the machine."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from support.without_torch import TORCH_HERE, skip_what_needs_torch

skip_what_needs_torch()

EXPORTED = {"tiny", "shapes_bundle", "shapes_bundle_fp16", "shapes_bundle_int8"}
"""Fixtures that export: tests that use one of them, directly or not, get the marker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs an exported model with ``export``; ``make check`` skips them.

    They come first, and of them those of int8, whose models take longest to make: one process makes models
    while the other has tests that need none, and hardly ever waits for a model that is being made.
    """
    for item in items:
        if EXPORTED & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.export)
    items.sort(key=lambda item: (item.get_closest_marker("export") is None, "int8" not in item.nodeid))


def pytest_collection_finish() -> None:
    """Freeze imported objects: garbage collection over them takes a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fail tests without the marker that trace a graph, in themselves or in a fixture."""
    if item.get_closest_marker("export") or not TORCH_HERE:
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        # not ``trace`` itself, which a session's fixture replaces for good while this patch may be in force
        patch.setattr("controlnext.export.exporter._meta_module", _refuse)
        return (yield)


def _refuse(*_arguments: object) -> None:
    pytest.fail("This test exports a model: mark it with @pytest.mark.export.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the processor of the run, on which the tested kernels depend."""
    from controlnext.bench.hardware import find_hardware

    terminalreporter.section("machine")
    terminalreporter.write_line(find_hardware().title)
