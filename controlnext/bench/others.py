"""Targets that run the same weights by other means: PyTorch, diffusers, DeepCache, optimum, OpenVINO,
stable-diffusion.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from controlnext.bench.choices import (
    CACHE,
    COPIES,
    IMAGES,
    STEPS,
    TINY,
    WITHOUT_CONTROL,
    Changes,
    Surroundings,
    changed,
    own_directory,
    uncontrolled_bundle,
)
from controlnext.bench.messages import Option, Target
from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.families import Family, get_family
from controlnext.types import Precision

_DTYPES: Mapping[str, int] = MappingProxyType({"float32": 4, "bfloat16": 2, "float16": 2})
"""Bytes per weight of the torch dtypes that are measured."""
_FAST = ("float32", "bfloat16")
"""Those that processors compute fast."""
_CONTROLNET = 1.5
"""Memory of a pipeline with a ControlNet per byte of one without."""
_OPENVINO: Mapping[str, str] = MappingProxyType({"float32": "f32", "bfloat16": "bf16"})
"""OpenVINO's names of the types that it computes in."""
_SDCPP: Mapping[str, float] = MappingProxyType({"f16": 2.0, "q8_0": 1.0625})
"""Bytes per weight of the types of stable-diffusion.cpp that are measured."""


def their_targets(path: Path, around: Surroundings) -> list[Target]:
    """Return the targets for the weights of the bundle ``path``."""
    others = _Others(path, read_manifest(path), around)
    return [*others.torch(), *others.diffusers(), *others.graphs(), *others.sdcpp()]


@dataclass(frozen=True)
class _Others:
    path: Path
    manifest: Manifest
    around: Surroundings

    @property
    def family(self) -> Family:
        return get_family(self.manifest.family)

    def torch(self) -> Iterator[Target]:
        """Yield the denoiser, and the stock pipeline with the control."""
        eager = {dtype: f"torch eager {dtype}" for dtype in _DTYPES}
        yield from (self._torch(name, dtype) for dtype, name in eager.items())
        for dtype, name in eager.items():
            yield self._images(name, dtype)
        for dtype in _FAST:
            plain = self._images(eager[dtype], dtype)
            yield from changed(plain, self.manifest, _uncached(self.around.less))
        yield self._torch(f"torch eager float32 {WITHOUT_CONTROL}", "float32", controlled=False)
        yield from (self._torch(f"torch compiled {dtype}", dtype, compiled=True) for dtype in _FAST)

    def diffusers(self) -> Iterator[Target]:
        """Yield what diffusers has besides: a ControlNet, and the package DeepCache on it."""
        if self.family.controlnet is not None:
            plain = self._images("diffusers ControlNet float32", "float32")
            size = int(_CONTROLNET * plain.weights)
            plain = replace(plain, runner="controlnet", measures=(*STEPS, *IMAGES))
            yield replace(plain, weights=size, denoiser=size)
        if self.family.task == "image":
            for dtype in _FAST:
                plain = replace(self._images(f"diffusers DeepCache {dtype}", dtype), runner="deepcache")
                yield from changed(plain, self.manifest, _cached_alone(self.around.less))

    def graphs(self) -> Iterator[Target]:
        """Yield the base model's graph, of optimum's export where there is one, by ONNX Runtime and
        OpenVINO."""
        size = int(COPIES * _weights(self.manifest, self.family.denoiser) * _DTYPES["float32"])
        plain = Target("", "graph", str(self.path), STEPS, size, size, origin=str(self.path))
        if self.around.optimum is not None:
            graph = own_directory(self.path, self.around.made) / "optimum" / self.family.denoiser
            plain = replace(plain, maker="optimum", options={"graph": str(graph / "model.onnx")})
            options = {**plain.options, "device": self.around.device}
            yield replace(plain, name=f"optimum float32 {WITHOUT_CONTROL}", options=options)
        elif self.manifest.precision == Precision.FP32:
            bundle = uncontrolled_bundle(self.path, self.around.made)
            graph = bundle / self.family.denoiser / "model.onnx"
            plain = replace(plain, maker="uncontrolled", bundle=str(bundle), options={"graph": str(graph)})
        if plain.maker and not self.around.gpu:
            for dtype, name in _OPENVINO.items():
                options = {**plain.options, "dtype": name}
                title = f"openvino {dtype} {WITHOUT_CONTROL}"
                yield replace(plain, name=title, runner="openvino", options=options)

    def sdcpp(self) -> Iterator[Target]:
        """Yield stable-diffusion.cpp with the base model, where there is an interpreter that has it."""
        if self.around.sdcpp is None:
            return
        file = own_directory(self.path, self.around.made) / "original.safetensors"
        for dtype, size in _SDCPP.items():
            weights = int(size * _weights(self.manifest, *self.manifest.graphs))
            options: dict[str, Option] = {"python": self.around.sdcpp, "file": str(file), "dtype": dtype}
            name = f"stable-diffusion.cpp {dtype}"
            plain = Target(name, "sdcpp", str(self.path), ("image",), weights, weights, options)
            yield replace(plain, maker="single file", origin=str(self.path))

    def _torch(self, name: str, dtype: str, **options: Option) -> Target:
        given: dict[str, Option] = {"device": self.around.device, "dtype": dtype, **options}
        weights, denoiser = (
            _weights(self.manifest, *some) * _DTYPES[dtype]
            for some in (self.manifest.graphs, (self.family.denoiser,))
        )
        return Target(name, "torch", str(self.path), STEPS, weights, denoiser, given)

    def _images(self, name: str, dtype: str) -> Target:
        stock = own_directory(self.path, self.around.made) / "diffusers"
        plain = replace(self._torch(name, dtype, stock=str(stock)), runner="pipeline", measures=IMAGES)
        return replace(plain, maker="stock", origin=str(self.path))


def _uncached(less: Iterable[Changes]) -> list[Changes]:
    """Return the changes ``less`` but for the step cache: the reference computes what it leaves out."""
    others = [{name: value for name, value in changes.items() if name != CACHE} for changes in less]
    return [one for number, one in enumerate(others) if one and one not in others[:number]]


def _cached_alone(less: Iterable[Changes]) -> list[Changes]:
    """Return the step cache of ``less`` by itself, and with the tiny decoder if that is among them."""
    intervals = {changes[CACHE] for changes in less if CACHE in changes}
    tiny = any(TINY in changes for changes in less)
    alone: list[Changes] = [{CACHE: interval} for interval in intervals]
    return [*alone, *({**one, TINY: True} for one in alone if tiny)]


def _weights(manifest: Manifest, *graph_names: str) -> int:
    """Estimate the number of weights of the graphs ``graph_names``."""
    total = 0.0
    for name, entry in manifest.files.items():
        graph_name = name.partition("/")[0]
        if graph_name in graph_names:
            total += entry.bytes / manifest.graphs[graph_name].precision.weights.itemsize
    return int(total)
