"""A bundle whose graphs are a few operators each: quick to make, with answers that can be worked out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from controlnext.manifest import Graph, Manifest, TensorEntry, list_files, write_manifest
from controlnext.registry import get_family
from controlnext.specs import TensorSpec

WORDS = ("<pad>", "<start>", "<end>", "<unknown>", "a", "red", "blue", "circle", "on", "green", "square")
LENGTH = 8
SIZES = {
    "text_encoder": {"hidden_size": 6, "projection_dim": 0},
    "text_encoder_2": {"hidden_size": 10, "projection_dim": 5},
    "vae_decoder": {"latent_channels": 4},
    "unet": {"cross_attention_dim": 16, "pooled": 5, "ids": 6},
}
VAE_CONFIG = {"scaling_factor": 0.5, "latents_mean": None, "latents_std": None, "shift_factor": None}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def write_fake_bundle(folder: Path, *, text_encoders: bool = True, force_zeros: bool = True) -> Path:
    """A bundle of the sdxl family in ``folder``, with or without text encoders."""
    family = get_family("sdxl")
    networks = ("text_encoder", "text_encoder_2", "vae_decoder", "unet")
    graphs = {}
    for spec in family.graphs:
        if spec.folder not in networks or (spec.optional and not text_encoders):
            continue
        inputs = [tensor.resolve(SIZES[spec.folder]) for tensor in spec.inputs]
        outputs = [tensor.resolve(SIZES[spec.folder]) for tensor in spec.outputs]
        _write_graph(folder / spec.folder, inputs, outputs)
        tensors = [[TensorEntry.of(tensor) for tensor in side] for side in (inputs, outputs)]
        graphs[spec.folder] = Graph(spec.network, "fp32", *tensors)
        tokenizer = family.networks[spec.network].tokenizer
        if tokenizer:
            write_tokenizer(folder / tokenizer / "tokenizer.json")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    manifest = Manifest(
        schema=1,
        family="sdxl",
        variant="sdxl",
        precision="fp32",
        graphs=graphs,
        configs={"vae": VAE_CONFIG},
        options={"force_zeros_for_empty_prompt": force_zeros},
        sources=[],
        tools={},
        files=list_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def table(width: int) -> np.ndarray:
    """The embedding of every word of the fake text encoders, (words, width) float32."""
    return np.random.RandomState(width).standard_normal((len(WORDS), width)).astype(np.float32)


def fake_denoiser(feed: dict[str, np.ndarray]) -> np.ndarray:
    """What the fake denoiser's graph computes, in NumPy: every input changes the result."""
    batch, _, height, width = feed["sample"].shape
    control = feed["control_image"].mean(1, keepdims=True)
    control = control.reshape(len(control), 1, height, 8, width, 8).mean((3, 5))
    rows = (
        feed["timestep"] / 1000
        + feed["encoder_hidden_states"].mean((1, 2))
        + feed["text_embeds"].mean(1)
        + feed["time_ids"].mean(1) / 1000
    )
    strength = feed["control_scale"].reshape(batch, 1, 1, 1)
    return 0.5 * feed["sample"] + rows.reshape(batch, 1, 1, 1) + strength * control


def write_tokenizer(path: Path) -> None:
    """A tokenizer of whole words that cuts off and pads to ``LENGTH`` tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_token="<pad>", pad_id=0)
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


def _write_graph(folder: Path, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    nodes, initializers = _BODIES[folder.name]()
    graph = helper.make_graph(
        [helper.make_node(operator, ins, outs, **attributes) for operator, ins, outs, attributes in nodes],
        folder.name,
        [_value(spec) for spec in inputs],
        [_value(spec) for spec in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(parents=True)
    # only the tables of the text encoders are that large
    external = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 256}
    onnx.save(model, folder / "model.onnx", **external)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if spec.dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(spec.name, kind, spec.shape)


Body = tuple[list[tuple[str, list[str], list[str], dict[str, object]]], dict[str, np.ndarray]]


def _text_encoder() -> Body:
    return [("Gather", ["table", "input_ids"], ["prompt_embeds"], {})], {"table": table(6)}


def _text_encoder_2() -> Body:
    nodes = [
        ("Gather", ["table", "input_ids"], ["prompt_embeds"], {}),
        ("ReduceMean", ["prompt_embeds", "tokens"], ["mean"], {"keepdims": 0}),
        ("Slice", ["mean", "start", "end", "last"], ["text_embeds"], {}),
    ]
    arrays = {"tokens": [1], "start": [0], "end": [5], "last": [1]}
    return nodes, {"table": table(10), **{name: np.array(value) for name, value in arrays.items()}}


def _vae_decoder() -> Body:
    nodes = [
        ("Slice", ["latent_sample", "start", "end", "axis"], ["three"], {}),
        ("Resize", ["three", "", "scales"], ["sample"], {"mode": "nearest"}),
    ]
    arrays = {"start": np.array([0]), "end": np.array([3]), "axis": np.array([1])}
    return nodes, {**arrays, "scales": np.array([1, 1, 8, 8], np.float32)}


def _unet() -> Body:
    nodes = [
        ("ReduceMean", ["encoder_hidden_states", "axes_12"], ["hidden"], {"keepdims": 0}),
        ("ReduceMean", ["text_embeds", "axes_1"], ["pooled"], {"keepdims": 0}),
        ("ReduceMean", ["time_ids", "axes_1"], ["sizes"], {"keepdims": 0}),
        ("Add", ["timestep", "sizes"], ["numbers"], {}),
        ("Div", ["numbers", "thousand"], ["small"], {}),
        ("Sum", ["small", "hidden", "pooled"], ["rows"], {}),
        ("Reshape", ["rows", "per_row"], ["offset"], {}),
        ("ReduceMean", ["control_image", "axes_1"], ["grey"], {"keepdims": 1}),
        ("AveragePool", ["grey"], ["control"], {"kernel_shape": [8, 8], "strides": [8, 8]}),
        ("Reshape", ["control_scale", "per_row"], ["strength"], {}),
        ("Mul", ["strength", "control"], ["controlled"], {}),
        ("Mul", ["sample", "half"], ["halved"], {}),
        ("Sum", ["halved", "offset", "controlled"], ["noise_pred"], {}),
    ]
    integers = {"axes_12": [1, 2], "axes_1": [1], "per_row": [-1, 1, 1, 1]}
    floats = {"thousand": 1000.0, "half": 0.5}
    return nodes, {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in floats.items()},
    }


_BODIES = {
    "text_encoder": _text_encoder,
    "text_encoder_2": _text_encoder_2,
    "vae_decoder": _vae_decoder,
    "unet": _unet,
}
