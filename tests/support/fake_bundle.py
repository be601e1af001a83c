"""Fake bundles: graphs of a few operators, quick to make, with outputs that tests can compute."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import (
    SCHEMA,
    Graph,
    LoraLayer,
    LoraRoom,
    Manifest,
    Shallow,
    TensorEntry,
    write_manifest,
)
from controlnext.families import Family, get_family
from controlnext.tensor_spec import LORA_INPUTS, TensorSpec, numbered_controls
from support.fake_tokenizer import WORDS, write_tokenizer
from support.fake_vae import Nodes, vae_decoder, vae_encoder

LENGTH = 8
CACHED = "cached_hidden_states"
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "sd15": {
        "text_encoder": {"hidden_size": 6},
        "vae_decoder": {"latent_channels": 4},
        "unet": {"cross_attention_dim": 6},
    },
    "sdxl": {
        "text_encoder": {"hidden_size": 6},
        "text_encoder_2": {"hidden_size": 10, "projection_dim": 5},
        "vae_decoder": {"latent_channels": 4},
        "unet": {"cross_attention_dim": 16, "pooled": 5, "ids": 6},
    },
    "sd3": {
        "text_encoder": {"hidden_size": 6, "projection_dim": 3},
        "text_encoder_2": {"hidden_size": 10, "projection_dim": 5},
        "text_encoder_3": {"d_model": 20},
        "vae_decoder": {"latent_channels": 16},
        "transformer": {"joint_attention_dim": 20, "pooled_projection_dim": 8},
    },
}
"""Inputs and outputs of every graph of a fake bundle, by family."""
LORA_LAYERS = (LoraLayer("attn.to_q", (0, 4), (0, 6)), LoraLayer("conv", (4, 22), (6, 9), (3, 3), "input.0"))
"""The layers that a fake bundle with room for LoRAs says it has in each graph."""
VAE_CONFIG = {
    "scaling_factor": 0.5,
    "sample_size": 64,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
}
DENOISER_CONFIG = {"patch_size": 2, "pos_embed_max_size": 192, "sample_size": 8}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "shift": 3.0,
}
"""Settings for all samplers, flow matching too: each reads its own."""


def write_fake_bundle(
    directory: Path,
    family_name: str = "sdxl",
    *,
    text_encoders: bool = True,
    leave_out: Sequence[str] = (),
    force_zeros: bool = True,
    controls: int = 1,
    previews: bool = False,
    added: Mapping[str, Sequence[str]] = MappingProxyType({}),
    shallow: bool = False,
    encoder: bool = False,
    lora_rank: int = 0,
) -> Path:
    """Write a bundle of an image family to ``directory``, without the graphs ``leave_out``, and without text
    encoders if ``text_encoders`` is false. ``previews``: whether it has a decoder for them. ``added``: tokens
    added to the tokenizers. ``shallow``: whether the denoiser has a shallow part. ``encoder``: whether the
    VAE has one. ``lora_rank``: room for LoRAs of denoiser and text encoders, which add up their matrices."""
    family, sizes = get_family(family_name), dict(SIZES[family_name])
    if encoder:
        sizes["vae_encoder"] = {"moments": 2 * sizes["vae_decoder"]["latent_channels"]}
    if previews:
        sizes["preview_decoder"] = sizes["vae_decoder"]
    graphs = {}
    for spec in family.graphs:
        if spec.name not in sizes or spec.name in leave_out or (spec.optional and not text_encoders):
            continue
        spec = spec.of(DENOISER_CONFIG).with_controls(controls)
        roomy = lora_rank and spec.name in (family.denoiser, *family.prompt_encoders)
        room = LoraRoom(lora_rank, list(LORA_LAYERS)) if roomy else msgspec.UNSET
        if room:
            spec = spec.with_loras(*room.columns)
        inputs, outputs = (
            [tensor.resolve(sizes[spec.name]) for tensor in side] for side in (spec.inputs, spec.outputs)
        )
        write_graph(directory / spec.name, _body(spec.name), inputs, outputs)
        entries = [[TensorEntry.of(tensor) for tensor in side] for side in (inputs, outputs)]
        graphs[spec.name] = Graph(spec.network, "fp32", *entries, lora=room)
        if shallow and spec.name == family.denoiser:
            graphs[spec.name] = _with_shallow(directory / spec.name, graphs[spec.name])
        network = family.known_networks[spec.network]
        if network.tokenizer:
            path = directory / network.tokenizer / "tokenizer.json"
            start, words = spec.name != family.sequence_encoder, added.get(network.tokenizer, ())
            write_tokenizer(path, network.tokens or LENGTH, start, words)
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    manifest = Manifest(
        schema=SCHEMA,
        family=family.name,
        variant=next(iter(family.variants)),
        precision="fp32",
        graphs=graphs,
        configs=_configs(family, graphs, controls),
        options=dict.fromkeys(family.checkpoint_options, force_zeros),
        sources=[],
        tools={},
        files=list_files(directory),
    )
    write_manifest(directory, manifest)
    return directory


def _with_shallow(directory: Path, graph: Graph) -> Graph:
    """Cut the fake denoiser behind the only thing that it does to its latents."""
    feature = replace(graph.outputs[0].spec(), name=CACHED)
    inputs = [tensor.spec() for tensor in graph.inputs]
    outputs = [tensor.spec() for tensor in graph.outputs]
    (directory / "model.onnx").unlink()
    write_graph(directory, _denoiser, inputs, [*outputs, feature])
    reads = [spec for spec in inputs if spec.name != "sample"]
    write_graph(directory, _denoiser, [*reads, feature], outputs, "shallow.onnx")
    entry = Shallow([spec.name for spec in reads], [TensorEntry.of(feature)])
    return msgspec.structs.replace(graph, shallow=entry)


def _configs(family: Family, graphs: dict[str, Graph], controls: int) -> dict[str, dict[str, Any]]:
    """Return only the configuration keys that are read."""
    networks = {graph.network for graph in graphs.values()}
    shift = {"shift_factor": 0.0} if "shift_factor" in family.networks["vae"].read else {}
    channels = SIZES[family.name]["vae_decoder"]["latent_channels"]
    tiny = {"latent_channels": channels, "scaling_factor": 0.25, "shift_factor": 0.0}
    known = {"vae": {**VAE_CONFIG, **shift}, "preview_vae": tiny, family.denoiser: DENOISER_CONFIG}
    control = {one.network: {"out_channels": 8} for one in numbered_controls(controls)}
    return {name: known.get(name, {"vocab_size": len(WORDS)}) for name in sorted(networks)} | control


def table(width: int) -> np.ndarray:
    """Return the embeddings of the fake text encoders' words, (words, width) float32."""
    return np.random.RandomState(width).standard_normal((len(WORDS), width)).astype(np.float32)


def fake_denoiser(feed: dict[str, np.ndarray]) -> np.ndarray:
    """Compute the fake denoiser's graph, or its shallow part, in NumPy; every input changes the result."""
    feed = dict(feed)
    halved = feed.pop(CACHED) if CACHED in feed else 0.5 * feed["sample"]
    batch, _, height, width = halved.shape
    rows = feed["timestep"] / 1000
    for name, array in feed.items():
        if name in LORA_INPUTS:
            rows = rows + array.sum((1, 2))
        elif name not in _PER_STEP and not name.startswith("control_"):
            rows = rows + array.mean(tuple(range(1, array.ndim))) / _divisor(name)
    result = halved + rows.reshape(batch, 1, 1, 1)
    for suffix in _suffixes(feed):
        control = feed[f"control_image{suffix}"].mean(1, keepdims=True)
        control = control.reshape(len(control), 1, height, 8, width, 8).mean((3, 5))
        result = result + feed[f"control_scale{suffix}"].reshape(batch, 1, 1, 1) * control
    return result


_PER_STEP = ("sample", "timestep", CACHED)


def _suffixes(names: Iterable[str]) -> list[str]:
    return [name.removeprefix("control_image") for name in names if name.startswith("control_image")]


def _divisor(name: str) -> float:
    """Return the divisor of an input: sizes in pixels are large numbers."""
    return 1000.0 if name.endswith("_ids") else 1.0


def write_graph(
    directory: Path,
    body: Body,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    name: str = "model.onnx",
) -> None:
    """Write the graph of a ``body``: a function of inputs and outputs that returns nodes and arrays."""
    nodes, initializers = body(inputs, outputs)
    graph = helper.make_graph(
        [helper.make_node(operator, ins, outs, **attributes) for operator, ins, outs, attributes in nodes],
        directory.name,
        [_value(spec) for spec in inputs],
        [_value(spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    directory.mkdir(parents=True, exist_ok=True)
    # only the tables of the text encoders are that large
    external = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 256}
    onnx.save(model, directory / name, **external)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if spec.dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(spec.name, kind, spec.shape)


Body = Callable[[list[TensorSpec], list[TensorSpec]], Nodes]


def _body(graph_name: str) -> Body:
    if graph_name.startswith("text_encoder"):
        return _text_encoder
    if graph_name == "vae_encoder":
        return vae_encoder
    return vae_decoder if graph_name.endswith("_decoder") else _denoiser


def _text_encoder(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Nodes:
    """Return nodes that embed every token by table, and add up LoRAs; pooled: the first entries of the mean
    embedding."""
    loras = [tensor.name for tensor in inputs if tensor.name in LORA_INPUTS]
    nodes = [("Gather", ["table", "input_ids"], ["embedded" if loras else "prompt_embeds"], {})]
    arrays = {"table": table(outputs[0].shape[-1])}
    if loras:
        nodes += [("ReduceSum", [name, "inside"], [f"{name}_sum"], {"keepdims": 1}) for name in loras]
        nodes.append(("Sum", ["embedded", *(f"{name}_sum" for name in loras)], ["prompt_embeds"], {}))
        arrays["inside"] = np.array([1, 2])
    if len(outputs) == 1:
        return nodes, arrays
    nodes += [
        ("ReduceMean", ["prompt_embeds", "tokens"], ["mean"], {"keepdims": 0}),
        ("Slice", ["mean", "start", "end", "last"], ["text_embeds"], {}),
    ]
    ends = {"tokens": [1], "start": [0], "end": [outputs[1].shape[-1]], "last": [1]}
    return nodes, {**arrays, **{name: np.array(value) for name, value in ends.items()}}


def _denoiser(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Nodes:
    """Return the nodes of :func:`fake_denoiser`."""
    integers = {"per_row": [-1, 1, 1, 1], "channels": [1]}
    floats = {"thousand": 1000.0, "half": 0.5}
    halved = CACHED if CACHED in [tensor.name for tensor in (*inputs, *outputs)] else "halved"
    nodes = [("Div", ["timestep", "thousand"], ["time"], {})]
    if any(tensor.name == "sample" for tensor in inputs):
        nodes.append(("Mul", ["sample", "half"], [halved], {}))
    rows, terms = ["time"], [halved, "offset"]
    for tensor in inputs:
        name = tensor.name
        if name not in _PER_STEP and not name.startswith("control_"):
            integers[f"{name}_axes"] = list(range(1, len(tensor.shape)))
            floats[f"{name}_divisor"] = _divisor(name)
            # the mean of nothing is not a number, and a LoRA may have rank 0
            reduce = "ReduceSum" if name in LORA_INPUTS else "ReduceMean"
            nodes.append((reduce, [name, f"{name}_axes"], [f"{name}_mean"], {"keepdims": 0}))
            nodes.append(("Div", [f"{name}_mean", f"{name}_divisor"], [f"{name}_row"], {}))
            rows.append(f"{name}_row")
    nodes += [("Sum", rows, ["sum"], {}), ("Reshape", ["sum", "per_row"], ["offset"], {})]
    for suffix in _suffixes(tensor.name for tensor in inputs):
        grey, pooled, strength, term = (f"{name}{suffix}" for name in ("grey", "pooled", "strength", "term"))
        nodes += [
            ("ReduceMean", [f"control_image{suffix}", "channels"], [grey], {"keepdims": 1}),
            ("AveragePool", [grey], [pooled], {"kernel_shape": [8, 8], "strides": [8, 8]}),
            ("Reshape", [f"control_scale{suffix}", "per_row"], [strength], {}),
            ("Mul", [strength, pooled], [term], {}),
        ]
        terms.append(term)
    nodes.append(("Sum", terms, ["noise_pred"], {}))
    return nodes, {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in floats.items()},
    }
