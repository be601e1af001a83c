"""Scheduler settings in single-file checkpoints: marker tensors, and the header's metadata.

Markers are tensors at the top level, empty or of one number, which the trainers of anime models and graphical
interfaces write and read. The metadata keys are those of the model specification (``modelspec.``), of ComfyUI
(``modelspec.predict_key``) and of kohya's scripts (``ss_``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open

from controlnext.errors import CheckpointError
from controlnext.families import Family
from controlnext.families.options import OptionTable
from controlnext.families.samplers import SAMPLER_SPECS

log = logging.getLogger(__name__)

Values = Mapping[str, Any]

_V: Values = {"prediction_type": "v_prediction"}
_ZERO_SNR: Values = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

MARKERS: Mapping[str, Values] = MappingProxyType({"v_pred": _V, "ztsnr": _ZERO_SNR})
"""Scheduler settings by marker tensor. A schedule with zero terminal SNR (arXiv:2305.08891) is useful only if
sampling starts at its end, hence the spacing."""
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "edm_mean": "EDM's noise levels and normalized latents (as Playground v2.5 has them)",
        "edm_std": "EDM's noise levels and normalized latents (as Playground v2.5 has them)",
        "edm_vpred.sigma_max": "EDM's noise levels with v-prediction (as CosXL has them)",
        "edm_vpred.sigma_min": "EDM's noise levels with v-prediction (as CosXL has them)",
    }
)
"""Marker tensors of settings that no sampler supports, with a description."""
_PREDICTIONS: Mapping[str, Values] = {
    "v": _V,
    "v_prediction": _V,
    "epsilon": {"prediction_type": "epsilon"},
    "eps": {"prediction_type": "epsilon"},
}
METADATA: Mapping[str, Mapping[str, Values]] = MappingProxyType(
    {
        "modelspec.prediction_type": _PREDICTIONS,
        "modelspec.predict_key": _PREDICTIONS,
        "ss_v_parameterization": {"true": _V, "false": {}},
        "ss_zero_terminal_snr": {"true": _ZERO_SNR, "false": {}},
    }
)
"""Scheduler settings by key and value (in lower case, with underscores) of the header's metadata; if two keys
differ, the first is used."""


def is_marker(name: str) -> bool:
    """Return whether a tensor of this name is a marker, not a weight."""
    return name in MARKERS or name in REFUSED


def marked_settings(family: Family, file: Path, names: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Return the scheduler settings that a single file asks for, by key: the value and the name of its
    marker.

    ``names``: of the file's tensors. Tensors take precedence over metadata, and metadata over others later in
    :data:`METADATA`, with a warning if they differ. Raises :class:`CheckpointError` for a marker that is not
    supported, or not by this family.
    """
    settings: dict[str, tuple[Any, str]] = {}
    metadata = read_metadata(file)
    said = [(name, _of_marker(family, file, name)) for name in sorted(filter(is_marker, names))]
    # not in the order of the file: safetensors returns metadata in another order at every reading
    said += [
        (name, _of_metadata(family, file, name, metadata[name])) for name in METADATA if name in metadata
    ]
    for name, values in said:
        for key, setting in values.items():
            told, by = settings.setdefault(key, (setting, name))
            if told != setting:
                log.warning(
                    "%s: %s says %s=%s, %s says %s: the first is used",
                    file.name,
                    by,
                    key,
                    told,
                    name,
                    setting,
                )
    return settings


def _of_marker(family: Family, file: Path, name: str) -> Values:
    if name in REFUSED:
        raise CheckpointError(
            f"{file} has the marker {name}: it asks for {REFUSED[name]}, which no sampler supports; accepted:"
            f" {', '.join(_accepted(family)) or 'none'}; give a base that was trained for another schedule"
        )
    if name not in _accepted(family):
        raise CheckpointError(
            f"{file} has the marker {name}, which {family.title} does not support; accepted:"
            f" {', '.join(_accepted(family)) or 'none'}; give a base of {family.name}"
        )
    return MARKERS[name]


def _accepted(family: Family) -> list[str]:
    """Return the markers that the family's default sampler supports."""
    return [name for name, values in MARKERS.items() if values.keys() <= _known(family).keys()]


def _known(family: Family) -> OptionTable:
    return SAMPLER_SPECS[family.default_sampler].options


def _of_metadata(family: Family, file: Path, name: str, value: str) -> Values:
    # flow matching has one prediction type, whatever a tool wrote
    if "prediction_type" not in _known(family):
        return {}
    plain = value.strip().lower().replace("-", "_")
    if plain in METADATA[name]:
        return METADATA[name][plain]
    log.warning(
        "%s: its metadata has %s=%s, which is unknown and ignored (accepted: %s); if images are wrong,"
        " give the export the scheduler's settings",
        file.name,
        name,
        value,
        ", ".join(METADATA[name]),
    )
    return {}


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata in the header of a ``.safetensors`` file; empty for any other file."""
    if file.suffix.lower() != ".safetensors":
        return {}
    try:
        with safe_open(str(file), "pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError):  # reading the tensors reports the error
        return {}
