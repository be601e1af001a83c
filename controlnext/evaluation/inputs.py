"""Test inputs of a bundle: seeded inputs for each graph, and a short sampling run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from controlnext.bundle.format import read_json
from controlnext.bundle.manifest import Graph, Manifest
from controlnext.engines.tensorrt.store import Profile
from controlnext.evaluation.random_lora import NAME, random_inputs
from controlnext.families import Family, get_family
from controlnext.image_prompts import SCALE, is_image_count
from controlnext.runtime.pipelines.beginning import MASK
from controlnext.runtime.pipelines.controls import one_or_all
from controlnext.runtime.samplers import make_sampler
from controlnext.runtime.tokens import prompt_tokenizer
from controlnext.tensor_spec import LORA_INPUTS, control_inputs, split_dim, without_loras
from controlnext.types import Feed

Profiles = Mapping[str, Profile]
"""The shapes that built engines accept, by graph name."""

logger = logging.getLogger(__name__)

SEED = 0
_PROMPT_SCALE = 0.6

# Sizes at which no graph is traced and which every family accepts.
SIZES = (
    {"batch": 1, "height": 24, "width": 16, "sequence": 77, "frames": 3},
    {"batch": 2, "height": 8, "width": 40, "sequence": 33, "frames": 2},
)


@dataclass(frozen=True)
class SamplingRun:
    """The inputs of a whole sampling run. If ``prompt`` is None, random embeddings are used.

    For a clip of ``frames`` frames the control image is moved from frame to frame. Further controls get it
    rotated. With a ``strength`` the run starts from the control image.
    """

    prompt: str | None
    control_image: Image.Image
    steps: int
    height: int
    width: int
    frames: int | None = None
    cache_interval: int = 1
    strength: float | None = None
    lora_rank: int = 0
    """Rank of a LoRA of random numbers."""
    image_prompt: bool = False
    """Whether each IP-Adapter gets an image of random colours."""

    def __str__(self) -> str:
        clip = f"x{self.frames}" if self.frames else ""
        cache = f", cache interval {self.cache_interval}" if self.cache_interval > 1 else ""
        start = "" if self.strength is None else f", from an image at strength {self.strength:g}"
        lora = f", LoRA of rank {self.lora_rank}" if self.lora_rank else ""
        prompt = ", image prompt" if self.image_prompt else ""
        return f"{self.steps} steps {self.width}x{self.height}{clip}{cache}{start}{lora}{prompt}"


def default_run(manifest: Manifest, words: Sequence[str] = ()) -> SamplingRun:
    """Return a short run at a small size, which takes a full-size model about a minute on a CPU.

    ``words``: words to include in the prompt.
    """
    size, family = 128, get_family(manifest.family)
    image = Image.new("RGB", (size, size))
    ImageDraw.Draw(image).ellipse((24, 32, 96, 104), outline="white", width=2)
    reads_prompts = bool(family.prompt_encoders) and set(family.prompt_encoders) <= set(manifest.graphs)
    prompt = " ".join(["a red circle", *words, "on a blue background"]) if reads_prompts else None
    video = family.task == "video"
    return SamplingRun(prompt, image, 3 if video else 6, size, size, frames=5 if video else None)


def added_words(bundle: Path, manifest: Manifest) -> list[str]:
    """Return one added token of each tokenizer, one of several vectors if there is one."""
    words: dict[str, None] = {}
    family = get_family(manifest.family)
    for graph_name in (*family.prompt_encoders, family.sequence_encoder):
        if graph_name in manifest.graphs:
            words |= dict.fromkeys(prompt_tokenizer(bundle, manifest, graph_name).added[:1])
    return list(words)


def run_arguments(manifest: Manifest, run: SamplingRun) -> dict[str, Any]:
    """Return the arguments of ``run``, for the PyTorch reference and the runtime's pipeline alike."""
    common: dict[str, Any] = {"num_inference_steps": run.steps, "seed": SEED}
    common |= {"height": run.height, "width": run.width}
    if run.cache_interval > 1:
        common["cache_interval"] = run.cache_interval
    if run.strength is not None:
        common |= {"image": run.control_image, "strength": run.strength}
    if run.lora_rank:
        common["lora"] = {NAME: 1.0}
    return {**common, **_ARGUMENTS[get_family(manifest.family).task](manifest, run)}


def _image_arguments(manifest: Manifest, run: SamplingRun) -> dict[str, Any]:
    words = _random_embeddings(manifest) if run.prompt is None else {"prompt": run.prompt}
    controls = one_or_all(_turned(run.control_image, _controls(manifest)))
    prompts = _image_prompt(manifest) if run.image_prompt else {}
    return {"control_image": controls, **words, **_inpainting_arguments(manifest, run), **prompts}


def _inpainting_arguments(manifest: Manifest, run: SamplingRun) -> dict[str, Any]:
    """Return what a denoiser that was trained to inpaint is for: an image of which a half is made anew."""
    if MASK not in {tensor.name for tensor in manifest.graphs[get_family(manifest.family).denoiser].inputs}:
        return {}
    mask = Image.new("L", run.control_image.size)
    mask.paste(255, (0, 0, mask.width // 2, mask.height))
    strength = 1.0 if run.strength is None else run.strength
    return {"image": run.control_image, "mask_image": mask, "strength": strength}


def _image_prompt(manifest: Manifest) -> dict[str, Any]:
    adapters = manifest.graphs[get_family(manifest.family).denoiser].adapters
    colours = np.random.default_rng(SEED).integers(0, 256, (len(adapters), 6, 8, 3), np.uint8)
    images = [Image.fromarray(one).resize((256, 192)) for one in colours]
    return {"ip_adapter_image": images, "ip_adapter_scale": _PROMPT_SCALE}


def _video_arguments(manifest: Manifest, run: SamplingRun) -> dict[str, Any]:
    clips = [
        [ImageChops.offset(image, 8 * frame, 0) for frame in range(run.frames or 1)]
        for image in _turned(run.control_image, _controls(manifest))
    ]
    return {
        "image": run.control_image,
        "control_images": one_or_all(clips),
        "frames_per_batch": 3,
        "overlap": 1,
    }


_ARGUMENTS: Mapping[str, Callable[[Manifest, SamplingRun], dict[str, Any]]] = MappingProxyType(
    {"image": _image_arguments, "video": _video_arguments}
)


def _turned(image: Image.Image, count: int) -> list[Image.Image]:
    return [image.rotate(90 * number) for number in range(count)]


def _controls(manifest: Manifest) -> int:
    inputs = manifest.graphs[get_family(manifest.family).denoiser].inputs
    return len(control_inputs(tensor.name for tensor in inputs))


def _random_embeddings(manifest: Manifest) -> Feed:
    family, generator = get_family(manifest.family), np.random.default_rng(SEED)
    names = {"encoder_hidden_states": "prompt_embeds", family.pooled_input: "pooled_prompt_embeds"}
    embeddings = {}
    for tensor in manifest.graphs[family.denoiser].inputs:
        if tensor.name in names:
            shape = tensor.spec().shape_at({"batch": 1, "sequence": 77})
            for name in (names[tensor.name], f"negative_{names[tensor.name]}"):
                embeddings[name] = generator.standard_normal(shape).astype(tensor.dtype)
    return embeddings


def fit_run(manifest: Manifest, run: SamplingRun, profiles: Sequence[Profiles]) -> SamplingRun:
    """Return ``run`` at the nearest size that all engines of ``profiles`` accept; log a warning if it
    differs."""
    family = get_family(manifest.family)
    sizes = {"height": run.height // family.vae_factor, "width": run.width // family.vae_factor}
    for graph_name, graph in manifest.graphs.items():
        sizes = _fit(sizes, graph, graph_name, profiles)
    height, width = (family.vae_factor * sizes[name] for name in ("height", "width"))
    if (height, width) != (run.height, run.width):
        logger.warning("the sampling run is at %d x %d, which the built engines accept", width, height)
    return replace(run, height=height, width=width)


def _fit(
    sizes: Mapping[str, int], graph: Graph, graph_name: str, profiles: Sequence[Profiles]
) -> dict[str, int]:
    """Clamp each of ``sizes`` to the range that the graph's engines were built for."""
    fitted = dict(sizes)
    for profile in (shapes[graph_name] for shapes in profiles if graph_name in shapes):
        for tensor in graph.inputs:
            smallest, _, largest = profile[tensor.name]
            for dim, low, high in zip(tensor.shape, smallest, largest, strict=True):
                factor, symbol = split_dim(dim) if isinstance(dim, str) else (1, "")
                if symbol in fitted:
                    fitted[symbol] = min(max(fitted[symbol], low // factor), high // factor)
    return fitted


def graph_feeds(
    bundle: Path, manifest: Manifest, profiles: Sequence[Profiles] = ()
) -> dict[str, Sequence[Feed]]:
    """Return inputs by graph name, at each of :data:`SIZES` or the nearest size that the engines accept.

    Where there is room, a LoRA of random numbers fills it.
    """
    family = get_family(manifest.family)
    timesteps = _timesteps(bundle, family)
    return {
        graph_name: [
            {
                **_feed(manifest, family, graph, _fit(sizes, graph, graph_name, profiles), timesteps),
                **(random_inputs(graph.lora, SEED) if graph.lora else {}),
            }
            for sizes in SIZES
        ]
        for graph_name, graph in manifest.graphs.items()
    }


def denoiser_feed(bundle: Path, manifest: Manifest, height: int, width: int, rows: int, frames: int) -> Feed:
    """Return seeded inputs of the denoiser for a batch of ``rows``, by name.

    ``height`` and ``width`` are in pixels, ``frames`` is the length of clips. The control image has batch
    size 1 and is shared by all rows, as in a pipeline. There is no LoRA.
    """
    family = get_family(manifest.family)
    multiple = family.size_multiple
    sizes = {"batch": rows, "height": height // multiple, "width": width // multiple}
    sizes |= {"sequence": _tokens(family), "frames": frames}
    graph = manifest.graphs[family.denoiser]
    feed = _feed(manifest, family, graph, sizes, _timesteps(bundle, family))
    images = [control.image for control in control_inputs(feed)]
    shared = {name: array[:1] if name in images else array for name, array in feed.items()}
    return {**shared, **without_loras(tensor.spec() for tensor in graph.inputs)}


def _tokens(family: Family) -> int:
    """Return the number of tokens of the prompt's embedding, or of the image's if there are no prompts."""
    following = [graph.network for graph in family.graphs if graph.name == family.sequence_encoder]
    return (77 if family.prompt_encoders else 1) + sum(family.networks[name].tokens for name in following)


def _timesteps(bundle: Path, family: Family) -> np.ndarray:
    scheduler = read_json(bundle / "scheduler" / "scheduler_config.json")
    return make_sampler(family.default_sampler, scheduler, 10).timesteps


def _feed(
    manifest: Manifest, family: Family, graph: Graph, sizes: Mapping[str, int], timesteps: np.ndarray
) -> Feed:
    generator = np.random.default_rng(SEED)
    config = manifest.configs[graph.network]
    controls = control_inputs(tensor.name for tensor in graph.inputs)
    images, scales = {control.image for control in controls}, {control.scale for control in controls}
    batches = {control.batch: sizes["batch"] for control in controls}
    feed = {}
    for tensor in graph.inputs:
        if tensor.name in LORA_INPUTS:
            continue
        # an image prompt of one image, and one of two
        counts = filter(is_image_count, tensor.spec().symbols())
        images_of = dict.fromkeys(counts, min(sizes["batch"], 2))
        shape = tensor.spec().shape_at({**batches, **images_of, **sizes})
        values: np.ndarray
        if tensor.name == "input_ids":
            values = generator.integers(0, config["vocab_size"], shape)
        elif tensor.name == "timestep":
            # the same timestep for the whole batch, as in every sampling step
            values = np.full(shape, generator.choice(timesteps))
        elif tensor.name in images:
            values = generator.random(shape)
        elif tensor.name in scales or tensor.name == SCALE:
            values = generator.uniform(0.3, 1.0, shape)
        elif tensor.name in family.conditioning:
            size = (family.vae_factor * sizes["height"], family.vae_factor * sizes["width"])
            values = np.tile(family.conditioning[tensor.name](*size), (shape[0], 1))
        else:
            values = generator.standard_normal(shape)
        feed[tensor.name] = values.astype(tensor.dtype)
    return feed
