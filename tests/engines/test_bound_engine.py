"""Engines with inputs that stay: the same results, and what is new in each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from controlnext.bundle.format import MODEL, PROLOGUE, STEP
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines import Backend, Engine, open_engine
from controlnext.engines.onnxruntime.sessions import DeviceEngine, OrtEngine
from controlnext.errors import InputError, WorkError
from controlnext.families import PER_STEP_INPUTS
from controlnext.runtime import Pipeline
from controlnext.runtime.bundle import Bundle
from controlnext.types import Feed, Precision
from support.fake_bundle import write_fake_bundle
from support.feeds import make_feed, split
from support.idle_clips import idle_pipeline, no_noise
from support.recipe import drawing, rand


class _Recorder(Engine):
    """Records which inputs were new in each run; its noise is the sample."""

    def __init__(self, manifest: Manifest, graph_name: str) -> None:
        super().__init__(manifest, graph_name)
        self.runs: list[set[str]] = []

    def _run(self, feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        self.runs.append(set(replaced))
        if np.isnan(feed["sample"]).any():
            raise WorkError("no numbers")
        assert feed.keys() == {spec.name for spec in self.inputs}
        return {"noise_pred": feed["sample"]}

    def _close(self) -> None:
        pass


class _RecordingBackend(Backend):
    """Has one denoiser."""

    def __init__(self, bundle: Path, graph_name: str = "unet") -> None:
        self.denoiser = _Recorder(read_manifest(bundle), graph_name)

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:  # noqa: ARG002
        assert graph_name == self.denoiser.graph_name
        return self.denoiser


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("bound") / "bundle", text_encoders=False)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("variant", ["sdxl", "svd"])
def test_a_bound_engine_gives_the_same_bits(variant: str, precision: str, tiny: Callable[..., Path]) -> None:
    """Over several steps, and with another constant."""
    folder = tiny(variant, precision)
    with open_engine(folder, read_manifest(folder), "unet", cache=False) as engine:
        constants, _ = split(make_feed(engine))
        bound = engine.bind(constants)
        for seed in (0, 50):
            _, changing = split(make_feed(engine, seed))
            wanted = engine.run({**constants, **changing})["noise_pred"]
            np.testing.assert_array_equal(bound.run(changing)["noise_pred"], wanted)
        scale = {"control_scale": np.full(2, 0.25, np.float32)}
        bound = engine.bind({**constants, **scale})
        scaled = engine.run({**constants, **changing, **scale})["noise_pred"]
        np.testing.assert_array_equal(bound.run(changing)["noise_pred"], scaled)
        assert not np.array_equal(scaled, wanted)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("parts", [(MODEL,), (PROLOGUE, STEP)], ids=["whole", "parts"])
def test_onnxruntime_with_inputs_that_stay_on_a_device(
    parts: tuple[str, ...], precision: str, tiny: Callable[..., Path]
) -> None:
    """The same bits, at sizes that change; the processor's memory takes the place of a GPU's."""
    manifest = read_manifest(folder := tiny("sdxl", precision))
    sessions = [onnxruntime.InferenceSession(folder / "unet" / part) for part in parts]
    placed = []

    def place(array: np.ndarray, kind: str, number: int) -> onnxruntime.OrtValue:
        placed.append(array.shape)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), kind, number)

    with (
        OrtEngine(sessions, manifest, "unet", "") as plain,
        DeviceEngine(sessions, manifest, "unet", "", place, ("cpu", 0)) as engine,
    ):
        for height in (8, 4):
            constants, _ = split(make_feed(engine, height=height))
            bound = engine.bind(constants)
            for seed in (0, 50, 60):
                _, changing = split(make_feed(engine, seed, height))
                given = bound.run(changing)["noise_pred"]
                np.testing.assert_array_equal(given, plain.run({**constants, **changing})["noise_pred"])
        assert len(placed) == 2 * (len(engine.step_inputs) + 2 * len(changing))
    with pytest.raises(InputError, match="unet is closed"):
        bound.run(changing)


@pytest.mark.parametrize("shared", [True, False])
def test_the_last_rows_alone_give_the_same(
    shared: bool, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they share the control image or have their own; the prologue runs once for both."""
    folder, counts = tiny("sdxl"), Counter[str]()
    with open_engine(folder, read_manifest(folder), "unet", cache=False) as engine:
        assert engine.prologue_inputs
        prologue = engine._run_prologue
        monkeypatch.setattr(engine, "_run_prologue", lambda feed: counts.update("p") or prologue(feed))
        constants, changing = split(make_feed(engine))
        # the shared image's control is of the first row's
        changing["timestep"][:] = 321
        if not shared:
            constants["control_image"] = rand(9, 2, *constants["control_image"].shape[1:])
        bound = engine.bind(constants)
        wanted = bound.run(changing)["noise_pred"]
        last = bound.last_rows(1)
        given = last.run({name: array[1:] for name, array in changing.items()})["noise_pred"]
    assert (last.rows, counts["p"]) == (1, 1)
    np.testing.assert_allclose(given, wanted[1:], rtol=0, atol=1e-5)


def test_what_stays_is_given_to_the_engine_once(bundle: Path) -> None:
    engine = _Recorder(read_manifest(bundle), "unet")
    constants, changing = split(make_feed(engine))
    bound = engine.bind(constants)
    for _ in range(3):
        bound.run(changing)
    assert engine.runs == [{*constants, *changing}, set(changing), set(changing)]


def test_two_that_take_turns_give_everything_each_time(bundle: Path) -> None:
    """An engine remembers one set of inputs; a run of its own counts too."""
    engine = _Recorder(read_manifest(bundle), "unet")
    constants, changing = split(make_feed(engine))
    one, other = engine.bind(constants), engine.bind(constants)
    one.run(changing)
    other.run(changing)
    one.run(changing)
    engine.run({**constants, **changing})
    one.run(changing)
    assert engine.runs == [{*constants, *changing}] * 5


def test_after_a_failure_everything_is_given_again(bundle: Path) -> None:
    engine = _Recorder(read_manifest(bundle), "unet")
    constants, changing = split(make_feed(engine))
    bound = engine.bind(constants)
    bound.run(changing)
    with pytest.raises(WorkError):
        bound.run({**changing, "sample": changing["sample"] * np.float32(np.nan)})
    bound.run(changing)
    assert engine.runs == [{*constants, *changing}, set(changing), {*constants, *changing}]


@pytest.mark.parametrize(
    ("kept", "given", "message"),
    [
        ({"noise": rand(0, 2)}, {}, "unknown inputs .'noise'.; accepted: .'control_image'"),
        ({"control_scale": rand(0, 2, 2)}, {}, "control_scale is float32 .2, 2., expected float32 .batch."),
        ({"control_scale": rand(0, 3)}, {}, "control_scale is float32 .3., expected .*'batch': 2"),
        ({}, {"sample": rand(0, 2, 4, 8, 7)}, "sample is float32 .2, 4, 8, 7., expected .*'width': 6"),
        ({}, {"control_scale": rand(0, 2)}, "unknown .'control_scale'.; accepted: .'sample', 'timestep'."),
        ({"control_image": rand(0, 3, 3, 64, 48)}, {}, "batch 3; give 1 or the batch of the other inputs, 2"),
    ],
)
def test_what_contradicts_is_refused_before_anything_runs(
    bundle: Path, kept: Feed, given: Feed, message: str
) -> None:
    engine = _Recorder(read_manifest(bundle), "unet")
    constants, changing = split(make_feed(engine))

    def attempt() -> None:
        engine.bind({**constants, **kept}).run({**changing, **given})

    with pytest.raises(InputError, match=f"unet: .*{message}"):
        attempt()
    assert not engine.runs


def test_a_run_gives_the_denoiser_what_stays_once(bundle: Path) -> None:
    """Embeddings and control image, but not the control scale, which changes where the control acts."""
    backend = _RecordingBackend(bundle)
    pipe = Pipeline.of(Bundle(bundle, backend, cache=False))
    arguments = {
        "prompt_embeds": rand(0, 1, 7, 16),
        "negative_prompt_embeds": rand(1, 1, 7, 16),
        "pooled_prompt_embeds": rand(2, 1, 5),
        "negative_pooled_prompt_embeds": rand(3, 1, 5),
        "control_image": drawing(1, 64, 48),
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    pipe(**arguments, control_start=0.3, control_end=0.7)
    first, *others = backend.denoiser.runs
    assert first == {spec.name for spec in backend.denoiser.inputs}
    changing = {*PER_STEP_INPUTS, "control_scale"}
    assert others == [changing] * 5
    backend.denoiser.runs.clear()
    pipe(**arguments)
    assert backend.denoiser.runs == [first, *[changing] * 5]


@pytest.mark.parametrize(("frames", "windows"), [(3, 1), (5, 2)])
def test_a_clip_of_one_window_gives_its_control_once(frames: int, windows: int, tmp_path: Path) -> None:
    """One of several windows gives that of each window in turn; the rest stays over windows too."""
    pipe = idle_pipeline(tmp_path / "bundle", no_noise)
    engine = pipe.bundle.engine("unet")
    given, run = Counter[str](), engine._run

    def counted(feed: Feed, replaced: Collection[str]) -> dict[str, np.ndarray]:
        given.update(replaced)
        return run(feed, replaced)

    engine._run = counted  # type: ignore[method-assign]
    clip = [drawing(i, 64, 64) for i in range(frames)]
    pipe(
        drawing(9, 64, 64),
        clip,
        num_inference_steps=3,
        frames_per_batch=3,
        overlap=1,
        output_type="latent",
    )
    steps = dict.fromkeys([*PER_STEP_INPUTS, "control_scale"], 3 * windows)
    controls = {"control_image": 1 if windows == 1 else 3 * windows}
    assert given == {**steps, **controls, "encoder_hidden_states": 1, "added_time_ids": 1}
