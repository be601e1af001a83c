"""A family that the project does not have, made of registry data alone: everything works on it as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from controlnext import families as registry
from controlnext.bundle.reader import read_manifest
from controlnext.engines import open_engine
from controlnext.errors import CheckpointError
from controlnext.evaluation.parity import measure
from controlnext.export import export_bundle
from controlnext.families import (
    get_family,
)
from controlnext.models.control_module import ControlModule
from controlnext.reference import reference_pipeline
from controlnext.runtime import Pipeline
from controlnext.weights import Checkpoint, bundle_checkpoint, load_checkpoint
from support.cli import Cli
from support.recipe import drawing, fill, numbers, rand
from support.toy_family import EARLY, GRAPHS, LATE, TOY

pytestmark = pytest.mark.export


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FAMILIES", MappingProxyType({**registry.FAMILIES, "toy": TOY}))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder (``base``) and the control weights of both variants, trained UNet tensors beside."""
    folder = tmp_path_factory.mktemp("toy")
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        conv_in_kernel=5,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )
    words = CLIPTextConfig(
        vocab_size=12,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    networks = {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(words)}
    for seed, (name, network) in enumerate(networks.items()):
        fill(network, seed).save_pretrained(folder / "base" / name)
    tokenizer().save_pretrained(folder / "base" / "tokenizer")
    diffusers.DDIMScheduler(clip_sample=False, steps_offset=1).save_pretrained(folder / "base" / "scheduler")
    for seed, (name, spec) in enumerate({"early": EARLY, "late": LATE}.items()):
        (folder / name).mkdir()
        save_file(fill(ControlModule(spec), seed).state_dict(), folder / name / "controlnet.safetensors")
    trained = {"conv_out.weight": unet.conv_out.weight.shape, "conv_in.bias": unet.conv_in.bias.shape}
    increments = {name: 0.1 * tensor for name, tensor in numbers(trained, 9).items()}
    save_file(increments, folder / "early" / "unet.safetensors")
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "a", "red", "blue", "circle", "square"]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="module")
def checkpoint(files: Path) -> Checkpoint:
    return load_checkpoint(get_family("toy"), base=files / "base", control=files / "early")


@pytest.fixture(scope="module")
def bundle(files: Path, checkpoint: Checkpoint) -> Path:
    """Exported, and measured against PyTorch."""
    folder = files / "bundle"
    measured = partial(measure, checkpoint=checkpoint, progress=lambda _stage, _fraction: None)
    export_bundle(checkpoint, "fp32", folder, measure=measured)
    return folder


def test_the_control_weights_tell_the_variant(files: Path, checkpoint: Checkpoint) -> None:
    late = load_checkpoint(TOY, base=files / "base", control=files / "late")
    assert (checkpoint.variant.name, late.variant.name) == ("early", "late")
    with pytest.raises(
        CheckpointError, match=r"not fit `family` toy `variant` late: .* `variant` early; give"
    ):
        load_checkpoint(TOY, variant="late", base=files / "base", control=files / "early")


def test_other_families_messages_know_it(files: Path, tiny_checkpoint_dir: Path) -> None:
    """And its messages know the others."""
    base, control = tiny_checkpoint_dir / "base", tiny_checkpoint_dir / "control.safetensors"
    with pytest.raises(CheckpointError, match="the control module of `family` toy `variant` early"):
        load_checkpoint(get_family("sdxl"), base=base, control=files / "early")
    with pytest.raises(CheckpointError, match=r"does not fit `family` toy: .* `family` sdxl"):
        load_checkpoint(TOY, base=files / "base", control=control)
    with pytest.raises(CheckpointError, match=r"it looks like a base of toy \(Toy Diffusion\)"):
        load_checkpoint(get_family("sdxl"), base=files / "base", control=control)


def test_trained_tensors_beside_the_control_are_increments(files: Path, checkpoint: Checkpoint) -> None:
    """As the entry says that they are published."""
    base = load_file(files / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    increments = load_file(files / "early" / "unet.safetensors")
    for name, tensor in base.items():
        expected = tensor + increments[name] if name in increments else tensor
        assert torch.equal(checkpoint.networks["unet"].tensors[name], expected)


def test_parity_was_measured(bundle: Path) -> None:
    """Every graph, then a whole run: an export whose rows miss their limits is not kept."""
    rows = read_manifest(bundle).parity
    assert {row.name.replace(",", ":").partition(":")[0] for row in rows} == {*GRAPHS, "latents", "image"}
    assert all(row.passed for row in rows)


@torch.no_grad()
def test_the_graph_injects_what_the_entry_says(bundle: Path, checkpoint: Checkpoint) -> None:
    """Behind conv_in: normalized, then pooled from unpadded sizes; 0.7 sigmoid(scale) of it is added."""
    feed = {
        "sample": rand(0, 2, 4, 9, 12),
        "timestep": np.float32([77, 500]),
        "encoder_hidden_states": rand(1, 2, 5, 24),
        "control_image": rand(2, 2, 3, 36, 48, kind="uniform"),
        "control_scale": np.float32([0.4, -1.5]),
    }
    inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
    unet, control = checkpoint.networks["unet"].module(), checkpoint.networks["control"].module()
    c = control(inputs.pop("control_image"), inputs["timestep"])
    strength = 0.7 * torch.sigmoid(inputs.pop("control_scale"))[:, None, None, None]
    assert c.shape == (2, 16, 8, 11)

    def add(_module: object, _args: object, x: torch.Tensor) -> torch.Tensor:
        (mean_x, std_x), (mean_c, std_c) = (
            (t.mean((1, 2, 3), keepdim=True), t.std((1, 2, 3), keepdim=True)) for t in (x, c)
        )
        normalized = (c - mean_c) / (std_c + 1e-3) * std_x + mean_x
        return x + strength * F.adaptive_avg_pool2d(normalized, x.shape[-2:])

    unet.conv_in.register_forward_hook(add)
    wanted = unet(**inputs).sample.numpy()
    with open_engine(bundle, read_manifest(bundle), "unet", cache=False) as engine:
        got = engine.run(feed)["noise_pred"]
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("sampler", TOY.samplers)
def test_a_run_equals_pytorchs(bundle: Path, checkpoint: Checkpoint, sampler: str) -> None:
    """Prompts, guidance with its own scale in the unconditional half, a control that ends before the run."""
    arguments = {
        "prompt": ["a red circle", "blue square"],
        "control_image": [drawing(1, 48, 64), drawing(2, 48, 64)],
        "control_scale": [0.8, -0.3],
        "control_end": 0.7,
        "num_images_per_prompt": 2,
        "height": 64,
        "width": 48,
        "sampler": sampler,
        "seed": 4,
    }
    wanted = reference_pipeline(checkpoint)(**arguments)
    with Pipeline.load(bundle, cache=False) as pipe:
        got = pipe(**arguments, output_type="np")
    assert got.images.shape == (4, 64, 48, 3)
    assert np.linalg.norm(got.latents - wanted.latents) < 1e-4 * np.linalg.norm(wanted.latents)
    assert np.abs(got.images - wanted.images).max() < 1e-3


def test_the_bundle_gives_back_the_checkpoint(bundle: Path, checkpoint: Checkpoint) -> None:
    found = bundle_checkpoint(bundle)
    assert (found.family, found.variant.name) == (TOY, "early")
    assert found.networks.keys() == checkpoint.networks.keys()
    for name in ("unet", "control", "text_encoder"):
        wanted = checkpoint.networks[name].tensors
        tensors = found.networks[name].tensors
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def test_the_commands_take_it(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    inspected = cli("inspect", bundle, "--json")
    content = json.loads(inspected.out)
    assert (inspected.status, content["family"], content["variant"]) == (0, "toy", "early")
    assert content["graphs"]["unet"]["inputs"][3]["shape"] == ["control_batch", 3, "4*height", "4*width"]
    drawing(1, 48, 64).save(tmp_path / "control.png")
    options = ("--prompt", "a red circle", "--control-image", tmp_path / "control.png")
    done = cli("run", bundle, *options, "--output", tmp_path / "out.png")
    assert done.status == 0, done.err
    assert (tmp_path / "out.png").is_file()
