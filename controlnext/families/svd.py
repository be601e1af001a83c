"""Stable Video Diffusion."""

from __future__ import annotations

from controlnext.families.cuts import unet_cut
from controlnext.families.graph_spec import Config, GraphSpec
from controlnext.families.parts import (
    ADDED_TIME,
    FLOAT32,
    OF_DENOISER,
    OF_VAE,
    SD_RGB,
    SIZE,
    preview_decoder,
    preview_vae,
    vae_encoder,
)
from controlnext.families.schema import ControlSpec, Family, Injection, Network, Variant
from controlnext.tensor_spec import TensorSpec


def _added_time_ids(_height: int, _width: int) -> tuple[float, ...]:
    """Return frames per second minus one, motion bucket and noise augmentation, always with the values that
    the control was trained with."""
    return (6, 128, 0.02)


def _sizes(config: Config) -> dict[str, int]:
    ids = config["projection_class_embeddings_input_dim"] // config["addition_time_embed_dim"]
    return {"cross_attention_dim": config["cross_attention_dim"], "ids": ids}


_RESIDUAL = "the residual stream: it grows from block to block, and rounding it is a third of the error"
_READS_RESIDUAL = "reads the residual stream"
_STREAM = {
    "*_res_block/*": _RESIDUAL,
    "*transformer_blocks.[0-9]/Add": _RESIDUAL,
    "*.attentions.[0-9]/Add": _RESIDUAL,
    "time_mixer": _RESIDUAL,
    **dict.fromkeys(("norm", "norm1", "norm2", "norm3", "norm_in", "conv_norm_out"), _READS_RESIDUAL),
    "conv_shortcut": _READS_RESIDUAL,
    "proj_out": _READS_RESIDUAL,
    "*samplers.0.conv/Conv": _READS_RESIDUAL,
    "*.upsamplers.0/Resize": _READS_RESIDUAL,
}

SVD = Family(
    name="svd",
    title="Stable Video Diffusion",
    default_base="stabilityai/stable-video-diffusion-img2vid-xt-1-1",
    task="video",
    pipeline_class="StableVideoDiffusionPipeline",
    denoiser="unet",
    variants={
        "v2": Variant(
            name="v2",
            control=ControlSpec(out_channels=320, embedding_padding=(1, 0, 0)),
            injection=Injection("down_blocks.0", "output", "normalize, pool", 1e-5, gain=0.2),
            unconditional_scale=0.0,
        ),
        "v1": Variant(
            name="v1",
            control=ControlSpec(
                out_channels=1280,
                embedding_padding=(1, 0, 0),
                embedding_pool=True,
                stages=(128, 256, 256),
                stage_groups=(4, 8, 8),
                learned_scale=True,
            ),
            injection=Injection(
                "mid_block",
                "input",
                "normalize, pool",
                1e-5,
                width=lambda config: config["block_out_channels"][-1],
                gain=1.3,
                use_sigmoid=True,
            ),
            unconditional_scale=0.0,
            # sigmoid(0) is one half; sigmoid of this times the positive learned scale is 0
            off_scale=-1e6,
        ),
    },
    networks={
        "unet": Network(
            "unet",
            "diffusers",
            "UNetSpatioTemporalConditionModel",
            required={"in_channels": 8, "out_channels": 4},
            read={**OF_DENOISER, "num_frames": SIZE},
        ),
        "vae": Network(
            "vae", "diffusers", "AutoencoderKLTemporalDecoder", required={"latent_channels": 4}, read=OF_VAE
        ),
        "image_encoder": Network("image_encoder", "transformers", "CLIPVisionModelWithProjection"),
    },
    graphs=(
        GraphSpec(
            name="image_encoder",
            network="image_encoder",
            wrapper="image_encoder",
            inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, "@image_size", "@image_size")),),
            outputs=(TensorSpec("image_embeds", "float32", ("batch", "@projection_dim")),),
            sizes=lambda config: {name: config[name] for name in ("image_size", "projection_dim")},
            trace_sizes={"batch": 2},
        ),
        GraphSpec(
            name="vae_decoder",
            network="vae",
            wrapper="temporal_vae_decoder",
            inputs=(
                TensorSpec("latent_sample", "float32", ("frames", "@latent_channels", "height", "width")),
            ),
            outputs=(TensorSpec("sample", "float32", ("frames", 3, "8*height", "8*width")),),
            sizes=lambda config: {"latent_channels": config["latent_channels"]},
            trace_sizes={"frames": 3, "height": 6, "width": 10},
        ),
        vae_encoder(),
        preview_decoder("frames"),
        GraphSpec(
            name="unet",
            network="unet",
            wrapper="denoiser",
            inputs=(
                TensorSpec("sample", "float32", ("batch", "frames", 8, "height", "width")),
                TensorSpec("timestep", "float32", ("batch",)),
                TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", "@cross_attention_dim")),
                TensorSpec("added_time_ids", "float32", ("batch", "@ids")),
                TensorSpec("control_image", "float32", ("control_batch", "frames", 3, "8*height", "8*width")),
                TensorSpec("control_scale", "float32", ("batch",)),
            ),
            outputs=(TensorSpec("noise_pred", "float32", ("batch", "frames", 4, "height", "width")),),
            sizes=_sizes,
            trace_sizes={
                "batch": 3,
                "control_batch": 2,
                "frames": 5,
                "height": 13,
                "width": 11,
                "sequence": 4,
            },
            float32={**FLOAT32, **ADDED_TIME, **_STREAM},
            cached=unet_cut(layers=2, rows="frame_rows"),
        ),
    ),
    samplers=("euler",),
    default_sampler="euler",
    default_steps=25,
    default_guidance=3.0,
    vae_tiling=False,
    preview_vae=preview_vae(4),
    latent_rgb=SD_RGB,
    conditioning={"added_time_ids": _added_time_ids},
    checkpoint_options={
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    float32_vae=lambda config: bool(config.get("force_upcast", True)),
)
