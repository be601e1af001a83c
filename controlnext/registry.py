"""The registry: every family and variant as data.

Adding a family means adding an entry here (and what its sampling really does differently to the runtime);
no other file names a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from controlnext.errors import InputError
from controlnext.specs import TensorSpec

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Injection:
    """Where and how the control feature ``c`` joins the denoiser's feature ``x``.

    ``normalize(c) = (c - mean(c)) * (std(x) / (std(c) + eps)) + mean(x)``, mean and unbiased std per sample
    over all but the batch axis; ``pool`` is adaptive average pooling to x's height and width;
    ``x + strength * c``. The skip connections keep the uncontrolled feature.
    """

    module: str
    """Dotted path of the denoiser's submodule."""
    at: Literal["input", "output"]
    order: Literal["normalize, pool", "pool, normalize"]
    eps: float
    width: Callable[[Config], int] = field(default=lambda config: config["block_out_channels"][0])
    """Channels of that feature, from the denoiser's configuration; the control's output has as many."""


@dataclass(frozen=True)
class ControlSpec:
    """Widths of a control module; the published ones by default, a smaller checkpoint's by reading it."""

    out_channels: int
    embedding: tuple[int, ...] = (64, 64, 128)
    embedding_groups: int = 2
    stages: tuple[int, ...] = (128, 256)
    stage_groups: tuple[int, ...] = (4, 8)
    mid_groups: int = 8
    time_channels: tuple[int, int] = (128, 256)


@dataclass(frozen=True)
class Variant:
    """One way in which a family was released: its control module and where that is injected."""

    name: str
    control: ControlSpec
    injection: Injection


@dataclass(frozen=True)
class GraphSpec:
    """One exported graph: its folder in the bundle, the network behind it, its inputs and outputs.

    ``wrapper`` names the adapter in :mod:`controlnext.export.networks` that gives the network this graph's
    signature. ``float32`` lists the module scopes whose arithmetic stays in float32 at lower precision, each
    with its reason.
    """

    folder: str
    network: str
    wrapper: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Callable[[Config], dict[str, int]] = field(default=lambda _config: {})
    trace_sizes: Mapping[str, int] = field(default_factory=dict)
    optional: bool = False
    float32: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """One PyTorch network: the folder in a diffusers checkpoint and the class that its weights belong to."""

    folder: str
    library: Literal["diffusers", "transformers"]
    cls: str
    optional: bool = False
    tokenizer: str = ""
    """Folder of the tokenizer that feeds this text encoder."""
    required: Config = field(default_factory=dict)
    """Configuration values that tell this family's network from another family's of the same class."""


@dataclass(frozen=True)
class Family:
    """A family of ControlNeXt models."""

    name: str
    title: str
    default_base: str
    pipeline_class: str
    """The stock diffusers pipeline that the PyTorch reference runs."""
    denoiser: str
    variants: Mapping[str, Variant]
    networks: Mapping[str, Network]
    graphs: tuple[GraphSpec, ...]
    samplers: tuple[str, ...]
    default_sampler: str
    default_steps: int
    default_guidance: float
    default_size: int
    vae_factor: int
    prompt_encoders: tuple[str, ...]
    """Graph folders of the text encoders, in the order in which their embeddings are concatenated."""
    pipeline_options: Config = field(default_factory=dict)
    """Arguments of ``pipeline_class`` besides its networks and the checkpoint's own options."""
    conditioning: tuple[str, ...] = ()
    """Inputs of the denoiser that the runtime computes: ``"time_ids"`` is (original, crop, target) sizes."""
    increments: bool = False
    """Whether the UNet tensors that are published beside the control module are increments."""
    float32_vae: Callable[[Config], bool] = field(default=lambda _config: False)
    """Whether a VAE of this configuration overflows in float16 and has to stay in float32."""

    def variant(self, name: str) -> Variant:
        """The variant of that name; raises :class:`InputError` naming those that exist."""
        if name not in self.variants:
            raise InputError(f"{self.name} has no variant {name!r}; accepted: {', '.join(self.variants)}")
        return self.variants[name]


def _text_encoder(folder: str, network: str, outputs: tuple[TensorSpec, ...], wrapper: str) -> GraphSpec:
    return GraphSpec(
        folder=folder,
        network=network,
        wrapper=wrapper,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "sequence")),),
        outputs=outputs,
        sizes=lambda c: {"hidden_size": c["hidden_size"], "projection_dim": c["projection_dim"]},
        trace_sizes={"batch": 2, "sequence": 77},
        optional=True,
    )


_HIDDEN = TensorSpec("prompt_embeds", "float32", ("batch", "sequence", "@hidden_size"))
_POOLED = TensorSpec("text_embeds", "float32", ("batch", "@projection_dim"))

_SINUSOIDS = "sine and cosine of numbers up to 1000: float16 keeps three digits of the angle"
_STATISTICS = "mean and standard deviation over a whole feature map: sums overflow and cancel in float16"


def _vae_graphs(wrapper: str = "vae") -> tuple[GraphSpec, GraphSpec]:
    """Decoder and encoder under the names that Optimum's exports use."""
    latent = ("batch", "@latent_channels", "height", "width")
    picture = ("batch", 3, "8*height", "8*width")
    trace = {"batch": 2, "height": 6, "width": 10}
    decoder = GraphSpec(
        folder="vae_decoder",
        network="vae",
        wrapper=f"{wrapper}_decoder",
        inputs=(TensorSpec("latent_sample", "float32", latent),),
        outputs=(TensorSpec("sample", "float32", picture),),
        sizes=lambda c: {"latent_channels": c["latent_channels"]},
        trace_sizes=trace,
    )
    encoder = GraphSpec(
        folder="vae_encoder",
        network="vae",
        wrapper=f"{wrapper}_encoder",
        inputs=(TensorSpec("sample", "float32", picture),),
        outputs=(TensorSpec("latent_parameters", "float32", ("batch", "@moments", "height", "width")),),
        sizes=lambda c: {"moments": 2 * c["latent_channels"]},
        trace_sizes=trace,
    )
    return decoder, encoder


def _sdxl_sizes(config: Config) -> dict[str, int]:
    ids = 6
    pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
    return {"cross_attention_dim": config["cross_attention_dim"], "pooled": pooled, "ids": ids}


_SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    default_base="stabilityai/stable-diffusion-xl-base-1.0",
    pipeline_class="StableDiffusionXLPipeline",
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
            required={"addition_embed_type": "text_time", "in_channels": 4, "out_channels": 4},
        ),
        "vae": Network("vae", "diffusers", "AutoencoderKL"),
        "text_encoder": Network("text_encoder", "transformers", "CLIPTextModel", True, "tokenizer"),
        "text_encoder_2": Network(
            "text_encoder_2", "transformers", "CLIPTextModelWithProjection", True, "tokenizer_2"
        ),
    },
    graphs=(
        _text_encoder("text_encoder", "text_encoder", (_HIDDEN,), "clip_penultimate"),
        _text_encoder("text_encoder_2", "text_encoder_2", (_HIDDEN, _POOLED), "clip_penultimate_pooled"),
        *_vae_graphs(),
        GraphSpec(
            folder="unet",
            network="unet",
            wrapper="denoiser",
            inputs=(
                TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
                TensorSpec("timestep", "float32", ("batch",)),
                TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence", "@cross_attention_dim")),
                TensorSpec("text_embeds", "float32", ("batch", "@pooled"), "added_cond_kwargs.text_embeds"),
                TensorSpec("time_ids", "float32", ("batch", "@ids"), "added_cond_kwargs.time_ids"),
                TensorSpec("control_image", "float32", ("control_batch", 3, "8*height", "8*width")),
                TensorSpec("control_scale", "float32", ("batch",)),
            ),
            outputs=(TensorSpec("noise_pred", "float32", ("batch", 4, "height", "width")),),
            sizes=_sdxl_sizes,
            # odd latent sizes: they lead the trace through the UNet's general path, right at every size
            trace_sizes={"batch": 3, "control_batch": 2, "height": 13, "width": 11, "sequence": 77},
            float32={
                "time_proj": _SINUSOIDS,
                "add_time_proj": _SINUSOIDS,
                "cross_normalization": _STATISTICS,
            },
        ),
    ),
    samplers=("unipc", "euler", "euler_a", "ddim", "ddpm", "dpmpp_2m"),
    default_sampler="unipc",
    default_steps=20,
    default_guidance=5.0,
    default_size=1024,
    vae_factor=8,
    increments=True,
    pipeline_options={"add_watermarker": False},
    prompt_encoders=("text_encoder", "text_encoder_2"),
    conditioning=("time_ids",),
    # the original SDXL VAE says so in its configuration; the fp16-fix VAE says false
    float32_vae=lambda config: bool(config.get("force_upcast", True)),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (_SDXL,)})


def get_family(name: str) -> Family:
    """The family of that name; raises :class:`InputError` naming those that exist."""
    if name not in FAMILIES:
        raise InputError(f"unknown model {name!r}; accepted: {', '.join(FAMILIES)}")
    return FAMILIES[name]
