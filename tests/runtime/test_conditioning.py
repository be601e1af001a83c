"""The denoiser's text inputs against ``encode_prompt`` of the stock pipelines, on random text encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from torch import nn

from controlnext.bundle.manifest import Manifest
from controlnext.engines import Backend, Engine
from controlnext.errors import InputError
from controlnext.export.adapters import ADAPTERS
from controlnext.families import Family, GraphSpec, get_family
from controlnext.runtime.bundle import Bundle
from controlnext.runtime.conditioning import Conditioner
from controlnext.runtime.request import Request
from support.fake_bundle import LENGTH, SIZES, write_fake_bundle
from support.fake_tokenizer import WORDS
from support.recipe import fill, rand

T5 = "text_encoder_3"
BUNDLES = {"sd15": ("sd15", []), "sdxl": ("sdxl", []), "sd3": ("sd3", []), "sd3 without T5": ("sd3", [T5])}
SMALL: dict[str, dict[str, Any]] = {
    "CLIP": {
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "T5": {"num_layers": 2, "num_heads": 2, "d_kv": 4, "d_ff": 12},
}


def _network(family: Family, folder: str, seed: int) -> nn.Module:
    """A random text encoder of the class and the widths that the registry and the fake bundle say."""
    cls = getattr(transformers, family.networks[folder].cls)
    kind = "T5" if cls is transformers.T5EncoderModel else "CLIP"
    config = {"vocab_size": len(WORDS), **SIZES[family.name][folder], **SMALL[kind]}
    return fill(cls(cls.config_class(**config)), seed)


class _TorchEngine(Engine):
    def __init__(self, manifest: Manifest, spec: GraphSpec, network: nn.Module) -> None:
        super().__init__(manifest, spec.name)
        self._module = ADAPTERS[spec.wrapper](network)

    def _run(self, feed: Mapping[str, np.ndarray], replaced: Collection[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        with torch.no_grad():
            tensors = self._module(torch.from_numpy(feed["input_ids"]))
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.outputs, tensors, strict=True)}

    def _close(self) -> None:
        pass


class _TorchBackend(Backend):
    """Runs the text encoders with PyTorch, so that only what the runtime does differs."""

    def __init__(self, family: Family, networks: Mapping[str, nn.Module]) -> None:
        self._graphs, self._networks = {spec.name: spec for spec in family.graphs}, networks

    def open(self, bundle: Path, manifest: Manifest, graph_name: str, *, cache: bool = True) -> Engine:  # noqa: ARG002
        return _TorchEngine(manifest, self._graphs[graph_name], self._networks[graph_name])


def _pipeline(bundle: Bundle, networks: Mapping[str, nn.Module]) -> Any:
    """The stock pipeline with the same text encoders and tokenizers, and as little else as it allows."""
    family = bundle.family
    parts: dict[str, Any] = dict.fromkeys([*family.networks, "scheduler"])
    for name, network in networks.items():
        folder = family.networks[name].tokenizer
        parts[name] = network
        parts[folder] = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(bundle.path / folder / "tokenizer.json"),
            pad_token="<pad>",
            model_max_length=family.networks[name].tokens or LENGTH,
        )
    if family.sequence_encoder and family.sequence_encoder not in networks:
        parts[family.networks[family.sequence_encoder].tokenizer] = None
        parts[family.denoiser] = diffusers.SD3Transformer2DModel(
            num_layers=1, num_attention_heads=1, attention_head_dim=4, **SIZES[family.name][family.denoiser]
        )
    return getattr(diffusers, family.pipeline_class)(**parts, **family.pipeline_options)


@torch.no_grad()
def _stock(pipe: Any, family: Family, request: Request, guided: bool) -> dict[str, np.ndarray]:
    """The denoiser's inputs as the pipeline's own call puts them together."""
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "device": "cpu",
        "num_images_per_prompt": request.num_images_per_prompt,
        "do_classifier_free_guidance": guided,
        "negative_prompt": request.negative_prompt,
    }
    # the encoders may be given different prompts; None is the first one for all
    others = {f"prompt{name[-2:]}": None for name in ("tokenizer_2", "tokenizer_3") if hasattr(pipe, name)}
    hidden, negative_hidden, *pooled = pipe.encode_prompt(**arguments, **others)
    pairs = [(hidden, negative_hidden), tuple(pooled)] if pooled else [(hidden, negative_hidden)]
    names = ["encoder_hidden_states", family.pooled_input]
    return {
        name: (torch.cat([negative, positive]) if guided else positive).numpy()
        for name, (positive, negative) in zip(names, pairs, strict=False)
    }


@pytest.fixture(scope="module", params=BUNDLES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Any]:
    """A bundle and the stock pipeline on the same networks."""
    name, leave_out = BUNDLES[request.param]
    family = get_family(name)
    path = write_fake_bundle(tmp_path_factory.mktemp("text") / "bundle", name, leave_out=leave_out)
    folders = [*family.prompt_encoders, family.sequence_encoder]
    networks = {
        folder: _network(family, folder, seed)
        for seed, folder in enumerate(folders)
        if folder and folder not in leave_out
    }
    bundle = Bundle(path, _TorchBackend(family, networks), cache=False)
    return bundle, _pipeline(bundle, networks)


LONG = "a red circle on a blue square on green"


@pytest.mark.parametrize(
    ("options", "guided"),
    [
        ({"prompt": "a red circle"}, False),
        ({"prompt": "a red circle"}, True),
        ({"prompt": "a red circle", "negative_prompt": ""}, True),
        ({"prompt": LONG, "negative_prompt": "green"}, True),
        ({"prompt": ["a red circle", LONG], "num_images_per_prompt": 3}, False),
        ({"prompt": ["blue", "on a square"], "num_images_per_prompt": 2}, True),
        ({"prompt": ["blue", "red"], "negative_prompt": ["a", LONG], "num_images_per_prompt": 2}, True),
    ],
)
def test_the_inputs_are_those_of_the_stock_pipeline(
    pair: tuple[Bundle, Any], options: dict[str, Any], guided: bool
) -> None:
    bundle, pipe = pair
    request = Request(**options)
    got, wanted = Conditioner(bundle)(request, guided), _stock(pipe, bundle.family, request, guided)
    assert set(got) == set(wanted)
    for name, array in got.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-6, err_msg=name)


def test_given_embeddings_are_passed_on(pair: tuple[Bundle, Any]) -> None:
    """Those of a missing negative prompt are made to fit."""
    family = pair[0].family
    sizes = SIZES[family.name][family.denoiser]
    width = sizes.get("cross_attention_dim", sizes.get("joint_attention_dim"))
    pooled_width = sizes.get("pooled", sizes.get("pooled_projection_dim"))
    tokens = LENGTH + (256 if family.sequence_encoder else 0)
    given = {"prompt_embeds": rand(0, 2, tokens, width)}
    if pooled_width:
        given["pooled_prompt_embeds"] = rand(1, 2, pooled_width)
    got = Conditioner(pair[0])(Request(**given), True)
    assert set(got) == {"encoder_hidden_states", family.pooled_input} - {""}
    for array, positive in zip(got.values(), given.values(), strict=True):
        np.testing.assert_array_equal(array[2:], positive)
        assert array[:2].shape == positive.shape


def test_pooled_embeddings_are_refused_where_the_model_takes_none(tmp_path: Path) -> None:
    with Bundle.open(write_fake_bundle(tmp_path / "bundle", "sd15"), cache=False) as bundle:
        request = Request(prompt="a red circle", pooled_prompt_embeds=rand(0, 1, 5))
        with pytest.raises(InputError, match="pooled_prompt_embeds is not supported by this model"):
            Conditioner(bundle)(request, False)
