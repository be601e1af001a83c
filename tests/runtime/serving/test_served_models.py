"""The served bundles: loaded once, when asked for; closed again where memory is short, never under a user."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controlnext.errors import (
    BundleError,
    EngineError,
    InputError,
    QueueFullError,
    StoppingError,
    UnknownModelError,
    WorkError,
)
from controlnext.runtime import ImagePipeline, Pipeline
from controlnext.runtime.serving import loading
from controlnext.runtime.serving.errors import refusal_of
from controlnext.runtime.serving.loading import Model
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle

ROOM_FOR_ONE = ServerSettings(memory=1e-6)
"""No two bundles fit; one that is larger by itself is loaded all the same."""

open_pipeline = partial(Pipeline.load, device="cpu", threads=1, cache=False)


class Loader:
    """Opens pipelines, counts them by name, and fails as long as ``error`` is set."""

    def __init__(self) -> None:
        self.opened: dict[str, list[Pipeline]] = {}
        self.error: Exception | None = None

    def __call__(self, path: Path) -> Pipeline:
        if self.error:
            raise self.error
        pipe = open_pipeline(path)
        self.opened.setdefault(path.name, []).append(pipe)
        return pipe


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("bundles")
    return [write_fake_bundle(directory / name, "sd15") for name in ("first", "second")]


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


Work = Callable[[Models], Coroutine[Any, Any, None]]
Serve = Callable[..., None]


@pytest.fixture
def serve(bundles: list[Path], loader: Loader, metrics: Metrics) -> Serve:
    """Return a function that runs ``work`` with models, and closes these."""

    def run(work: Work, settings: ServerSettings = ServerSettings()) -> None:  # noqa: B008
        async def worked() -> None:
            models = Models(bundles, settings, loader, metrics)
            loader.opened.clear()
            async with asyncio.timeout(30):
                try:
                    await work(models)
                finally:
                    await models.close()

        asyncio.run(worked())
        # nothing stays open
        assert not any(is_open(pipe) for pipes in loader.opened.values() for pipe in pipes)

    return run


def is_open(pipe: Pipeline) -> bool:
    """Return whether the engines of ``pipe`` can run."""
    try:
        return bool(pipe.backend)
    except InputError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until ``condition`` holds."""
    while not condition():
        await asyncio.sleep(0.001)


async def used(models: Models, name: str) -> Model:
    async with models.use(name) as model:
        assert is_open(model.pipe)
        return model


def memory(metrics: Metrics, model: str) -> float:
    value = metrics.registry.get_sample_value("controlnext_engine_memory_bytes", {"model": model})
    assert value is not None
    return value


def test_requests_that_ask_at_once_load_a_model_once(serve: Serve, loader: Loader) -> None:
    async def work(models: Models) -> None:
        assert not models.ready
        found = await asyncio.gather(*(used(models, "second") for _ in range(3)))
        assert len(set(found)) == 1
        assert list(loader.opened) == ["second"]
        assert not models.ready
        await models.start()
        assert models.ready
        assert len(loader.opened["first"]) == len(loader.opened["second"]) == 1

    serve(work)


def test_what_is_known_before_a_model_is_loaded(serve: Serve, loader: Loader, bundles: list[Path]) -> None:
    async def work(models: Models) -> None:
        assert models.names() == ["first", "second"]
        second = models.describe("second")
        assert (second.task, second.path) == ("image", bundles[1])
        with pytest.raises(UnknownModelError, match=r"no model 'third'; accepted: first, second"):
            await used(models, "third")
        assert not loader.opened

    serve(work)


def test_the_least_recently_used_model_makes_room(serve: Serve, metrics: Metrics) -> None:
    async def work(models: Models) -> None:
        first = await used(models, "first")
        assert memory(metrics, "first") >= first.memory > 0
        await used(models, "second")
        assert not is_open(first.pipe)
        assert (memory(metrics, "first"), memory(metrics, "second") > 0) == (0, True)
        assert await used(models, "first") is not first

    serve(work, ROOM_FOR_ONE)


def test_a_model_in_use_stays_until_it_is_left(serve: Serve, metrics: Metrics) -> None:
    """Requests that come for it once another waits for its room wait behind that one, and are not lost."""

    async def work(models: Models) -> None:
        async with models.use("first") as first:
            second = asyncio.create_task(used(models, "second"))
            await until(lambda: models.users == 2)
            again = asyncio.create_task(used(models, "first"))
            await until(lambda: models.users == 3)
            waiting = ("controlnext_requests_waiting", {"model": "second"})
            assert metrics.registry.get_sample_value(*waiting) == 1
            assert is_open(first.pipe)
            assert not second.done()
        assert is_open((await again).pipe)
        assert not is_open((await second).pipe)
        assert not is_open(first.pipe)

    serve(work, ROOM_FOR_ONE)


def test_requests_for_two_models_that_do_not_fit_together_are_all_served(serve: Serve) -> None:
    async def work(models: Models) -> None:
        names = ["first", "second"] * 5
        found = await asyncio.gather(*(used(models, name) for name in names))
        assert [model.name for model in found] == names
        assert models.users == 0

    serve(work, ROOM_FOR_ONE)


def test_a_request_that_leaves_while_its_model_is_loaded_holds_nothing(serve: Serve) -> None:
    async def work(models: Models) -> None:
        waiting = [asyncio.create_task(used(models, "first")) for _ in range(2)]
        await until(lambda: models.users == 2)
        waiting[0].cancel()
        first = await waiting[1]
        assert models.users == 0
        await used(models, "second")
        assert not is_open(first.pipe)

    serve(work, ROOM_FOR_ONE)


def test_no_more_requests_wait_for_a_model_than_may_wait_and_run(serve: Serve) -> None:
    async def work(models: Models) -> None:
        asked = [used(models, "first") for _ in range(6)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(one, QueueFullError) for one in found] == [False] * 5 + [True]
        refusal = refusal_of(found[-1])
        assert (refusal.status, int(refusal.headers["Retry-After"]) > 0) == (429, True)

    serve(work, ServerSettings(max_waiting=3, max_rows=2))


def test_memory_that_was_taken_once_counts_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded again takes memory that others gave back, and grows the process by less."""
    taken = iter([1000, 1000, 10])
    monkeypatch.setattr(loading, "_warm_up", lambda *_: next(taken))

    async def work(models: Models) -> None:
        for name in ("first", "second", "first"):
            await used(models, name)
        assert [models._places[name].size for name in ("first", "second")] == [1000, 1000]
        assert models._places["second"].model is None

    serve(work, ServerSettings(memory=1500 / 1024**3))


def test_a_model_that_cannot_be_loaded_is_tried_again(
    serve: Serve, loader: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All who wait get an error, the log the reason; nothing of the model stays open."""

    async def work(models: Models) -> None:
        loader.error = BundleError("a file is damaged")
        failed = await asyncio.gather(*(used(models, "first") for _ in range(2)), return_exceptions=True)
        expected = "the model first cannot be loaded; the server's log has the reason"
        assert "first cannot be loaded: a file is damaged" in caplog.text
        assert [(type(error), str(error)) for error in failed] == [(WorkError, expected)] * 2
        loader.error = None
        with monkeypatch.context() as patch:
            patch.setattr(loading, "Batcher", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await used(models, "first")
        assert not is_open(loader.opened["first"][0])
        assert is_open((await used(models, "first")).pipe)

    serve(work)


@pytest.mark.parametrize(("method", "served"), [("__call__", True), ("backend", False)])
def test_an_engine_that_was_built_for_other_sizes_has_no_warm_up_step(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    served: bool,
) -> None:
    """It serves all the same; an engine that cannot be opened does not."""

    def refuse(pipe: Pipeline, **_: Any) -> None:
        raise EngineError("the engine takes 512 x 512", pipe.bundle.path, {"height": 64})

    async def work(models: Models) -> None:
        with nullcontext() if served else pytest.raises(WorkError, match="the model first cannot be loaded"):
            async with models.use("first"):
                pass

    with monkeypatch.context() as patch:
        patch.setattr(ImagePipeline, method, property(refuse) if method == "backend" else refuse)
        serve(work)
    assert ("no warm-up step of" in caplog.text) == served


def test_a_server_that_is_about_to_stop_admits_nothing_and_cancels_in_the_end(serve: Serve) -> None:
    async def work(models: Models) -> None:
        await models.start()
        async with models.use("first") as first:
            models.drain()
            assert not models.ready
            with pytest.raises(StoppingError, match="repeat the request later"):
                await used(models, "first")
            assert is_open(first.pipe)

    serve(work)


def test_bundles_that_cannot_be_served(tmp_path: Path, bundles: list[Path], metrics: Metrics) -> None:
    def refused(*paths: Path) -> str:
        with pytest.raises(InputError) as caught:
            Models(paths, ServerSettings(), open_pipeline, metrics)
        return str(caught.value)

    bare = write_fake_bundle(tmp_path / "first", "sd15", text_encoders=False)
    assert "has no text_encoder to read prompts" in refused(bare)
    assert "is not a bundle" in refused(bundles[0], tmp_path)
    twice = refused(bundles[0], bundles[1], bundles[0])
    assert twice == f"{bundles[0]} is given twice; give it once"
    other = Path(shutil.copytree(bundles[0], tmp_path / "elsewhere" / "first"))
    same = refused(bundles[0], other)
    assert same == f"{bundles[0]} and {other} have the same name 'first'; rename one of the directories"
