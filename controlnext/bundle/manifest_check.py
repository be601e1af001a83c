"""Check of a manifest against the registry: everything that the family needs is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from controlnext import families as registry
from controlnext.bundle.graph_check import check_graph
from controlnext.bundle.names import check_names
from controlnext.errors import BundleError
from controlnext.families import Family
from controlnext.families.schema import ControlSpec
from controlnext.families.values import alike
from controlnext.image_prompts import IMAGE_ENCODER
from controlnext.tensor_spec import control_inputs, control_names, numbered_controls

if TYPE_CHECKING:
    from controlnext.bundle.manifest import Manifest

MOST_FILES = 10_000
"""The largest number of files of a bundle."""


def find_family(name: str) -> Family:
    """Return the family of that name; raise :class:`BundleError` where there is none."""
    if name not in registry.FAMILIES:
        raise BundleError(f"unknown model {name!r}; accepted: {', '.join(registry.FAMILIES)}")
    return registry.FAMILIES[name]


def check_manifest(manifest: Manifest) -> None:
    """Raise :class:`BundleError` for the first entry that does not fit the family, and for a missing entry
    that another one refers to. Missing graphs are accepted: a bundle may hold only some of them."""
    family = find_family(manifest.family)
    if manifest.variant not in family.variants:
        raise BundleError(f"unknown variant {manifest.variant!r}; accepted: {', '.join(family.variants)}")
    if len(manifest.files) > MOST_FILES:
        raise BundleError(f"files has {len(manifest.files)} entries; accepted: up to {MOST_FILES}")
    check_names(manifest.files)
    for spec in family.graphs:
        if spec.name in manifest.graphs:
            # its network first: the graph is that of its configuration
            _check_config(family, manifest.configs, spec.network)
            check_graph(spec.of(manifest.configs[spec.network]), manifest.graphs[spec.name])
        elif stray := next((name for name in manifest.files if name.startswith(f"{spec.name}/")), None):
            # without this a graph whose name was lost would be left out of the run
            raise BundleError(f"files has {stray!r}, but graphs has no {spec.name}")
    _check_controls(manifest, family)
    _check_options(manifest, family)
    denoiser = manifest.graphs.get(family.denoiser)
    if denoiser and denoiser.precision != manifest.precision:
        raise BundleError(
            f"precision is {manifest.precision}, graphs.{family.denoiser}.precision {denoiser.precision};"
            " expected the same"
        )


def check_complete(manifest: Manifest, family: Family) -> None:
    """Raise :class:`BundleError` if the runtime cannot make images or clips because something is missing: a
    graph, a pipeline option."""
    for spec in family.graphs:
        if spec.runs and not spec.optional and spec.name not in manifest.graphs:
            raise BundleError(f"graphs has no {spec.name}, which {family.title} needs")
    prompted = [name for name, graph in manifest.graphs.items() if graph.adapters]
    if prompted and IMAGE_ENCODER not in manifest.graphs:
        raise BundleError(f"graphs has no {IMAGE_ENCODER}, which the image prompts of {prompted[0]} need")
    for name in family.checkpoint_options:
        if name not in manifest.options:
            raise BundleError(f"options has no {name}, which {family.title} needs")


def _check_config(family: Family, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
    if name not in configs:
        present = ", ".join(configs) or "none"
        raise BundleError(f"configs has no {name}, which {family.title} needs; it has {present}")
    config, network = configs[name], family.known_networks[name].of(configs[name])
    for key, accepted in network.read.items():
        if key not in config:
            raise BundleError(f"configs.{name} has no {key}, which {family.title} needs")
        if not accepted.takes(config[key]):
            raise BundleError(f"configs.{name}.{key} is {config[key]!r}; expected {accepted}")
    for key in network.required.keys() & config.keys():
        if not network.accepts(key, config[key]):
            raise BundleError(f"configs.{name}.{key} is {config[key]!r}: it is of another family")


def _check_controls(manifest: Manifest, family: Family) -> None:
    denoiser = manifest.graphs.get(family.denoiser)
    given = control_names(manifest.configs)
    # a bundle without a denoiser does not tell their number
    count = len(given) if denoiser is None else len(control_inputs(t.name for t in denoiser.inputs))
    expected = [control.network for control in numbered_controls(count)]
    if set(given) != set(expected):
        raise BundleError(
            f"configs has {', '.join(manifest.configs) or 'none'}; expected for {count} controls:"
            f" {', '.join(expected) or 'none'}"
        )
    for name in given:
        try:
            msgspec.convert(manifest.configs[name], ControlSpec)
        except msgspec.ValidationError as error:
            raise BundleError(f"configs.{name} is not of a control module: {error}") from error


def _check_options(manifest: Manifest, family: Family) -> None:
    for name, value in manifest.options.items():
        default = family.checkpoint_options[name]
        if not alike(value, default):
            raise BundleError(f"options.{name} is {value!r}; expected one like {default!r}")
