"""The metrics of the server, as prometheus_client's own parser reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from controlnext.runtime import Pipeline
from controlnext.runtime.batching.batcher import Batcher
from controlnext.runtime.batching.observer import Phase
from controlnext.runtime.serving.metrics import Metrics, Outcome
from support.fake_bundle import write_fake_bundle

BURST = 5


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    path = write_fake_bundle(tmp_path_factory.mktemp("metrics") / "bundle", "sd15")
    with Pipeline.load(path, device="cpu", threads=1, cache=False) as pipeline:
        yield pipeline


@dataclass
class State:
    """The state of a loaded model."""

    batcher: Batcher
    memory: int = 12345

    @property
    def waiting(self) -> int:
        return self.batcher.waiting

    @property
    def running(self) -> int:
        return self.batcher.running


def values(metrics: Metrics) -> dict[str, float]:
    """Return the samples by name and labels: ``steps_total{model="m"}``, without the prefix of all names."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('controlnext_')}{{{labels}}}"] = sample.value
    return found


def test_after_a_burst_nothing_waits_and_all_is_counted(pipe: Pipeline) -> None:
    metrics = Metrics()
    with Batcher(pipe, observer=metrics.observer("fake")) as batcher:
        metrics.watch("fake", State(batcher))
        image = Image.new("RGB", (16, 16))
        futures = [
            batcher.submit(prompt="a", control_image=image, num_inference_steps=2) for _ in range(BURST)
        ]
        assert 'requests_waiting{model="fake"}' in values(metrics)
        for future in futures:
            future.result(timeout=30)
    found = values(metrics)
    assert found['requests_waiting{model="fake"}'] == found['requests_running{model="fake"}'] == 0
    assert found['engine_memory_bytes{model="fake"}'] == 12345


def test_what_a_batcher_tells_is_counted() -> None:
    metrics = Metrics()
    observer = metrics.observer("fake")
    observer.ran(2, 3, 0.1)
    observer.ran(1, 2, 0.1)
    for phase in Phase:
        observer.spent(phase, 0.3)
    found = values(metrics)
    assert found['steps_total{model="fake"}'] == 3
    assert found['run_rows_sum{model="fake"}'] == 5
    assert found['run_rows_bucket{le="2.0",model="fake"}'] == 1
    for phase in ("waiting", "encoding", "denoising", "decoding"):
        assert found[f'phase_seconds_sum{{model="fake",phase="{phase}"}}'] == 0.3
        assert found[f'phase_seconds_bucket{{le="0.25",model="fake",phase="{phase}"}}'] == 0


def test_requests_are_counted_by_route_model_and_outcome() -> None:
    metrics = Metrics()
    for status in (200, 200, 400, 429, 503, 500):
        metrics.count("/v1/images/generations", "fake", Outcome.of(status))
    found = values(metrics)
    by_outcome = {
        outcome: found[f'requests_total{{model="fake",outcome="{outcome}",route="/v1/images/generations"}}']
        for outcome in ("ok", "invalid", "refused", "failed")
    }
    assert by_outcome == {"ok": 2, "invalid": 1, "refused": 2, "failed": 1}
