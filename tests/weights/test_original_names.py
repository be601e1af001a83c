"""Original tensor names of the full-size networks: the conversion equals diffusers' own and fits strictly."""

from __future__ import annotations

import pytest

from controlnext.families import FAMILIES, Family
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.networks import canonical, match, shapes_of
from controlnext.weights.original import from_original
from controlnext.weights.shipped import section
from support.full_size import OF_DIFFUSERS, converted_by_diffusers, full_size
from support.weights_models import PREFIXES

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


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
