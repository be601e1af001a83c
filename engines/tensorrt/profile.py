"""Optimization profiles: the shapes that an engine accepts, computed from sizes in pixels and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from controlnext.bundle.manifest import Manifest
from controlnext.engines.tensorrt.store import Profile
from controlnext.errors import InputError
from controlnext.families import Family, get_family
from controlnext.image_prompts import is_image_count
from controlnext.tensor_spec import LORA_RANK, LORA_ROWS, control_inputs, split_dim

PIXELS = ("height", "width")
SIZES = (*PIXELS, "batch", "frames")
"""The sizes that have ranges; ``batch`` counts images or clips."""

_MOST_PROMPT_IMAGES = 4
"""Most images of an image prompt that an engine is built for."""
_PROMPT_TOKENS = 77
"""The length to which CLIP truncates and pads prompts, also assumed for embeddings."""
_MOST_IMAGES = 4


class Range(NamedTuple):
    """The smallest, the usual and the largest size; an engine is fastest at the usual one."""

    smallest: int
    usual: int
    largest: int

    def __str__(self) -> str:
        return str(self.usual) if self.smallest == self.largest else ":".join(map(str, self))

    def times(self, factor: int) -> Range:
        """Return the range with all three sizes multiplied by ``factor``."""
        return Range(*(factor * size for size in self))


def parse_range(name: str, text: str) -> Range:
    """Parse ``"512"`` or ``"512:1024:1280"``; raise :class:`~controlnext.errors.InputError` for others."""
    parts = text.split(":")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) not in (1, 3):
        raise InputError(
            f"{name} is {text!r}; it must be a positive integer, or a range as MIN:OPT:MAX (512:1024:1280)",
            argument=name,
        )
    found = Range(*map(int, parts * 3 if len(parts) == 1 else parts))
    if list(found) != sorted(found):
        raise InputError(
            f"{name} is {text}; it must be a range as MIN:OPT:MAX, the smallest first", argument=name
        )
    return found


def check_sizes(family: Family, requested: Mapping[str, Range]) -> None:
    """Raise :class:`~controlnext.errors.InputError` for sizes that no model of the family supports."""
    symbols = {s for graph in family.graphs for tensor in graph.inputs for s in tensor.symbols()}
    for name, sizes in requested.items():
        if name not in symbols:
            raise InputError(f"{name} is not supported by {family.title}; remove `{name}`", argument=name)
        wrong = [size for size in sizes if size % family.size_multiple] if name in PIXELS else []
        if wrong:
            raise InputError(
                f"{name} is {sizes}; {family.title} supports multiples of {family.size_multiple}"
                f"{family.nearest_sizes(wrong[0])}",
                argument=name,
            )


def choose_ranges(manifest: Manifest, requested: Mapping[str, Range]) -> dict[str, Range]:
    """Return the range of each of :data:`SIZES` that the bundle has: ``requested``, else a default.

    By default height and width range from half to one and a half of the size that the denoiser was trained
    at. The batch is 1 to 4 images, or one clip of up to the number of frames of the training.

    Raises :class:`~controlnext.errors.InputError` for sizes that the model does not support.
    """
    family = get_family(manifest.family)
    check_sizes(family, requested)
    config = manifest.configs[family.denoiser]
    largest = family.largest_size(config)
    symbols = {s for t in manifest.graphs[family.denoiser].inputs for s in t.spec().symbols()}
    ranges = {name: _default_range(name, family, config) for name in SIZES if name in symbols} | dict(
        requested
    )
    for name in PIXELS:
        if ranges[name].largest > largest:
            raise InputError(
                f"{name} is {ranges[name]}; this model supports at most {largest:g}", argument=name
            )
    return ranges


def make_profile(manifest: Manifest, graph_name: str, ranges: Mapping[str, Range]) -> Profile:
    """Return the shapes of the inputs of the graph ``graph_name`` for these ``ranges``.

    The denoiser and the text encoders take two rows for each image with guidance and one without; a control
    image has one row or as many as the other inputs, and so have LoRAs. Every graph takes a single row: the
    decoder gets one image at a time, and a batch may be split anywhere.
    """
    graph, graph_name = manifest.graph(graph_name), graph_name.partition(".")[0]
    # of the whole graph: a shallow part need not read an image
    whole = manifest.graphs[graph_name]
    specs = [tensor.spec() for tensor in (*whole.inputs, *whole.outputs)]
    symbols = {symbol for spec in specs for symbol in spec.symbols()}
    sizes = {name: _symbol_range(name, manifest, graph_name, ranges) for name in symbols - {*PIXELS}}
    for name in symbols & {*PIXELS}:
        # the images among the tensors have the largest multiple, and their size is in pixels
        dims = [split_dim(dim) for spec in specs for dim in spec.shape if isinstance(dim, str)]
        pixels = max(factor for factor, symbol in dims if symbol == name)
        sizes[name] = Range(*(size // pixels for size in ranges[name]))
    by_kind = [{name: sizes[name][kind] for name in symbols} for kind in range(3)]
    return {tensor.name: [list(tensor.spec().shape_at(kind)) for kind in by_kind] for tensor in graph.inputs}


def _symbol_range(symbol: str, manifest: Manifest, graph_name: str, ranges: Mapping[str, Range]) -> Range:
    family = get_family(manifest.family)
    guided = graph_name in (family.denoiser, *family.prompt_encoders, family.sequence_encoder)
    rows = Range(1, *ranges["batch"].times(2 if guided else 1)[1:])
    if symbol == "batch":
        return rows
    controls = control_inputs(tensor.name for tensor in manifest.graphs[graph_name].inputs)
    if symbol in [LORA_ROWS, *(control.batch for control in controls)]:
        return Range(1, 1, rows.largest)
    if symbol == LORA_RANK:
        room = manifest.graphs[graph_name].lora
        assert room
        # no engine was seen to take tensors without elements: one rank of zeros stands for no LoRA
        return Range(1, room.rank, room.rank)
    if is_image_count(symbol):
        return Range(1, 1, _MOST_PROMPT_IMAGES)
    if symbol == "sequence":
        return _tokens(manifest, family, graph_name)
    return ranges[symbol]


def _tokens(manifest: Manifest, family: Family, graph_name: str) -> Range:
    """Return the number of prompt tokens, fixed by the encoders; 1 for the image embedding of a clip."""
    if graph_name != family.denoiser:
        count = _prompt_tokens(manifest, family, graph_name)
    else:
        count = max((_prompt_tokens(manifest, family, name) for name in family.prompt_encoders), default=1)
        if family.sequence_encoder:
            count += _prompt_tokens(manifest, family, family.sequence_encoder)
    return Range(count, count, count)


def _prompt_tokens(manifest: Manifest, family: Family, graph_name: str) -> int:
    (name,) = (graph.network for graph in family.graphs if graph.name == graph_name)
    config = manifest.configs.get(name, {})
    count: int = family.networks[name].tokens or config.get("max_position_embeddings", _PROMPT_TOKENS)
    return count


def _default_range(name: str, family: Family, config: Mapping[str, Any]) -> Range:
    if name == "batch":
        return Range(1, 1, 1 if family.task == "video" else _MOST_IMAGES)
    if name == "frames":
        return Range(1, config["num_frames"], config["num_frames"])
    usual, multiple = family.vae_factor * config["sample_size"], family.size_multiple
    largest = int(min(3 * usual // 2, family.largest_size(config)))
    smallest = max(usual // 2, multiple)
    return Range(*(max(size // multiple, 1) * multiple for size in (smallest, usual, largest)))
