"""Single-file checkpoints under their original names: the key conversion, held against diffusers' own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.families import FAMILIES, Family, get_family
from controlnext.weights import base as bases
from controlnext.weights import shipped
from controlnext.weights.base import Base, read_base
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import canonical, empty_module, match, shapes_of
from controlnext.weights.original import Layout, from_original
from controlnext.weights.shipped import original_layout, section, shipped_config
from support.weights_models import PREFIXES, SDXL, originals, write_single_file

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
VIDEO = get_family("svd")
# diffusers has no converter for SVD
OF_DIFFUSERS = pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if family is not VIDEO], ids=lambda family: family.name
)


@dataclass
class FullSize:
    """The full-size networks and the checkpoint that holds them, without memory for the weights."""

    modules: dict[str, torch.nn.Module]
    layouts: dict[str, Layout]
    checkpoint: dict[str, torch.Tensor]


@cache
def full_size(family_name: str) -> FullSize:
    family, full = get_family(family_name), FullSize({}, {}, {})
    for name, network in family.networks.items():
        config = shipped_config(family, network)
        full.modules[name] = empty_module(network, config)
        full.layouts[name] = original_layout(family, name, config)
        tensors = full.modules[name].state_dict()
        full.checkpoint |= originals(family, name, tensors, full.layouts[name])
    return full


def converted_by_diffusers(
    family: Family, name: str, module: torch.nn.Module, checkpoint: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What diffusers makes of one network of a single-file checkpoint."""
    prefix, tensors = PREFIXES[family.name][name], dict(checkpoint)
    if name == "transformer":
        return single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(tensors)
    if name == "unet":
        return single_file_utils.convert_ldm_unet_checkpoint(tensors, dict(module.config))
    if name == "vae":
        return single_file_utils.convert_ldm_vae_checkpoint(tensors, dict(module.config))
    if name == "text_encoder_3":
        return single_file_utils.convert_sd3_t5_checkpoint_to_diffusers(tensors)
    if "embedders.1" in prefix:
        return single_file_utils.convert_open_clip_checkpoint(module, tensors, prefix=prefix)
    return single_file_utils.convert_ldm_clip_checkpoint(tensors, prefix)


def test_full_size_networks_have_the_published_number_of_tensors() -> None:
    checkpoint = full_size("sdxl").checkpoint
    counts = {name: len(module.state_dict()) for name, module in full_size("sdxl").modules.items()}
    assert counts == {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 517}
    # sd_xl_base_1.0.safetensors has 2515: these, CLIP's position ids and its logit scale
    assert len(checkpoint) == 2513
    assert checkpoint["model.diffusion_model.label_emb.0.0.weight"].shape == (1280, 2816)
    assert checkpoint["conditioner.embedders.1.model.text_projection"].shape == (1280, 1280)


@OF_DIFFUSERS
@pytest.mark.export
def test_conversion_equals_that_of_diffusers(family: Family) -> None:
    """Every tensor that diffusers passes on unchanged has the name that diffusers gives it."""
    full = full_size(family.name)
    for name, module in full.modules.items():
        theirs = converted_by_diffusers(family, name, module, full.checkpoint)
        theirs = {canonical(key): tensor for key, tensor in theirs.items()}
        prefix, layout = PREFIXES[family.name][name], full.layouts[name]
        origins = {canonical(key): prefix + layout(key).name for key in module.state_dict()}
        same = {key for key, tensor in theirs.items() if tensor is full.checkpoint.get(origins[key])}
        # SD3's first CLIP has no projection in the file; diffusers adds the identity later
        assert origins.keys() - theirs.keys() <= {"text_projection.weight"}
        changed = ("mid_block.attentions", "_proj.", "projection", ".to_", "norm_out", "norm1_context")
        assert all(any(part in key for part in changed) for key in theirs.keys() - same)


# every kind of name that the original SVD has, by diffusers' script convert_svd_to_diffusers.py
SVD_NAMES = {
    "unet": {
        "add_embedding.linear_1.weight": "label_emb.0.0.weight",
        "time_embedding.linear_2.bias": "time_embed.2.bias",
        "conv_in.weight": "input_blocks.0.0.weight",
        "conv_norm_out.weight": "out.0.weight",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "down_blocks.1.resnets.0.spatial_res_block.norm1.weight": "input_blocks.4.0.in_layers.0.weight",
        "down_blocks.1.resnets.0.spatial_res_block.conv_shortcut.bias": (
            "input_blocks.4.0.skip_connection.bias"
        ),
        "down_blocks.1.resnets.0.temporal_res_block.conv1.weight": (
            "input_blocks.4.0.time_stack.in_layers.2.weight"
        ),
        "down_blocks.1.resnets.0.temporal_res_block.time_emb_proj.bias": (
            "input_blocks.4.0.time_stack.emb_layers.1.bias"
        ),
        "down_blocks.1.resnets.0.time_mixer.mix_factor": "input_blocks.4.0.time_mixer.mix_factor",
        "down_blocks.1.attentions.1.proj_in.weight": "input_blocks.5.1.proj_in.weight",
        "down_blocks.1.attentions.1.time_pos_embed.linear_1.weight": (
            "input_blocks.5.1.time_pos_embed.0.weight"
        ),
        "down_blocks.1.attentions.1.time_pos_embed.linear_2.bias": "input_blocks.5.1.time_pos_embed.2.bias",
        "down_blocks.1.attentions.1.time_mixer.mix_factor": "input_blocks.5.1.time_mixer.mix_factor",
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight": (
            "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "down_blocks.1.attentions.1.temporal_transformer_blocks.0.ff_in.net.0.proj.weight": (
            "input_blocks.5.1.time_stack.0.ff_in.net.0.proj.weight"
        ),
        "mid_block.resnets.1.temporal_res_block.norm2.bias": "middle_block.2.time_stack.out_layers.0.bias",
        "mid_block.attentions.0.norm.weight": "middle_block.1.norm.weight",
        "up_blocks.0.upsamplers.0.conv.bias": "output_blocks.2.1.conv.bias",
        "up_blocks.1.upsamplers.0.conv.bias": "output_blocks.5.2.conv.bias",
        "up_blocks.3.resnets.2.spatial_res_block.conv2.weight": "output_blocks.11.0.out_layers.3.weight",
        "up_blocks.3.attentions.2.temporal_transformer_blocks.0.norm_in.bias": (
            "output_blocks.11.1.time_stack.0.norm_in.bias"
        ),
    },
    "vae": {
        "quant_conv.weight": "quant_conv.weight",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.mid_block.attentions.0.to_q.weight": "encoder.mid.attn_1.q.weight",
        "decoder.conv_in.weight": "decoder.conv_in.weight",
        "decoder.mid_block.attentions.0.group_norm.bias": "decoder.mid.attn_1.norm.bias",
        "decoder.mid_block.resnets.1.spatial_res_block.conv2.weight": "decoder.mid.block_2.conv2.weight",
        "decoder.mid_block.resnets.1.temporal_res_block.norm2.bias": (
            "decoder.mid.block_2.time_stack.out_layers.0.bias"
        ),
        "decoder.mid_block.resnets.0.time_mixer.mix_factor": "decoder.mid.block_1.mix_factor",
        "decoder.up_blocks.0.resnets.2.spatial_res_block.norm1.weight": "decoder.up.3.block.2.norm1.weight",
        "decoder.up_blocks.2.resnets.0.spatial_res_block.conv_shortcut.weight": (
            "decoder.up.1.block.0.nin_shortcut.weight"
        ),
        "decoder.up_blocks.3.resnets.1.temporal_res_block.conv2.weight": (
            "decoder.up.0.block.1.time_stack.out_layers.3.weight"
        ),
        "decoder.up_blocks.3.resnets.1.time_mixer.mix_factor": "decoder.up.0.block.1.mix_factor",
        "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.3.upsample.conv.weight",
        "decoder.time_conv_out.weight": "decoder.conv_out.time_mix_conv.weight",
        "decoder.conv_norm_out.weight": "decoder.norm_out.weight",
    },
    "image_encoder": {
        "visual_projection.weight": "proj",
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.pre_layrnorm.bias": "ln_pre.bias",
        "vision_model.post_layernorm.weight": "ln_post.weight",
        "vision_model.encoder.layers.31.self_attn.v_proj.bias": "transformer.resblocks.31.attn.in_proj_bias",
        "vision_model.encoder.layers.0.self_attn.out_proj.weight": (
            "transformer.resblocks.0.attn.out_proj.weight"
        ),
        "vision_model.encoder.layers.0.layer_norm2.weight": "transformer.resblocks.0.ln_2.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight": "transformer.resblocks.0.mlp.c_fc.weight",
    },
}


@pytest.mark.parametrize("name", SVD_NAMES)
def test_the_original_names_of_svd(name: str) -> None:
    """Each kind of name is right, and no two names become one."""
    layout = full_size("svd").layouts[name]
    tensors = full_size("svd").modules[name].state_dict()
    assert SVD_NAMES[name].keys() <= tensors.keys()
    assert {today: layout(today).name for today in SVD_NAMES[name]} == SVD_NAMES[name]
    origins = [layout(today).name for today in tensors if not layout(today).take]
    assert len(set(origins)) == len(origins)


@EVERY_FAMILY
@pytest.mark.export
def test_full_size_checkpoint_fits_strictly(family: Family) -> None:
    full = full_size(family.name)
    lazy = {name: LazyTensor.from_tensor(tensor) for name, tensor in full.checkpoint.items()}
    for name, module in full.modules.items():
        expected = shapes_of(module)
        found = from_original(section(family, name, lazy), full.layouts[name], expected)
        assert list(match(found, expected, name)) == list(expected)


Small = Callable[[str], tuple[Family, Path]]


@pytest.fixture
def small(tmp_path: Path, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Small:
    """A family and a directory with its tiny ``base`` and the same as ``single.safetensors``; the shipped
    configurations are of these sizes."""

    def make(name: str) -> tuple[Family, Path]:
        family = get_family(name)
        folder = write_single_file(family, tiny_checkpoint(name) / "base", tmp_path)
        monkeypatch.setattr(shipped, "shipped_directory", lambda _family: folder)
        return family, tmp_path

    return make


def read(base: Base, name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.read() for key, tensor in base.parts[name].tensors.items()}


@pytest.mark.export
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_single_file_gives_the_same_values_as_its_folder(small: Small, name: str) -> None:
    family, place = small(name)
    folder, single = (
        read_base(family, place / given, None, ("text_encoder_3",))
        for given in ("base", "single.safetensors")
    )
    assert [source.role for source in single.sources] == ["base"]
    assert set(single.tokenizers) == set(folder.tokenizers)
    assert single.options == folder.options
    assert set(single.parts) == set(folder.parts)
    for key in folder.parts:
        ours, theirs = read(single, key), read(folder, key)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs)
        assert all(tensor.is_contiguous() for tensor in ours.values())


@OF_DIFFUSERS
@pytest.mark.export
def test_diffusers_gives_a_small_single_file_the_same_values(small: Small, family: Family) -> None:
    _family, place = small(family.name)
    base, single = read_base(family, place / "base", None), load_file(place / "single.safetensors")
    for name, network in family.networks.items():
        module = empty_module(network, base.parts[name].config)
        theirs = converted_by_diffusers(family, name, module, single)
        theirs = {canonical(key): tensor for key, tensor in theirs.items()}
        ours = {canonical(key): tensor for key, tensor in read(base, name).items()}
        assert ours.keys() - theirs.keys() <= {"text_projection.weight"}
        for key in ours.keys() & theirs.keys():
            assert torch.equal(ours[key], theirs[key].reshape(ours[key].shape)), key


@pytest.mark.export
def test_t5_of_a_single_file_is_left_out_and_the_remedy_named(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    """T5's vocabulary is not shipped, and a single file has none."""
    family, place = small("sd3")
    base = read_base(family, place / "single.safetensors", None)
    assert set(base.tokenizers) == {"tokenizer", "tokenizer_2"}
    assert "text_encoder_3" not in base.parts
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("controlnext")]
    assert "text_encoder_3 is left out" in message
    assert "give a diffusers directory to keep it, or `leave_out`" in message
    caplog.clear()
    assert (
        "text_encoder_3"
        not in read_base(family, place / "single.safetensors", None, ["text_encoder_3"]).parts
    )
    assert not caplog.records


def test_an_sd3_file_without_text_encoders_is_complete(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    family, place = small("sd3")
    path = place / "single.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("text_encoders.")}, path)
    assert set(read_base(family, path, None).parts) == {"transformer", "vae"}
    assert not caplog.records


@pytest.mark.export
def test_sd3s_first_clip_has_no_projection_whatever_a_file_holds(small: Small) -> None:
    """Some files hold OpenAI's, which SD3 was not trained with; diffusers too takes the identity."""
    family, place = small("sd3")
    path = place / "single.safetensors"
    name = "text_encoders.clip_l.transformer.text_projection.weight"
    save_file({**load_file(path), name: torch.zeros(16, 16)}, path)
    projection = read(read_base(family, path, None), "text_encoder")["text_projection.weight"]
    assert torch.equal(projection, torch.eye(16))


def test_unknown_tensors_in_a_section_are_refused(small: Small) -> None:
    _family, place = small("sdxl")
    path = place / "single.safetensors"
    save_file({**load_file(path), "first_stage_model.encoder.extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"vae does not fit: 1 unexpected \(encoder.extra.weight\)"):
        read_base(SDXL, path, None)


LOOKS = {
    "sd15": "a complete SD1.x checkpoint",
    "sdxl": "a complete SDXL checkpoint",
    "sd3": "a complete SD3 checkpoint",
    "svd": "a complete SVD checkpoint",
}


# each family once on either side; of directories every pair is tried
@pytest.mark.export
@pytest.mark.parametrize(("wanted", "given"), list(itertools.pairwise([*FAMILIES, next(iter(FAMILIES))])))
def test_a_checkpoint_of_another_family_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, given: str
) -> None:
    lazy = {name: LazyTensor.from_tensor(tensor) for name, tensor in full_size(given).checkpoint.items()}
    monkeypatch.setattr(bases, "read_weights", lambda *_arguments: (lazy, []))
    file = tmp_path / "single.safetensors"
    file.touch()
    with pytest.raises(
        CheckpointError, match=f"does not fit: .*the file looks like {LOOKS[given]}"
    ) as caught:
        read_base(get_family(wanted), file, None)
    assert "\n" not in str(caught.value)


@pytest.mark.export
def test_a_vae_under_original_names(small: Small) -> None:
    """As the fp16-fix VAE's ``sdxl_vae.safetensors`` has them, without a prefix; and in a checkpoint."""
    _family, place = small("sdxl")
    single, prefix = load_file(place / "single.safetensors"), PREFIXES["sdxl"]["vae"]
    vae = {key.removeprefix(prefix): v for key, v in single.items() if key.startswith(prefix)}
    save_file(vae, place / "sdxl_vae.safetensors")
    expected = load_file(place / "base/vae/diffusion_pytorch_model.safetensors")
    for name in ("sdxl_vae.safetensors", "single.safetensors"):
        found = read(read_base(SDXL, place / "base", place / name), "vae")
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
