"""The metrics of several processes as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_CREATED = "_created"
"""End of the name of a sample that is a time."""


def merged(texts: Iterable[bytes]) -> bytes:
    """Return the sums of metrics in Prometheus' text format: counts, and what waits and runs, add up."""
    registry = CollectorRegistry()
    registry.register(_Sums(texts))
    return generate_latest(registry)


class _Sums(Collector):
    """Collects the sums of the samples of the same name and labels; of times the first one."""

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._families: dict[str, Metric] = {}
        self._values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for text in texts:
            for family in text_string_to_metric_families(text.decode()):
                self._add(family)

    def collect(self) -> Iterator[Metric]:
        """Yield the sums."""
        for name, family in self._families.items():
            whole = Metric(name, family.documentation, family.type)
            for (sample, labels), value in self._values[name].items():
                whole.add_sample(sample, dict(labels), value)
            yield whole

    def _add(self, family: Metric) -> None:
        self._families.setdefault(family.name, family)
        values = self._values.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if sample.name.endswith(_CREATED):
                values[key] = min(values.get(key, sample.value), sample.value)
            else:
                values[key] = values.get(key, 0.0) + sample.value
