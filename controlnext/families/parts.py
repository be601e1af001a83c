"""Networks and graphs that several families have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from controlnext.families.schema import Config, GraphSpec, Network
from controlnext.tensor_spec import TensorSpec

_SINUSOIDS = "sine and cosine of numbers up to 1000: float16 keeps three digits of the angle"
_STATISTICS = "mean and standard deviation over a whole feature map: sums overflow and cancel in float16"
FLOAT32: Mapping[str, str] = MappingProxyType({"time_proj": _SINUSOIDS, "cross_normalization": _STATISTICS})
"""Of every denoiser."""
ADDED_TIME: Mapping[str, str] = MappingProxyType({"add_time_proj": _SINUSOIDS})

NUMBER = (int, float)
OF_DENOISER: Mapping[str, type] = MappingProxyType({"sample_size": int})
OF_VAE: Mapping[str, tuple[type, ...]] = MappingProxyType({"scaling_factor": NUMBER})
OF_TEXT: Mapping[str, type] = MappingProxyType({"vocab_size": int})
"""What is read of their configurations when a bundle runs."""

NO_SHIFT: Config = MappingProxyType({"shift_factor": None})
NO_STATISTICS: Config = MappingProxyType({"latents_mean": None, "latents_std": None})
"""Of VAEs whose family's stock pipeline does not read these keys: it would decode the latents without."""

CLIP_L = Network("text_encoder", "transformers", "CLIPTextModel", True, "tokenizer", read=OF_TEXT)
"""The text encoder of SD1.5, and SDXL's first one."""
CLIP_G = Network(
    "text_encoder_2", "transformers", "CLIPTextModelWithProjection", True, "tokenizer_2", read=OF_TEXT
)
"""The second one of SDXL and SD3."""

HIDDEN = TensorSpec("prompt_embeds", "float32", ("batch", "sequence", "@hidden_size"))
POOLED = TensorSpec("text_embeds", "float32", ("batch", "@projection_dim"))

CONTROL = (
    TensorSpec("control_image", "float32", ("control_batch", 3, "8*height", "8*width")),
    TensorSpec("control_scale", "float32", ("batch",)),
)
"""Behind the other inputs of every image denoiser."""

# odd latent sizes: they lead the trace through the UNet's general path, right at every size
IMAGE_TRACE: Mapping[str, int] = MappingProxyType(
    {"batch": 3, "control_batch": 2, "height": 13, "width": 11, "sequence": 77}
)


def text_encoder(name: str, outputs: tuple[TensorSpec, ...], wrapper: str) -> GraphSpec:
    return GraphSpec(
        name=name,
        network=name,
        wrapper=wrapper,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
        outputs=outputs,
        sizes=_text_sizes,
        trace_sizes={"batch": 2, "sequence": 77},
        optional=True,
    )


def _text_sizes(config: Config) -> dict[str, int]:
    return {name: config[name] for name in ("hidden_size", "projection_dim") if name in config}


def vae_graphs() -> tuple[GraphSpec, GraphSpec]:
    """Decoder and encoder under the names that Optimum's exports use."""
    return (
        GraphSpec(
            name="vae_decoder",
            network="vae",
            wrapper="vae_decoder",
            inputs=(
                TensorSpec("latent_sample", "float32", ("batch", "@latent_channels", "height", "width")),
            ),
            outputs=(_image("sample"),),
            sizes=lambda config: {"latent_channels": config["latent_channels"]},
            trace_sizes=_VAE_TRACE,
        ),
        # not in these families' sampling
        replace(vae_encoder(), runs=False),
    )


def vae_encoder() -> GraphSpec:
    return GraphSpec(
        name="vae_encoder",
        network="vae",
        wrapper="vae_encoder",
        inputs=(_image("sample"),),
        outputs=(TensorSpec("latent_parameters", "float32", ("batch", "@moments", "height", "width")),),
        sizes=lambda config: {"moments": 2 * config["latent_channels"]},
        trace_sizes=_VAE_TRACE,
    )


_VAE_TRACE = MappingProxyType({"batch": 2, "height": 6, "width": 10})


def _image(name: str) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", 3, "8*height", "8*width"))
