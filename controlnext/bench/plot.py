"""Plot of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlnext.bench.results import Measurement, Results, at
from controlnext.bundle.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = {"batch": "batch", "size": "height", "frames": "frames"}
"""Measurements at several sizes, and the field of :class:`Work` on their horizontal axis."""

UNITS = {"memory": (1e9, "GB")}
"""Divisor and unit of measurements that are not in seconds."""


def write_plot(path: Path, results: Results) -> None:
    """Plot ``results`` to the .png file ``path``, one panel per measurement. Needs matplotlib."""
    from matplotlib.figure import Figure

    measures = list(dict.fromkeys(m.measure for m in results.measurements))
    panels: list[tuple[Callable[..., None], str]] = [
        (_curves if measure in CURVES else _bars, measure) for measure in measures
    ]
    panels += [(_parts, measure) for measure in ("image", "first") if measure in measures]
    figure = Figure(figsize=(10, 3 * len(panels)), layout="constrained")
    figure.suptitle(results.hardware.title, fontsize="small")
    for axes, (draw, measure) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        draw(axes, measure, [m for m in results.measurements if m.measure == measure])
    with new_file(path) as aside:
        figure.savefig(aside, dpi=120)


def _bars(axes: Axes, measure: str, found: Sequence[Measurement]) -> None:
    """Draw medians with their quartiles."""
    factor, unit = UNITS.get(measure, (1, "s"))
    spread = [[(m.median - m.low) / factor for m in found], [(m.high - m.median) / factor for m in found]]
    axes.barh([m.target for m in found], [m.median / factor for m in found], xerr=spread, capsize=3)
    _label(axes, ", ".join(filter(None, (measure, at(found[0].work)))), unit)
    axes.invert_yaxis()


def _parts(axes: Axes, measure: str, found: Sequence[Measurement]) -> None:
    """Draw the parts of images as stacked bars."""
    import matplotlib

    names = dict.fromkeys(name for m in found for name in m.parts)
    left, colours = [0.0] * len(found), matplotlib.colormaps["tab20"]
    for number, name in enumerate(names):
        seconds = [m.parts.get(name, 0.0) for m in found]
        axes.barh([m.target for m in found], seconds, left=left, label=name, color=colours(number))
        left = [start + more for start, more in zip(left, seconds, strict=True)]
    _label(axes, f"parts of {measure}, {at(found[0].work)}", "s")
    axes.invert_yaxis()
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))


def _curves(axes: Axes, measure: str, found: Sequence[Measurement]) -> None:
    """Draw a line per target."""
    for name in dict.fromkeys(m.target for m in found):
        own = [m for m in found if m.target == name]
        places = [getattr(m.work, CURVES[measure]) for m in own]
        axes.plot(places, [m.median for m in own], marker="o", label=name)
        axes.fill_between(places, [m.low for m in own], [m.high for m in own], alpha=0.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("s", fontsize="small")
    _label(axes, "a step", measure)
    axes.legend(fontsize="x-small")


def _label(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, fontsize="small", loc="left")
    axes.set_xlabel(unit, fontsize="small")
    axes.tick_params(labelsize="small")
