"""Stable Diffusion 1.5."""

from __future__ import annotations

from controlnext.families.cuts import unet_cut
from controlnext.families.graph_spec import GraphSpec
from controlnext.families.image_start import ImageStart
from controlnext.families.parts import (
    CLIP_L,
    CONTROL,
    FLOAT32,
    GUIDANCE,
    HIDDEN,
    IMAGE_TRACE,
    INPAINTING,
    LATENT_OR_INPAINTING,
    NO_SHIFT,
    NO_STATISTICS,
    OF_DENOISER,
    OF_VAE,
    SD_RGB,
    guidance_size,
    image_encoder,
    image_prompt_encoder,
    preview_vae,
    text_encoder,
    tiny_vae,
    vae_graphs,
)
from controlnext.families.samplers import samplers_of
from controlnext.families.schema import (
    ControlNet,
    ControlSpec,
    Family,
    ImagePromptNeeds,
    Injection,
    Network,
    Variant,
)
from controlnext.tensor_spec import TensorSpec

SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    default_base="stable-diffusion-v1-5/stable-diffusion-v1-5",
    task="image",
    pipeline_class="StableDiffusionPipeline",
    pipelines=(
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPipelineSafe",
        "LatentConsistencyModelPipeline",
    ),
    denoiser="unet",
    variants={
        "down": Variant(
            name="down",
            control=ControlSpec(out_channels=320),
            injection=Injection("down_blocks.0", "output", "pool, normalize", 1e-12),
        ),
        "mid": Variant(
            name="mid",
            control=ControlSpec(
                out_channels=1280,
                embedding=(),
                embedding_padding=(),
                stages=(128, 256, 256),
                stage_groups=(1, 8, 8),
                mid_groups=0,
                learned_scale=True,
            ),
            injection=Injection(
                "mid_block",
                "output",
                "pool, normalize",
                1e-12,
                width=lambda config: config["block_out_channels"][-1],
            ),
        ),
    },
    networks={
        "unet": Network(
            "unet",
            "diffusers",
            "UNet2DConditionModel",
            required={
                "addition_embed_type": None,
                "use_linear_projection": False,
                "in_channels": LATENT_OR_INPAINTING,
                "out_channels": 4,
            },
            read=OF_DENOISER,
            # 1 x 1 convolutions between maps and tokens become matrix products: no change of layout, and
            # no rounding of their outputs in int8
            traced={"use_linear_projection": True},
        ),
        "vae": Network(
            "vae",
            "diffusers",
            "AutoencoderKL",
            required={"latent_channels": 4, **NO_SHIFT, **NO_STATISTICS},
            read=OF_VAE,
            alternatives=(tiny_vae(4),),
        ),
        "text_encoder": CLIP_L,
    },
    graphs=(
        text_encoder("text_encoder", (HIDDEN,), "text_last"),
        *vae_graphs(),
        image_prompt_encoder(),
        GraphSpec(
            name="unet",
            network="unet",
            wrapper="denoiser",
            prologue=True,
            inputs=(
                TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
                TensorSpec("timestep", "float32", ("batch",)),
                TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", "@cross_attention_dim")),
                GUIDANCE,
                *INPAINTING,
                *CONTROL,
            ),
            outputs=(TensorSpec("noise_pred", "float32", ("batch", 4, "height", "width")),),
            sizes=lambda config: {
                "cross_attention_dim": config["cross_attention_dim"],
                **guidance_size(config),
            },
            trace_sizes=IMAGE_TRACE,
            float32=FLOAT32,
            # with two layers a shallow step takes 0.24 of a full one, too much for what the cache is to save
            cached=unet_cut(layers=1),
        ),
    ),
    samplers=samplers_of("noise"),
    default_sampler="unipc",
    default_steps=20,
    default_guidance=7.5,
    pipeline_options={
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    },
    # StableDiffusionPipeline fixes old configurations in which these options had another meaning
    scheduler_options={"steps_offset": 1, "clip_sample": False},
    prompt_encoders=("text_encoder",),
    preview_vae=preview_vae(4),
    image_prompts=ImagePromptNeeds(image_encoder(), hidden=768),
    latent_rgb=SD_RGB,
    image_start=ImageStart("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    controlnet=ControlNet("ControlNetModel", "StableDiffusionControlNetPipeline"),
)
