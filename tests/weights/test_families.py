"""Bases of every family: what is shipped, what a directory gives, and which directory is refused in which
words."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.families import FAMILIES, Family, get_family
from controlnext.reference import SCHEDULERS
from controlnext.weights import base as bases
from controlnext.weights.base import random_base, read_base
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import canonical, empty_module, shapes_of
from controlnext.weights.original import from_original
from controlnext.weights.shipped import original_layout, shipped_config
from support.weights_models import add_text_encoders, example_inputs, rewrite_json

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
T5 = "text_encoder_3"
Copy = Callable[[str], Path]

# numbers in the weight files of the published models; SD3's positions count, they are stored
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sd3": {
        "transformer": 2_084_951_104,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    },
    "svd": {"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800},
}


@pytest.fixture
def copy(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> Copy:
    """A family's tiny base without text encoders, to be changed."""
    return lambda name: Path(shutil.copytree(tiny_checkpoint(name) / "base", tmp_path / "base"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]) -> Copy:
    """A family's tiny base with text encoders and tokenizers; tests copy it before they change it."""
    place = tmp_path_factory.mktemp("full")

    def make(name: str) -> Path:
        if not (place / name).is_dir():
            shutil.copytree(tiny_checkpoint(name) / "base", place / name)
            add_text_encoders(place / name, get_family(name))
        return place / name

    return make


@EVERY_FAMILY
@pytest.mark.export
def test_the_shipped_configurations_are_those_of_the_published_models(family: Family) -> None:
    sizes = {}
    for name, network in family.networks.items():
        shapes = shapes_of(empty_module(network, shipped_config(family, network)))
        stored = {canonical(key): shape for key, shape in shapes.items()}
        sizes[name] = sum(torch.Size(shape).numel() for shape in stored.values())
    assert sizes == PUBLISHED[family.name]


@EVERY_FAMILY
@pytest.mark.export
def test_modules_of_a_folder_equal_those_of_from_pretrained(family: Family, full: Copy) -> None:
    folder = full(family.name)
    base = read_base(family, folder, None)
    assert list(base.parts) == list(family.networks)
    for name, network in family.networks.items():
        library = {"diffusers": diffusers, "transformers": transformers}[network.library]
        reference = getattr(library, network.cls).from_pretrained(folder / name)
        module = empty_module(network, base.parts[name].config)
        state = {key: tensor.read() for key, tensor in base.parts[name].tensors.items()}
        module.load_state_dict(state, strict=True, assign=True)
        inputs = example_inputs(family, name)
        torch.testing.assert_close(module.state_dict(), reference.state_dict(), rtol=0, atol=0, msg=name)
        # Not to the last bit: the kernels of some processors depend on where in memory the weights lie.
        with torch.no_grad():
            got, wanted = module(**inputs)[0], reference(**inputs)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.export
@pytest.mark.parametrize("stored", [["shared"], ["encoder.embed_tokens"], ["shared", "encoder.embed_tokens"]])
def test_t5_is_read_whichever_name_its_embedding_was_saved_under(
    full: Copy, tmp_path: Path, stored: list[str]
) -> None:
    base = Path(shutil.copytree(full("sd3"), tmp_path / "base"))
    file = base / T5 / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors.pop("shared.weight")
    save_file({**tensors, **{f"{name}.weight": embedding.clone() for name in stored}}, file)
    found = read_base(get_family("sd3"), base, None).parts[T5].tensors
    assert torch.equal(found["shared.weight"].read(), embedding)
    assert torch.equal(found["encoder.embed_tokens.weight"].read(), embedding)


@pytest.mark.export
def test_networks_that_are_left_out_are_not_even_looked_at(full: Copy, tmp_path: Path) -> None:
    family = get_family("sd3")
    base = Path(shutil.copytree(full("sd3"), tmp_path / "base"))
    (base / T5 / "model.safetensors").unlink()
    (base / "tokenizer_3" / "tokenizer.json").unlink()
    loaded = read_base(family, base, None, [T5])
    assert set(loaded.parts) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert set(loaded.tokenizers) == {"tokenizer", "tokenizer_2"}
    with pytest.raises(CheckpointError, match="has no weights of the text_encoder_3"):
        read_base(family, base, None)


@pytest.mark.parametrize("leave_out", [[], [T5]])
def test_networks_that_are_left_out_are_not_fetched(
    monkeypatch: pytest.MonkeyPatch, leave_out: list[str]
) -> None:
    """T5-XXL is ten gigabytes."""
    files = {
        "model_index.json",
        "feature_extractor/preprocessor_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
    }
    of_t5 = {"text_encoder_3/model-00001-of-00001.safetensors", "tokenizer_3/spiece.model"}
    chosen: set[str] = set()

    def resolve(_given: str, choice: Callable[[list[str]], list[str]]) -> None:
        chosen.update(choice([*files, *of_t5, "README.md", "safety_checker/model.safetensors"]))
        raise CheckpointError("nothing is downloaded here")

    monkeypatch.setattr(bases, "resolve", resolve)
    with pytest.raises(CheckpointError, match="nothing is downloaded here"):
        read_base(get_family("sd3"), "somebody/model", None, leave_out)
    assert chosen == (files if leave_out else files | of_t5)


@pytest.mark.parametrize(
    "named",
    [
        {"steps_offset": 1, "clip_sample": False},
        {"steps_offset": 0, "clip_sample": True},
        {"steps_offset": 3},
        {},
    ],
    ids=["fixed", "old", "other", "unnamed"],
)
@pytest.mark.parametrize("kind", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_samplers_are_those_of_the_stock_pipeline(
    copy: Copy, name: str, kind: str, named: dict[str, Any]
) -> None:
    """SD1.5's pipeline fixes the options that the scheduler's file names, SDXL's does not."""
    family, base = get_family(name), copy(name)
    config = {"_class_name": kind, "beta_schedule": "scaled_linear", "beta_start": 0.00085, **named}
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    stock = getattr(diffusers, family.pipeline_class)
    scheduler = getattr(diffusers, kind).from_pretrained(base, subfolder="scheduler")
    required = [key for key, p in inspect.signature(stock).parameters.items() if p.default is p.empty]
    parts: dict[str, Any] = dict.fromkeys(required) | {"scheduler": scheduler}
    pipeline = stock(**parts | dict(family.pipeline_options))
    ours = read_base(family, base, None).scheduler.config
    for sampler in family.samplers:
        cls = getattr(diffusers, SCHEDULERS[sampler])
        made, expected = cls.from_config(ours).config, cls.from_config(pipeline.scheduler.config).config
        public = [key for key in expected if not key.startswith("_")]
        assert {key: made[key] for key in public} == {key: expected[key] for key in public}, sampler


@pytest.mark.export
def test_the_normalization_of_the_reference_image_is_read_from_the_folder(copy: Copy) -> None:
    family, base = get_family("svd"), copy("svd")
    clip = transformers.CLIPImageProcessor()
    default = {"image_mean": list(clip.image_mean), "image_std": list(clip.image_std)}
    assert read_base(family, base, None).options == default
    file = base / "feature_extractor" / "preprocessor_config.json"
    # the pipeline resizes and crops by itself, whatever is written there
    rewrite_json(file, image_mean=[0.5, 0.4, 0.3], do_resize=True, size={"shortest_edge": 99})
    assert read_base(family, base, None).options == default | {"image_mean": [0.5, 0.4, 0.3]}
    file.unlink()
    assert read_base(family, base, None).options == default
    assert random_base(family, 0).options == default


@pytest.mark.parametrize(("wanted", "given"), list(itertools.permutations(FAMILIES, 2)))
def test_a_base_of_another_family_is_refused_and_named(
    tiny_checkpoint: Callable[[str], Path], wanted: str, given: str
) -> None:
    with pytest.raises(
        CheckpointError, match=f"it looks like a base of {given} .*give `family` {given}"
    ) as caught:
        read_base(get_family(wanted), tiny_checkpoint(given) / "base", None)
    assert "\n" not in str(caught.value)
    assert f"a base of {wanted}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem", "looks"),
    [
        ({"in_channels": 8}, "in_channels is 8, expected 4 or 9", "InstructPix2Pix"),
        (
            {"use_linear_projection": True, "cross_attention_dim": 1024},
            "use_linear_projection is True, expected False",
            "Stable Diffusion 2",
        ),
    ],
)
def test_other_bases_with_the_same_networks_are_refused_and_named(
    copy: Copy, changes: dict[str, Any], problem: str, looks: str
) -> None:
    base = copy("sd15")
    rewrite_json(base / "unet" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"{problem}; it looks like {looks}: give a base of sd15"):
        read_base(get_family("sd15"), base, None)


@pytest.mark.parametrize(("wanted", "given"), [("sd15", "sd3"), ("sd3", "sdxl"), ("sd15", "svd")])
def test_a_vae_of_another_family_is_refused(
    tiny_checkpoint: Callable[[str], Path], wanted: str, given: str
) -> None:
    with pytest.raises(CheckpointError, match=r"its vae is (of another family: latent_channels|Autoenc)"):
        read_base(get_family(wanted), tiny_checkpoint(wanted) / "base", tiny_checkpoint(given) / "base")


@pytest.fixture
def toy() -> Family:
    """A family that nothing is shipped for: registry data alone."""
    return replace(get_family("sd15"), name="toy")


@pytest.mark.export
def test_a_family_without_shipped_configurations_loads_from_a_folder(
    toy: Family, full: Copy, tmp_path: Path
) -> None:
    vae = tmp_path / "my-vae.safetensors"
    shutil.copy(full("sd15") / "vae" / "diffusion_pytorch_model.safetensors", vae)
    ours, theirs = read_base(toy, full("sd15"), vae), read_base(get_family("sd15"), full("sd15"), None)
    assert ours.scheduler == theirs.scheduler
    assert ours.tokenizers == theirs.tokenizers
    for name, part in theirs.parts.items():
        assert ours.parts[name].config == part.config
        assert list(ours.parts[name].tensors) == list(part.tensors)


def test_what_needs_shipped_configurations_says_so(toy: Family, full: Copy, tmp_path: Path) -> None:
    single = tmp_path / "single.safetensors"
    save_file({"model.diffusion_model.conv_in.weight": torch.zeros(1)}, single)
    refused = pytest.raises(
        CheckpointError, match=r"no configurations of toy are shipped.*give diffusers directories"
    )
    with refused:
        random_base(toy, 0)
    with refused:
        read_base(toy, single, None)
    with refused:
        read_base(toy, full("sd15"), single)
    config = read_base(toy, full("sd15"), None).parts["unet"].config
    layout = original_layout(toy, "unet", config)
    with refused:
        from_original(
            {"input_blocks.0.0.weight": LazyTensor((1,), lambda: torch.zeros(1))}, layout, ["conv_in.weight"]
        )
