"""A family that exists in tests alone, as an entry of the registry has it: data."""

from __future__ import annotations

from controlnext.families import (
    ControlSpec,
    Family,
    GraphSpec,
    Injection,
    Network,
    Variant,
)
from controlnext.families.parts import FLOAT32, HIDDEN, text_encoder
from controlnext.tensor_spec import TensorSpec

EARLY = ControlSpec(
    out_channels=16,
    embedding=(8, 16),
    embedding_padding=(1, 0),
    stages=(16,),
    stage_groups=(4,),
    mid_groups=4,
    time_channels=(32, 64),
)
LATE = ControlSpec(
    out_channels=32,
    embedding=(8,),
    embedding_padding=(1,),
    stages=(16, 16),
    stage_groups=(2, 4),
    mid_groups=4,
    time_channels=(32, 64),
)
LATENTS = ("batch", 4, "height", "width")
IMAGE = ("batch", 3, "4*height", "4*width")
GRAPHS = ("text_encoder", "vae_decoder", "unet")
TRACED = {"batch": 2, "height": 6, "width": 10}

TOY = Family(
    name="toy",
    title="Toy Diffusion",
    default_base="nobody/toy",
    task="image",
    pipeline_class="StableDiffusionPipeline",
    denoiser="unet",
    variants={
        "early": Variant(
            "early",
            EARLY,
            Injection("conv_in", "output", "normalize, pool", 1e-3, gain=0.7, use_sigmoid=True),
            unconditional_scale=0.5,
            off_scale=-1e6,
        ),
        "late": Variant(
            "late",
            LATE,
            Injection("mid_block", "input", "pool, normalize", 1e-6, lambda c: c["block_out_channels"][-1]),
        ),
    },
    networks={
        "unet": Network("unet", "diffusers", "UNet2DConditionModel", required={"conv_in_kernel": 5}),
        "vae": Network("vae", "diffusers", "AutoencoderKL"),
        "text_encoder": Network("text_encoder", "transformers", "CLIPTextModel", True, "tokenizer", tokens=9),
    },
    graphs=(
        text_encoder("text_encoder", (HIDDEN,), "text_last"),
        GraphSpec(
            name="vae_decoder",
            network="vae",
            wrapper="vae_decoder",
            inputs=(TensorSpec("latent_sample", "float32", LATENTS),),
            outputs=(TensorSpec("sample", "float32", IMAGE),),
            trace_sizes=TRACED,
        ),
        GraphSpec(
            name="unet",
            network="unet",
            wrapper="denoiser",
            inputs=(
                TensorSpec("sample", "float32", LATENTS),
                TensorSpec("timestep", "float32", ("batch",)),
                TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", "@cross_attention_dim")),
                TensorSpec("control_image", "float32", ("control_batch", *IMAGE[1:])),
                TensorSpec("control_scale", "float32", ("batch",)),
            ),
            outputs=(TensorSpec("noise_pred", "float32", LATENTS),),
            sizes=lambda config: {"cross_attention_dim": config["cross_attention_dim"]},
            trace_sizes={"batch": 3, "control_batch": 2, "height": 7, "width": 5, "sequence": 9},
            float32=FLOAT32,
        ),
    ),
    samplers=("ddim", "euler_a"),
    default_sampler="ddim",
    default_steps=4,
    default_guidance=2.5,
    vae_factor=4,
    increments=True,
    pipeline_options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    prompt_encoders=("text_encoder",),
)
