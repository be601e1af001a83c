"""IP-Adapters: their files, and the image encoder that they read image prompts through."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn

from controlnext.bundle.manifest import ImagePrompt, Source
from controlnext.errors import CheckpointError, InputError, blames
from controlnext.families import Family, Network
from controlnext.families.parts import image_positions
from controlnext.families.schema import ImagePromptNeeds
from controlnext.image_prompts import KINDS, AdapterSpec, numbered_adapters
from controlnext.models.image_prompt import HEAD, ImagePromptAdapter, cross_attentions
from controlnext.weights.choices import beside_adapter, choose_network_files
from controlnext.weights.lazy import LazyTensor, LazyTensors, is_safetensors, read_content, read_file
from controlnext.weights.lazy import is_weight_file as is_weights
from controlnext.weights.networks import computed_tensors, empty_module, match, shapes_of
from controlnext.weights.parts import Part, read_network
from controlnext.weights.random_weights import random_tensors
from controlnext.weights.shipped import shipped_config
from controlnext.weights.weight_source import WeightSource, resolve

_IMAGE, _LAYERS = "image_proj.", "ip_adapter."
_BASE_TOKENS, _PLUS_TOKENS, _PLUS_DEPTH = 4, 16, 4
"""Of the published ones; the number of tokens of the base kind cannot be read off its tensors."""
_OTHER_KINDS: Mapping[str, str] = {
    r"image_proj\.proj\.3\..*": "Full",
    r"image_proj\.(perceiver_resampler\..*|proj\.0\..*)|ip_adapter\..*lora.*": "FaceID",
}
"""Names of tensors that tell kinds which are not supported; the first that matches counts."""


@dataclass(frozen=True)
class AdapterWeights:
    """One IP-Adapter: its widths, and its tensors by their published names, each read on access."""

    spec: AdapterSpec
    tensors: Mapping[str, Tensor]

    @property
    def entry(self) -> ImagePrompt:
        """The manifest's entry."""
        return ImagePrompt(self.spec.kind, self.spec.tokens, list(self.spec.embedding))

    def meta_module(self) -> ImagePromptAdapter:
        """Return the adapter with parameters on the meta device."""
        return empty_adapter(self.spec)

    def module(self) -> ImagePromptAdapter:
        """Return the adapter with its weights in float32, in eval mode."""
        module = self.meta_module()
        state = {name: tensor.float() for name, tensor in self.tensors.items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module.requires_grad_(False)


@dataclass(frozen=True)
class Adapters:
    """The adapters of a checkpoint, their image encoder, and where they come from."""

    weights: list[AdapterWeights]
    encoder: Part
    sources: list[Source]


def empty_adapter(spec: AdapterSpec) -> ImagePromptAdapter:
    """Return the adapter in eval mode, with parameters on the meta device."""
    with init_empty_weights():
        return ImagePromptAdapter(spec).eval().requires_grad_(False)


@blames("ip_adapter")
def read_adapters(
    family: Family,
    denoiser: Part,
    given: Sequence[str | Path],
    image_encoder: str | Path | None,
) -> Adapters | None:
    """Read the IP-Adapters ``given`` (files, or hub ids of files) for a ``denoiser``.

    ``image_encoder``: directory or hub id of their image encoder; None for the directory ``image_encoder``
    beside the first. Returns None if none are given. Raises :class:`CheckpointError` for other kinds, for an
    adapter of another family, and for an encoder that does not belong to it.
    """
    if not given:
        if image_encoder is not None:
            raise InputError(
                "`ip_adapter_image_encoder` is read for `ip_adapter`, which is not given; give both",
                argument="ip_adapter_image_encoder",
            )
        return None
    encoder = _needs(family).encoder
    beside = encoder if image_encoder is None else None
    found = [_resolved(one, beside) for one in given]
    weights, sources = [], []
    for number, (source, tensors) in enumerate(found):
        weights.append(_matched(family, denoiser.config, tensors, source.name))
        role = numbered_adapters(number + 1)[-1].network.replace("_", " ")
        sources.append(source.source(role, source.path))
    with blames("ip_adapter_image_encoder"):
        directory = _encoder_source(found[0][0], image_encoder, encoder)
        part, files = read_network(encoder, directory, directory.path)
    for one, (source, _) in zip(weights, found, strict=True):
        _check_encoder(one.spec, part.config, source.name, directory.name)
    fitted = [_fitted(one, part.config) for one in weights]
    return Adapters(fitted, part, sources + files)


def random_adapters(
    family: Family, denoiser: Mapping[str, Any], given: Sequence[str | Path], seed: int
) -> Adapters | None:
    """Return adapters of the kinds ``given``, as published, with random numbers, and their image encoder."""
    kinds = [str(kind) for kind in given]
    if not kinds:
        return None
    needs = _needs(family)
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(
            f"random weights replace every file: `ip_adapter` is {wrong[0]!r}; accepted with `random_seed`:"
            f" {', '.join(KINDS)}",
            argument="ip_adapter",
        )
    config = shipped_config(family, needs.encoder)
    module = empty_module(needs.encoder, config)
    tensors = random_tensors(shapes_of(module), needs.encoder.folder, seed) | computed_tensors(module)
    part = Part(config, tensors)
    weights = []
    for names, kind in zip(numbered_adapters(len(kinds)), kinds, strict=True):
        spec = _published(kind, needs, config, _layers(family, denoiser))
        tensors = random_tensors(shapes_of(empty_adapter(spec)), names.network, seed)
        weights.append(AdapterWeights(spec, LazyTensors(tensors, names.network)))
    return Adapters(weights, part, [])


def adapter_spec(tensors: Mapping[str, LazyTensor], what: str) -> AdapterSpec:
    """Read the widths of an adapter off its tensors; the number of positions of an image is left 0.

    Raises :class:`CheckpointError` for tensors of something else.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    _check_kind(shapes, what)
    numbers = sorted(
        int(m[1]) for m in map(re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight").fullmatch, shapes) if m
    )
    layers = tuple(shapes[f"{_LAYERS}{number}.to_k_ip.weight"][0] for number in numbers)
    if f"{_IMAGE}latents" not in shapes:
        wide, embedding = shapes[f"{_IMAGE}proj.weight"]
        return AdapterSpec("base", (embedding,), _BASE_TOKENS, wide // _BASE_TOKENS, layers)
    _, tokens, hidden = shapes[f"{_IMAGE}latents"]
    depth = len([name for name in shapes if re.fullmatch(r"image_proj\.layers\.\d+\.0\.to_q\.weight", name)])
    if depth != _PLUS_DEPTH:
        raise CheckpointError(
            f"{what} has a resampler of {depth} layers; accepted: the {_PLUS_DEPTH} of IP-Adapter Plus"
        )
    return AdapterSpec(
        "plus",
        (0, shapes[f"{_IMAGE}proj_in.weight"][1]),
        tokens,
        shapes[f"{_IMAGE}proj_out.weight"][0],
        layers,
        hidden,
        shapes[f"{_IMAGE}layers.0.0.to_q.weight"][0] // HEAD,
        depth,
    )


def _check_kind(names: Mapping[str, Any], what: str) -> None:
    accepted = " and ".join(kind.title for kind in KINDS.values())
    for pattern, title in _OTHER_KINDS.items():
        if any(re.fullmatch(pattern, name) for name in names):
            raise CheckpointError(
                f"{what} is an IP-Adapter {title}, which is not supported; give an adapter of the kinds"
                f" {accepted}"
            )
    needed = {f"{_LAYERS}1.to_k_ip.weight"}
    base = {f"{_IMAGE}proj.weight"}
    plus = {
        f"{_IMAGE}{name}"
        for name in ("latents", "proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight")
    }
    if not needed <= names.keys() or not (base <= names.keys() or plus <= names.keys()):
        raise CheckpointError(
            f"{what} is not an IP-Adapter: it lacks tensors image_proj.* or ip_adapter.*.to_k_ip.weight; give"
            f" a file of the kinds {accepted}, such as ip-adapter_sd15.safetensors"
        )


def _needs(family: Family) -> ImagePromptNeeds:
    if family.image_prompts is None:
        raise InputError(f"{family.title} takes no IP-Adapters; remove `ip_adapter`", argument="ip_adapter")
    return family.image_prompts


def _published(
    kind: str, needs: ImagePromptNeeds, encoder: Mapping[str, Any], layers: tuple[int, tuple[int, ...]]
) -> AdapterSpec:
    width, widths = layers
    if kind == "base":
        return AdapterSpec(kind, (encoder["projection_dim"],), _BASE_TOKENS, width, widths)
    embedding = (image_positions(encoder), encoder["hidden_size"])
    heads = needs.hidden // HEAD
    return AdapterSpec(kind, embedding, _PLUS_TOKENS, width, widths, needs.hidden, heads, _PLUS_DEPTH)


def _layers(family: Family, config: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Return the width of the denoiser's text, and of each of its cross-attentions."""
    module: nn.Module = empty_module(family.networks[family.denoiser], config)
    attentions = [attention for _, attention in cross_attentions(module)]
    return config["cross_attention_dim"], tuple(one.to_q.out_features for one in attentions)


def _resolved(given: str | Path, beside: Network | None) -> tuple[WeightSource, dict[str, LazyTensor]]:
    """Return the file, and its tensors by their names in published .safetensors files."""
    source = resolve(given, only_file, partial(beside_adapter, beside))
    if source.path.is_dir():
        names = sorted(path.name for path in source.path.iterdir() if is_weights(path.name))
        if len(names) != 1:
            raise CheckpointError(
                f"{source.name} is a directory with {len(names)} files of weights"
                f"{': ' + ', '.join(names[:8]) if names else ''}; give the path of one IP-Adapter's file"
            )
        source = WeightSource(source.path / names[0], f"{source.name}/{names[0]}", source.revision)
    if is_safetensors(source.path.name):
        return source, read_file(source.path)
    content, tensors = read_content(source.path), {}
    for group in ("image_proj", "ip_adapter"):
        inside = content.get(group) if isinstance(content, dict) else None
        for name, tensor in inside.items() if isinstance(inside, dict) else ():
            tensors[f"{group}.{name}"] = LazyTensor.from_tensor(tensor)
    return source, tensors


def only_file(names: Sequence[str]) -> list[str]:
    """Return the weights of a directory of the hub if these are a single file."""
    found = [name for name in names if is_weights(name) and "/" not in name]
    return found if len(found) == 1 else []


def _matched(
    family: Family, denoiser: Mapping[str, Any], tensors: Mapping[str, LazyTensor], name: str
) -> AdapterWeights:
    spec = adapter_spec(tensors, name)
    width, widths = _layers(family, denoiser)
    if (spec.width, spec.layers) != (width, widths):
        raise CheckpointError(
            f"{name} is an IP-Adapter of another family: it has {len(spec.layers)} cross-attentions to tokens"
            f" of width {spec.width}, {family.title} {len(widths)} to tokens of width {width}; give one of"
            f" {family.name}"
        )
    matched = match(tensors, shapes_of(empty_adapter(spec)), name)
    return AdapterWeights(spec, LazyTensors(matched, name))


def _encoder_source(adapter: WeightSource, given: str | Path | None, network: Network) -> WeightSource:
    """Return the image encoder's directory."""
    if given is not None:
        source = resolve(given, lambda names: choose_network_files(network, names))
    else:
        beside = adapter.directory
        source = WeightSource(
            beside.path / network.folder, f"{beside.name}/{network.folder}", beside.revision
        )
    if not (source.path / "config.json").is_file():
        what = f"no {network.folder} is beside {adapter.name}"
        if given is not None:
            what = f"{given} has no config.json of an image encoder"
        raise CheckpointError(
            f"{what}; give `ip_adapter_image_encoder` a directory or a hub id with config.json and"
            " model.safetensors, such as h94/IP-Adapter/models/image_encoder"
        )
    return source


def _check_encoder(spec: AdapterSpec, config: Mapping[str, Any], name: str, encoder: str) -> None:
    key = "projection_dim" if len(spec.embedding) == 1 else "hidden_size"
    if config[key] != spec.embedding[-1]:
        raise CheckpointError(
            f"{name} reads images of width {spec.embedding[-1]}, but the image encoder {encoder} has"
            f" {key} {config[key]}; give `ip_adapter_image_encoder` the one that it was trained with",
            argument="ip_adapter_image_encoder",
        )


def _fitted(one: AdapterWeights, encoder: Mapping[str, Any]) -> AdapterWeights:
    """Return the adapter with the number of positions of the encoder's images."""
    if len(one.spec.embedding) == 1:
        return one
    embedding = (image_positions(encoder), one.spec.embedding[-1])
    return replace(one, spec=replace(one.spec, embedding=embedding))
