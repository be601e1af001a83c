"""Stable Diffusion 3."""

from __future__ import annotations

from controlnext.families.cuts import transformer_cut
from controlnext.families.graph_spec import Config, GraphSpec
from controlnext.families.image_start import ImageStart
from controlnext.families.parts import (
    CLIP_G,
    FLOAT32,
    HIDDEN,
    NO_STATISTICS,
    OF_DENOISER,
    OF_TEXT,
    OF_VAE,
    POOLED,
    SHIFT,
    SIZE,
    preview_vae,
    text_encoder,
    tiny_vae,
    vae_graphs,
)
from controlnext.families.samplers import FLOW_SCHEDULERS, samplers_of
from controlnext.families.schema import (
    ControlNet,
    ControlSpec,
    Family,
    Injection,
    LatentRgb,
    Network,
    Variant,
)
from controlnext.tensor_spec import TensorSpec

_DISTANCE = "buckets distances between tokens by their logarithm: float16 puts some into the next bucket"
_RESIDUAL = "adds the output of wo, which reaches every later layer; transformers keeps it in float32 too"
_T5 = {
    "wo": "its outputs overflow float16 in the published T5-XXL; transformers keeps it in float32 too",
    "*.layer.[01]/Add": _RESIDUAL,
    "layer_norm": "squares its inputs: 256 overflows",
    "final_layer_norm": "squares its inputs: 256 overflows",
    "act": "third powers: 41 overflows",
    "*.SelfAttention/Div": _DISTANCE,
    "*.SelfAttention/Log": _DISTANCE,
    "*.SelfAttention/Mul": _DISTANCE,
}
_LATENT = ("batch", 16, "2*height", "2*width")


def _width(config: Config) -> int:
    width: int = config["num_attention_heads"] * config["attention_head_dim"]
    return width


SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    default_base="stabilityai/stable-diffusion-3-medium-diffusers",
    task="image",
    pipeline_class="StableDiffusion3Pipeline",
    pipelines=(
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
        "StableDiffusion3PAGPipeline",
    ),
    schedulers=FLOW_SCHEDULERS,
    denoiser="transformer",
    variants={
        "sd3": Variant(
            name="sd3",
            control=ControlSpec(out_channels=1536),
            injection=Injection("pos_embed", "output", "pool, normalize", 1e-12, width=_width, tokens=True),
        )
    },
    networks={
        "transformer": Network(
            "transformer",
            "diffusers",
            "SD3Transformer2DModel",
            required={"in_channels": 16, "patch_size": 2},
            read={**OF_DENOISER, "patch_size": SIZE, "pos_embed_max_size": SIZE},
        ),
        "vae": Network(
            "vae",
            "diffusers",
            "AutoencoderKL",
            required={"latent_channels": 16, **NO_STATISTICS},
            read={**OF_VAE, "shift_factor": SHIFT},
            alternatives=(tiny_vae(16, shifted=True),),
        ),
        "text_encoder": Network(
            "text_encoder",
            "transformers",
            "CLIPTextModelWithProjection",
            True,
            "tokenizer",
            read=OF_TEXT,
        ),
        "text_encoder_2": CLIP_G,
        "text_encoder_3": Network(
            "text_encoder_3",
            "transformers",
            "T5EncoderModel",
            True,
            "tokenizer_3",
            tokens=256,
            read=OF_TEXT,
        ),
    },
    graphs=(
        text_encoder("text_encoder", (HIDDEN, POOLED), "text_penultimate_pooled"),
        text_encoder("text_encoder_2", (HIDDEN, POOLED), "text_penultimate_pooled"),
        GraphSpec(
            name="text_encoder_3",
            network="text_encoder_3",
            wrapper="text_last",
            inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
            outputs=(TensorSpec("prompt_embeds", "float32", ("batch", "sequence", "@d_model")),),
            sizes=lambda config: {"d_model": config["d_model"]},
            trace_sizes={"batch": 2, "sequence": 77},
            optional=True,
            float32=_T5,
        ),
        *vae_graphs(),
        GraphSpec(
            name="transformer",
            network="transformer",
            wrapper="denoiser",
            prologue=True,
            inputs=(
                # height and width are numbers of patches of 2 x 2 latents
                TensorSpec("sample", "float32", _LATENT, "hidden_states"),
                TensorSpec("timestep", "float32", ("batch",)),
                TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", "@joint_attention_dim")),
                TensorSpec("pooled_projections", "float32", ("batch", "@pooled_projection_dim")),
                TensorSpec("control_image", "float32", ("control_batch", 3, "16*height", "16*width")),
                TensorSpec("control_scale", "float32", ("batch",)),
            ),
            outputs=(TensorSpec("noise_pred", "float32", _LATENT),),
            sizes=lambda config: {
                name: config[name] for name in ("joint_attention_dim", "pooled_projection_dim")
            },
            trace_sizes={"batch": 3, "control_batch": 2, "height": 7, "width": 5, "sequence": 33},
            float32=FLOAT32,
            cached=transformer_cut(first_share=6, last_share=12, width=_width),
        ),
    ),
    samplers=samplers_of("flow"),
    default_sampler="flow_euler",
    default_steps=28,
    default_guidance=7.0,
    size_multiple=16,
    # the size of the table of position embeddings
    largest_size=lambda config: 8 * config["patch_size"] * config["pos_embed_max_size"],
    prompt_encoders=("text_encoder", "text_encoder_2"),
    sequence_encoder="text_encoder_3",
    multi_vector_tokens=False,
    pooled_input="pooled_projections",
    join_pooled=True,
    preview_vae=preview_vae(16, shifted=True),
    latent_rgb=LatentRgb(
        factors=(
            (-0.0922, -0.0175, 0.0749),
            (0.0311, 0.0633, 0.0954),
            (0.1994, 0.0927, 0.0458),
            (0.0856, 0.0339, 0.0902),
            (0.0587, 0.0272, -0.0496),
            (-0.0006, 0.1104, 0.0309),
            (0.0978, 0.0306, 0.0427),
            (-0.0042, 0.1038, 0.1358),
            (-0.0194, 0.0020, 0.0669),
            (-0.0488, 0.0130, -0.0268),
            (0.0922, 0.0988, 0.0951),
            (-0.0278, 0.0524, -0.0542),
            (0.0332, 0.0456, 0.0895),
            (-0.0069, -0.0030, -0.0810),
            (-0.0596, -0.0465, -0.0293),
            (-0.1448, -0.1463, -0.1189),
        ),
        bias=(0.2394, 0.2135, 0.1925),
    ),
    image_start=ImageStart(
        "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", takes_begun=True
    ),
    controlnet=ControlNet(
        "SD3ControlNetModel",
        "StableDiffusion3ControlNetPipeline",
        options={"num_layers": 6},
        image="control_image",
    ),
    note="no control weights were published for SD3; give `control` your own",
)
