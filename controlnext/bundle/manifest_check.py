"""Check of a manifest against the registry: everything that the family needs is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controlnext import families as registry
from controlnext.errors import BundleError
from controlnext.families import Family, GraphSpec
from controlnext.families.values import alike
from controlnext.image_prompts import IMAGE_ENCODER, KINDS
from controlnext.tensor_spec import control_inputs, numbered_controls

if TYPE_CHECKING:
    from controlnext.bundle.manifest import Graph, Manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise :class:`BundleError` for the first entry that the family does not have, and for a missing entry
    that another one refers to. Missing graphs are accepted: a bundle may hold only some of them."""
    if manifest.family not in registry.FAMILIES:
        raise BundleError(f"unknown model {manifest.family!r}; accepted: {', '.join(registry.FAMILIES)}")
    family = registry.FAMILIES[manifest.family]
    if manifest.variant not in family.variants:
        raise BundleError(f"unknown variant {manifest.variant!r}; accepted: {', '.join(family.variants)}")
    known = {spec.name: spec for spec in family.graphs}
    for name, graph in manifest.graphs.items():
        if name not in known:
            raise BundleError(f"graphs has the unknown graph {name}; accepted: {', '.join(known)}")
        _check_graph(name, graph, known[name])
        _check_adapters(name, graph)
        _check_config(family, manifest.configs, graph.network)
    _check_controls(manifest, family)


def check_complete(manifest: Manifest, family: Family) -> None:
    """Raise :class:`BundleError` if the runtime cannot make images or clips because something is missing: a
    graph, one of its inputs or outputs, a pipeline option."""
    for spec in family.graphs:
        if not spec.runs or (spec.optional and spec.name not in manifest.graphs):
            continue
        if spec.name not in manifest.graphs:
            raise BundleError(f"graphs has no {spec.name}, which {family.title} needs")
        _check_tensors(spec.of(manifest.configs[spec.network]), manifest.graphs[spec.name])
    prompted = [name for name, graph in manifest.graphs.items() if graph.adapters]
    if prompted and IMAGE_ENCODER not in manifest.graphs:
        raise BundleError(f"graphs has no {IMAGE_ENCODER}, which the image prompts of {prompted[0]} need")
    for name, default in family.checkpoint_options.items():
        if name not in manifest.options:
            raise BundleError(f"options has no {name}, which {family.title} needs")
        if not alike(manifest.options[name], default):
            raise BundleError(f"options.{name} is {manifest.options[name]!r}; expected one like {default!r}")


def _check_graph(name: str, graph: Graph, spec: GraphSpec) -> None:
    if graph.network != spec.network:
        raise BundleError(f"graphs.{name}.network is {graph.network!r}; expected {spec.network!r}")


def _check_adapters(name: str, graph: Graph) -> None:
    for adapter in graph.adapters:
        if adapter.kind not in KINDS:
            raise BundleError(
                f"graphs.{name}.image_prompts has the unknown kind {adapter.kind!r}; accepted:"
                f" {', '.join(KINDS)}"
            )


def _check_config(family: Family, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
    if name not in configs:
        present = ", ".join(configs) or "none"
        raise BundleError(f"configs has no {name}, which {family.title} needs; it has {present}")
    for key, kind in family.known_networks[name].of(configs[name]).read.items():
        if key not in configs[name]:
            raise BundleError(f"configs.{name} has no {key}, which {family.title} needs")
        value = configs[name][key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BundleError(f"configs.{name}.{key} is {value!r}; expected a number")


def _check_controls(manifest: Manifest, family: Family) -> None:
    denoiser = manifest.graphs.get(family.denoiser)
    given = manifest.configs.keys() - family.known_networks.keys()
    # a bundle without a denoiser does not tell their number
    count = len(given) if denoiser is None else len(control_inputs(t.name for t in denoiser.inputs))
    expected = [control.network for control in numbered_controls(count)]
    if given != set(expected):
        raise BundleError(
            f"configs has {', '.join(manifest.configs) or 'none'}; expected for {count} controls:"
            f" {', '.join(expected) or 'none'}"
        )


def _check_tensors(spec: GraphSpec, graph: Graph) -> None:
    wanted = spec.with_controls(len(control_inputs(tensor.name for tensor in graph.inputs)))
    wanted = wanted.with_image_prompts([adapter.embedding for adapter in graph.adapters])
    if graph.lora:
        wanted = wanted.with_loras(*graph.lora.columns)
    if graph.clip_skip:
        wanted = wanted.with_clip_skip(graph.clip_skip)
    for side, found, expected in (
        ("inputs", graph.inputs, wanted.inputs),
        ("outputs", graph.outputs, wanted.outputs),
    ):
        if {tensor.name for tensor in found} != {tensor.name for tensor in expected}:
            raise BundleError(
                f"graphs.{spec.name}.{side} are {', '.join(tensor.name for tensor in found)}; expected"
                f" {', '.join(tensor.name for tensor in expected)}"
            )
        shapes = {tensor.name: tensor for tensor in expected}
        for tensor in found:
            like = shapes[tensor.name]
            sizes = zip(tensor.shape, like.shape, strict=False)
            fits = len(tensor.shape) == len(like.shape) and all(
                isinstance(size, int) if str(dim).startswith("@") else size == dim for size, dim in sizes
            )
            if not fits or tensor.dtype != like.dtype:
                raise BundleError(
                    f"graphs.{spec.name}.{side}: {tensor.name} is {tensor.dtype} {tensor.shape}; expected"
                    f" {like.dtype} {list(like.shape)}"
                )
