"""Stable Diffusion XL."""

from __future__ import annotations

from controlnext.families.cuts import unet_cut
from controlnext.families.graph_spec import Config, GraphSpec
from controlnext.families.image_start import ImageStart
from controlnext.families.parts import (
    ADDED_TIME,
    CLIP_G,
    CLIP_L,
    CONTROL,
    FLOAT32,
    GUIDANCE,
    HIDDEN,
    IMAGE_TRACE,
    INPAINTING,
    LATENT_OR_INPAINTING,
    NO_SHIFT,
    OF_DENOISER,
    OF_VAE,
    POOLED,
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
    LatentRgb,
    Network,
    Variant,
)
from controlnext.tensor_spec import TensorSpec


def _time_ids(height: int, width: int) -> tuple[float, ...]:
    """Return the size conditioning (arXiv:2307.01952, 2.2): original size, crop's top left, target size."""
    return (height, width, 0, 0, height, width)


def _sizes(config: Config) -> dict[str, int]:
    ids = 6
    pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
    sizes = {"cross_attention_dim": config["cross_attention_dim"], "pooled": pooled, "ids": ids}
    return {**sizes, **guidance_size(config)}


SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    default_base="stabilityai/stable-diffusion-xl-base-1.0",
    task="image",
    pipeline_class="StableDiffusionXLPipeline",
    pipelines=(
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLAdapterPipeline",
        "StableDiffusionXLPAGPipeline",
    ),
    denoiser="unet",
    variants={
        "sdxl": Variant(
            name="sdxl",
            control=ControlSpec(out_channels=320),
            injection=Injection("down_blocks.0", "input", "normalize, pool", 1e-12),
        )
    },
    networks={
        "unet": Network(
            "unet",
            "diffusers",
            "UNet2DConditionModel",
            required={
                "addition_embed_type": "text_time",
                "in_channels": LATENT_OR_INPAINTING,
                "out_channels": 4,
            },
            read=OF_DENOISER,
        ),
        "vae": Network(
            "vae",
            "diffusers",
            "AutoencoderKL",
            required={"latent_channels": 4, **NO_SHIFT},
            read=OF_VAE,
            alternatives=(tiny_vae(4),),
        ),
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
    },
    graphs=(
        text_encoder("text_encoder", (HIDDEN,), "text_penultimate"),
        text_encoder("text_encoder_2", (HIDDEN, POOLED), "text_penultimate_pooled"),
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
                TensorSpec("text_embeds", "float32", ("batch", "@pooled"), "added_cond_kwargs.text_embeds"),
                TensorSpec("time_ids", "float32", ("batch", "@ids"), "added_cond_kwargs.time_ids"),
                GUIDANCE,
                *INPAINTING,
                *CONTROL,
            ),
            outputs=(TensorSpec("noise_pred", "float32", ("batch", 4, "height", "width")),),
            sizes=_sizes,
            trace_sizes=IMAGE_TRACE,
            float32={**FLOAT32, **ADDED_TIME},
            # two layers, so that the control, which joins before the first down block, is in the shallow part
            cached=unet_cut(layers=2),
        ),
    ),
    samplers=samplers_of("noise"),
    default_sampler="unipc",
    default_steps=20,
    default_guidance=5.0,
    increments=True,
    pipeline_options={"add_watermarker": False},
    checkpoint_options={"force_zeros_for_empty_prompt": True},
    prompt_encoders=("text_encoder", "text_encoder_2"),
    pooled_input="text_embeds",
    conditioning={"time_ids": _time_ids},
    # true in the original SDXL VAE's configuration, false in the fp16-fix VAE's
    float32_vae=lambda config: bool(config.get("force_upcast", True)),
    preview_vae=preview_vae(4),
    image_prompts=ImagePromptNeeds(image_encoder(), hidden=1280),
    latent_rgb=LatentRgb(
        factors=(
            (0.3651, 0.4232, 0.4341),
            (-0.2533, -0.0042, 0.1068),
            (0.1076, 0.1111, -0.0362),
            (-0.3165, -0.2492, -0.2188),
        ),
        bias=(0.1084, -0.0175, -0.0011),
    ),
    image_start=ImageStart("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    controlnet=ControlNet("ControlNetModel", "StableDiffusionXLControlNetPipeline"),
)
