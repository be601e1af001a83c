"""Clip skip: the embeddings of diffusers' own pipelines, of a negative prompt too, and a whole export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from controlnext.bundle.format import list_files
from controlnext.bundle.manifest import Graph, TensorEntry
from controlnext.bundle.reader import read_manifest
from controlnext.errors import InputError
from controlnext.evaluation.parity import measure
from controlnext.export import export_bundle
from controlnext.export.adapters import wrap
from controlnext.families import GraphSpec, get_family
from controlnext.models.cross_normalization import CrossNormalization
from controlnext.reference import reference_pipeline
from controlnext.runtime.conditioning import Conditioner
from controlnext.runtime.request import Request
from controlnext.types import Precision
from controlnext.weights import Checkpoint, bundle_checkpoint, load_checkpoint
from controlnext.weights.clip_skip import check_clip_skip
from support.exports import once
from support.roomy import write_roomy

NEGATIVE = "grey fog"
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="session")
def checkpoint(shared_folder: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Checkpoint]:
    """Load the tiny model of a family with text encoders."""

    def load(name: str, **options: Any) -> Checkpoint:
        folder = once(shared_folder / f"roomy-{name}", partial(write_roomy, name, tiny_checkpoint))
        control = folder / "control.safetensors"
        return load_checkpoint(get_family(name), base=folder / "base", control=control, **options)

    return load


class TextBundle:
    """A bundle whose text encoders PyTorch runs."""

    def __init__(self, checkpoint: Checkpoint, path: Path) -> None:
        self.path, self.family, self._checkpoint = path, checkpoint.family, checkpoint
        for name, content in checkpoint.tokenizers.items():
            (path / name).mkdir(parents=True)
            (path / name / "tokenizer.json").write_text(content, encoding="utf-8")
        graphs = {spec.name: self._entry(spec) for spec in checkpoint.graphs}
        self.manifest = SimpleNamespace(
            family=self.family.name, graphs=graphs, options=checkpoint.options, files=list_files(path)
        )

    def _entry(self, spec: GraphSpec) -> Graph:
        sizes = spec.sizes(self._checkpoint.networks[spec.network].config)
        inputs = [TensorEntry.of(tensor.resolve(sizes)) for tensor in spec.inputs]
        return Graph(spec.network, Precision.FP32, inputs, [])

    def engine(self, name: str) -> Any:
        (spec,) = (spec for spec in self._checkpoint.graphs if spec.name == name)
        network = self._checkpoint.networks[spec.network].module()
        module = wrap(spec, network, [], CrossNormalization(self._checkpoint.variant.injection))

        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = module(torch.from_numpy(feed["input_ids"]))
            return {t.name: value.numpy() for t, value in zip(spec.outputs, outputs, strict=True)}

        return SimpleNamespace(run=run)


def diffusers_embeddings(reference: Any, clip_skip: int) -> list[np.ndarray]:
    """Prompt's, negative prompt's, and those pooled where the family has them."""
    further = {"prompt_2": None, "prompt_3": None} if reference.family.sequence_encoder else {}
    device = {"device": torch.device("cpu"), "num_images_per_prompt": 1}
    with torch.no_grad():
        made = reference.pipeline.encode_prompt(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            do_classifier_free_guidance=True,
            clip_skip=clip_skip or None,
            **further,
            **device,
        )
    return [embedding.numpy() for embedding in made]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_embeddings_are_those_of_diffusers(
    checkpoint: Callable[..., Checkpoint], family: str, tmp_path: Path
) -> None:
    """Of the prompt, which skips layers, of the negative one, which does not, and both pooled ones."""
    loaded = checkpoint(family)
    reference = reference_pipeline(replace(loaded, clip_skip=1))
    request = Request(prompt=PROMPT, negative_prompt=NEGATIVE, control_image=None)
    plain = diffusers_embeddings(reference, 0)
    for clip_skip in (0, 1, 2):
        bundle: Any = TextBundle(replace(loaded, clip_skip=clip_skip), tmp_path / str(clip_skip))
        made = Conditioner(bundle)(request, guided=True)
        hidden, negative, *pooled = diffusers_embeddings(reference, clip_skip)
        expected = {"encoder_hidden_states": [negative, hidden]}
        if pooled:
            expected[loaded.family.pooled_input] = pooled[::-1]
        assert made.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_allclose(made[name], np.concatenate(rows), rtol=1e-5, atol=1e-6)
        assert np.array_equal(plain[0], hidden) == (clip_skip == 0)
        assert np.array_equal(plain[1], negative)


@pytest.mark.export
def test_an_export_is_compared_with_the_reference(
    checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    """Graphs and a guided run; the manifest has the number, and so has the checkpoint read back."""
    loaded = checkpoint("sd15", clip_skip=2)
    manifest = export_bundle(
        loaded, "fp32", tmp_path / "bundle", measure=lambda bundle: measure(bundle, loaded, lambda *_: None)
    )
    assert manifest.clip_skip == 2
    assert "text_encoder: skipped_prompt_embeds" in [row.name for row in manifest.parity]
    assert read_manifest(tmp_path / "bundle").clip_skip == 2
    assert bundle_checkpoint(tmp_path / "bundle").clip_skip == 2


def depths(**layers: int) -> Any:
    """A base whose text encoders have so many layers."""
    parts = {name: SimpleNamespace(config={"num_hidden_layers": number}) for name, number in layers.items()}
    return SimpleNamespace(parts=parts)


@pytest.mark.parametrize("clip_skip", [3, -1, True, 1.0])
def test_a_number_that_the_encoders_do_not_have(clip_skip: Any) -> None:
    """The encoder with the fewest layers decides."""
    sdxl, base = get_family("sdxl"), depths(text_encoder=5, text_encoder_2=3)
    check_clip_skip(sdxl, base, 2)
    with pytest.raises(InputError) as caught:
        check_clip_skip(sdxl, base, clip_skip)
    assert caught.value.argument == "clip_skip"
    assert str(caught.value) == (
        f"clip_skip is {clip_skip!r}: it must be an integer from 0 (none) to 2"
        " (layers of text_encoder 5, text_encoder_2 3)"
    )


def test_without_text_encoders_nothing_can_be_skipped(tiny_checkpoint: Callable[[str], Path]) -> None:
    """In a family that has none, and in a base that comes without."""
    folder = tiny_checkpoint("sdxl")
    weights = {"base": folder / "base", "control": folder / "control.safetensors"}
    with pytest.raises(InputError, match="clip_skip is 1: sdxl has no text encoder, or this base"):
        load_checkpoint(get_family("sdxl"), clip_skip=1, **weights)
    check_clip_skip(get_family("svd"), depths(), 0)
    with pytest.raises(InputError, match="clip_skip is 2: svd has no text encoder, or this base"):
        check_clip_skip(get_family("svd"), depths(), 2)
