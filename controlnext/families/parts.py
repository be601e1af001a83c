"""Networks and graphs that several families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from controlnext.families.graph_spec import Config, GraphSpec
from controlnext.families.schema import PREVIEW_DECODER, PREVIEW_VAE, VAE, VAE_DECODER, LatentRgb, Network
from controlnext.families.values import Numbers
from controlnext.image_prompts import IMAGE_ENCODER, KINDS
from controlnext.tensor_spec import TensorSpec

_SINUSOIDS = "sine and cosine of numbers up to 1000: float16 keeps three digits of the angle"
_STATISTICS = "mean and standard deviation over a whole feature map: sums overflow and cancel in float16"
FLOAT32: Mapping[str, str] = MappingProxyType({"time_proj": _SINUSOIDS, "cross_normalization": _STATISTICS})
"""Modules that stay in float32 in every denoiser, each with the reason."""
ADDED_TIME: Mapping[str, str] = MappingProxyType({"add_time_proj": _SINUSOIDS})

SIZE = Numbers(int, 1, 1 << 16)
SHIFT = Numbers(float, -1e6, 1e6)
OF_DENOISER: Mapping[str, Numbers] = MappingProxyType({"sample_size": SIZE})
OF_VAE: Mapping[str, Numbers] = MappingProxyType({"scaling_factor": Numbers(float, 1e-6, 1e6)})
OF_TEXT: Mapping[str, Numbers] = MappingProxyType({"vocab_size": Numbers(int, 1, 1 << 24)})
"""Configuration values that a running bundle reads: the denoiser's, the VAE's, a text encoder's."""

NO_SHIFT: Config = MappingProxyType({"shift_factor": None})
NO_STATISTICS: Config = MappingProxyType({"latents_mean": None, "latents_std": None})
"""For VAEs of families whose stock pipeline ignores these keys when it decodes latents."""

TINY_VAE = "AutoencoderTiny"
"""Diffusers' class of tiny VAEs (https://github.com/madebyollin/taesd)."""
_UNSHIFTED: Config = MappingProxyType({"shift_factor": 0.0})
"""The same as :data:`NO_SHIFT` for this class."""

SD_RGB = LatentRgb(
    factors=(
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    )
)
"""Of the VAE that SD1.5 and SVD share; published in ComfyUI, ``comfy/latent_formats.py``, as those of the
other families."""

CLIP_L = Network("text_encoder", "transformers", "CLIPTextModel", True, "tokenizer", read=OF_TEXT)
"""The text encoder of SD1.5, and SDXL's first one."""
CLIP_G = Network(
    "text_encoder_2", "transformers", "CLIPTextModelWithProjection", True, "tokenizer_2", read=OF_TEXT
)
"""The second text encoder of SDXL and SD3."""

HIDDEN = TensorSpec("prompt_embeds", "float32", ("batch", "sequence", "@hidden_size"))
POOLED = TensorSpec("text_embeds", "float32", ("batch", "@projection_dim"))

_GUIDANCE_WIDTH = "time_cond_proj_dim"
GUIDANCE = TensorSpec("timestep_cond", "float32", ("batch", f"@{_GUIDANCE_WIDTH}"), needs=_GUIDANCE_WIDTH)
"""The embedding of the guidance scale, which denoisers that were distilled from guided ones take
(arXiv:2210.03142)."""

_INPAINTS = "in_channels=9"
INPAINTING = (
    TensorSpec("mask", "float32", ("batch", 1, "height", "width"), "+sample", _INPAINTS),
    TensorSpec("masked_image_latents", "float32", ("batch", 4, "height", "width"), "+sample", _INPAINTS),
)
"""Inputs of UNets that were trained to inpaint: 1 for what is made anew, and the latents of the rest. In
diffusers they are further channels of the sample."""
LATENT_OR_INPAINTING = frozenset({4, 9})
"""Numbers of channels that a UNet may take."""

CONTROL = (
    TensorSpec("control_image", "float32", ("control_batch", 3, "8*height", "8*width")),
    TensorSpec("control_scale", "float32", ("batch",)),
)
"""The last inputs of every image denoiser."""

# odd latent sizes, so that the trace takes the UNet's general path, which is right at every size
IMAGE_TRACE: Mapping[str, int] = MappingProxyType(
    {"batch": 3, "control_batch": 2, "height": 13, "width": 11, "sequence": 77}
)


def guidance_size(config: Config) -> dict[str, int]:
    """Return the size in :data:`GUIDANCE`; none if the denoiser does not take it."""
    width = config.get(_GUIDANCE_WIDTH)
    return {} if width is None else {_GUIDANCE_WIDTH: width}


def text_encoder(name: str, outputs: tuple[TensorSpec, ...], wrapper: str) -> GraphSpec:
    """Return the graph of a text encoder: token ids (batch, sequence) int64 to ``outputs``."""
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


def tiny_vae(channels: int, *, shifted: bool = False, network: str = VAE) -> Network:
    """Return the tiny VAE for latents of so many ``channels``; ``shifted``: whether the family's stock
    pipeline shifts the latents that it decodes."""
    return Network(
        network,
        "diffusers",
        TINY_VAE,
        required={"latent_channels": channels, **({} if shifted else _UNSHIFTED)},
        read={**OF_VAE, "latent_channels": SIZE, **({"shift_factor": SHIFT} if shifted else {})},
    )


def preview_vae(channels: int, *, shifted: bool = False) -> Network:
    """Return the tiny VAE that decodes previews; for the arguments see :func:`tiny_vae`."""
    return tiny_vae(channels, shifted=shifted, network=PREVIEW_VAE)


def image_encoder() -> Network:
    """Return CLIP's image encoder."""
    return Network(IMAGE_ENCODER, "transformers", "CLIPVisionModelWithProjection")


def image_prompt_encoder() -> GraphSpec:
    """Return the graph of the encoder of image prompts: pixels (batch, 3, size, size) to what either kind of
    adapter reads."""
    hidden = ("batch", "@positions", "@hidden_size")
    return GraphSpec(
        name=IMAGE_ENCODER,
        network=IMAGE_ENCODER,
        wrapper="image_prompt_encoder",
        inputs=(TensorSpec("pixel_values", "float32", ("batch", 3, "@image_size", "@image_size")),),
        outputs=(
            TensorSpec(KINDS["base"].output, "float32", ("batch", "@projection_dim")),
            TensorSpec(KINDS["plus"].output, "float32", hidden),
        ),
        sizes=_encoder_sizes,
        trace_sizes={"batch": 2},
        optional=True,
    )


def _encoder_sizes(config: Config) -> dict[str, int]:
    sizes = {name: config[name] for name in ("image_size", "projection_dim", "hidden_size")}
    return {**sizes, "positions": image_positions(config)}


def image_positions(config: Config) -> int:
    """Return the number of positions of an image encoder: its patches, and one for the whole image."""
    across: int = config["image_size"] // config["patch_size"]
    return across**2 + 1


def vae_graphs() -> tuple[GraphSpec, ...]:
    """Return the VAE's decoder and encoder graphs, with the names of Optimum's exports, and the decoder of
    previews."""
    # these families' sampling does not need the encoder
    encoder = replace(vae_encoder(), runs=False)
    tiny = replace(
        encoder,
        wrapper="tiny_vae_encoder",
        outputs=(TensorSpec("latents", "float32", ("batch", "@latent_channels", "height", "width")),),
        sizes=_latent_sizes,
    )
    return (
        _decoder(VAE_DECODER, VAE),
        replace(encoder, of_class=MappingProxyType({TINY_VAE: tiny})),
        preview_decoder(),
    )


def _decoder(name: str, network: str, batch: str = "batch") -> GraphSpec:
    return GraphSpec(
        name=name,
        network=network,
        wrapper="vae_decoder",
        inputs=(TensorSpec("latent_sample", "float32", (batch, "@latent_channels", "height", "width")),),
        outputs=(TensorSpec("sample", "float32", (batch, 3, "8*height", "8*width")),),
        sizes=_latent_sizes,
        trace_sizes={batch: 2, "height": 6, "width": 10},
    )


def preview_decoder(batch: str = "batch") -> GraphSpec:
    """Return the graph of the decoder of previews; ``batch``: name of its batch dimension."""
    return replace(_decoder(PREVIEW_DECODER, PREVIEW_VAE, batch), optional=True)


def _latent_sizes(config: Config) -> dict[str, int]:
    return {"latent_channels": config["latent_channels"]}


def vae_encoder() -> GraphSpec:
    """Return the VAE encoder's graph: image (batch, 3, 8h, 8w) in [-1, 1] to mean and log-variance."""
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
