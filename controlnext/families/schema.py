"""Frozen dataclasses of the registry's entries: data, and no heavy computation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

from controlnext.errors import InputError
from controlnext.families.graph_spec import CLASS, Config, GraphSpec
from controlnext.families.image_start import ImageStart
from controlnext.families.samplers import NOISE_SCHEDULERS
from controlnext.families.values import Numbers
from controlnext.image_prompts import IMAGE_ENCODER

VAE, PREVIEW_VAE = "vae", "preview_vae"
"""Names of the network that decodes results, and of the tiny one that may decode previews."""
VAE_DECODER, PREVIEW_DECODER = "vae_decoder", "preview_decoder"
"""Names of their graphs."""
VAE_ENCODER = "vae_encoder"
"""Name of the graph that encodes images."""
LARGEST_SIDE = 1 << 16
"""Pixels of a side that no model makes, and of which sizes in memory still can be computed."""


@dataclass(frozen=True)
class Injection:
    """Place and method of adding the control feature ``c`` to the denoiser's feature ``x``.

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
    """Channels of that feature, from the denoiser's configuration; the control's output has the same
    number."""
    tokens: bool = False
    """Whether the feature is a sequence of tokens (B, tokens, C) that ``module`` makes of (B, C', H, W) in
    patches: the control is pooled to the grid of patches and flattened."""
    gain: float = 1.0
    use_sigmoid: bool = False
    """``strength`` is ``gain * s``, or ``gain * sigmoid(s)`` with ``use_sigmoid``; ``s`` is the control
    scale, times the control module's learned scale where it has one."""


@dataclass(frozen=True)
class ControlSpec:
    """Widths of a control module; the defaults are the published ones, a checkpoint's own are read from
    it."""

    out_channels: int
    embedding: tuple[int, ...] = (64, 64, 128)
    """Widths of the first convolutions, the first with stride 2; none in the first SD1.5 release."""
    embedding_padding: tuple[int, ...] = (1, 1, 1)
    embedding_groups: int = 2
    embedding_pool: bool = False
    """Whether a 2 x 2 max-pool follows them."""
    stages: tuple[int, ...] = (128, 256)
    stage_groups: tuple[int, ...] = (4, 8)
    mid_groups: int = 8
    """Groups of the middle block's norms; 0 for a middle without norms and without residual connection."""
    learned_scale: bool = False
    time_channels: tuple[int, int] = (128, 256)


@dataclass(frozen=True)
class Variant:
    """A released variant of a family: its control module and where that is injected."""

    name: str
    control: ControlSpec
    injection: Injection
    unconditional_scale: float = 1.0
    """Factor of the control scale in the unconditional half of a guided batch."""
    off_scale: float = 0.0
    """The control scale that switches the control off."""


@dataclass(frozen=True)
class Network:
    """One PyTorch network: its directory in a diffusers checkpoint and the class of its weights."""

    folder: str
    library: Literal["diffusers", "transformers"]
    cls: str
    optional: bool = False
    tokenizer: str = ""
    """Directory of this text encoder's tokenizer."""
    tokens: int = 0
    """The number of tokens that prompts are padded and truncated to; 0: the encoder's number of positions."""
    required: Config = field(default_factory=dict)
    """Configuration values that distinguish this family's network from others of the same class; a set is of
    values that it may have."""
    read: Mapping[str, Numbers] = field(default_factory=dict)
    """Configuration values that the runtime reads from a bundle's manifest, and what they may be."""
    traced: Config = field(default_factory=dict)
    """Configuration values that replace the checkpoint's for tracing: the same numbers by operators that
    engines run faster. Weights may differ in dimensions of 1."""
    alternatives: tuple[Network, ...] = ()
    """Networks of other classes that may take its place, such as a tiny VAE of the same latents."""

    def accepts(self, key: str, value: object) -> bool:
        """Return whether a network of this family may have a value of :attr:`required`."""
        wanted = self.required[key]
        return value in wanted if isinstance(wanted, frozenset) else bool(value == wanted)

    def of(self, config: Config) -> Network:
        """Return the network that a configuration is of: an alternative if it names its class."""
        return next((one for one in self.alternatives if one.cls == config.get(CLASS)), self)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that the network may have."""
        return (self.cls, *(one.cls for one in self.alternatives))


@dataclass(frozen=True)
class LatentRgb:
    """A linear map of latents, scaled as the denoiser has them, to RGB in [-1, 1]: ``latents @ factors +
    bias``, with a row of ``factors`` for each channel."""

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ControlNet:
    """The ControlNet in diffusers that the benchmark compares with: the class of the control network (a copy
    of the denoiser's first half), and the pipeline that runs it."""

    model: str
    pipeline: str
    options: Config = field(default_factory=dict)
    """Arguments of the published ones that differ from the class's defaults."""
    image: str = "image"
    """The pipeline's argument for the control image."""


@dataclass(frozen=True)
class ImagePromptNeeds:
    """The image encoder that image prompts need, and the width of the published resamplers' latents."""

    encoder: Network
    hidden: int


@dataclass(frozen=True)
class Family:
    """A family of ControlNeXt models."""

    name: str
    title: str
    default_base: str
    task: Literal["image", "video"]
    """Which of the runtime's tasks (:mod:`controlnext.runtime`) and PyTorch references samples it."""
    pipeline_class: str
    """The stock diffusers pipeline that the PyTorch reference runs."""
    denoiser: str
    variants: Mapping[str, Variant]
    networks: Mapping[str, Network]
    graphs: tuple[GraphSpec, ...]
    samplers: tuple[str, ...]
    """Names in :data:`controlnext.families.samplers.SAMPLER_SPECS`."""
    default_sampler: str
    default_steps: int
    default_guidance: float
    schedulers: tuple[str, ...] = NOISE_SCHEDULERS
    """Scheduler classes of bases whose configuration the samplers can read."""
    pipelines: tuple[str, ...] = ()
    """Other diffusers pipelines whose bases have the same networks."""
    vae_factor: int = 8
    vae_tiling: bool = True
    """Whether the VAE's diffusers class can decode in tiles."""
    size_multiple: int = 8
    """Height and width of a result must be multiples of this."""
    largest_size: Callable[[Config], float] = field(default=lambda _config: LARGEST_SIDE)
    """The largest height and width in pixels, from the denoiser's configuration."""
    prompt_encoders: tuple[str, ...] = ()
    """Graph names of the text encoders, in the order in which their embeddings are concatenated."""
    sequence_encoder: str = ""
    """Graph name of a text encoder whose embeddings are appended to the others along the sequence; zeros if a
    bundle does not have it."""
    multi_vector_tokens: bool = True
    """Whether an added token with several vectors expands to all of them, as in the diffusers pipelines that
    load textual inversions."""
    pooled_input: str = ""
    """The denoiser's input for the text encoders' pooled embeddings."""
    join_pooled: bool = False
    """Whether the pooled embeddings of all text encoders are concatenated; if not, the last one is used."""
    conditioning: Mapping[str, Callable[[int, int], tuple[float, ...]]] = field(default_factory=dict)
    """Inputs of the denoiser that are computed from height and width in pixels: one row each."""
    pipeline_options: Config = field(default_factory=dict)
    """Further arguments of ``pipeline_class``, besides networks and the checkpoint's own options."""
    checkpoint_options: Config = field(default_factory=dict)
    """Options that a checkpoint may set, with their defaults: in ``model_index.json``, or in
    ``feature_extractor/preprocessor_config.json``."""
    scheduler_options: Config = field(default_factory=dict)
    """Options that ``pipeline_class`` sets in any scheduler's configuration."""
    increments: bool = False
    """Whether the denoiser's tensors published beside the control module are increments."""
    float32_vae: Callable[[Config], bool] = field(default=lambda _config: False)
    """Whether a VAE of this configuration overflows in float16 and has to stay in float32."""
    preview_vae: Network | None = None
    """A tiny VAE that may be given beside the base, for previews."""
    image_prompts: ImagePromptNeeds | None = None
    """For families that IP-Adapters are trained for."""
    latent_rgb: LatentRgb | None = None
    """The map of latents to the colours of previews where a bundle has no decoder for them."""
    controlnet: ControlNet | None = None
    """The ControlNet to compare with; None if diffusers has none."""
    image_start: ImageStart | None = None
    """How a run starts from an image; None if it cannot."""
    note: str = ""
    """A note for users who choose this family."""

    @property
    def known_networks(self) -> Mapping[str, Network]:
        """The networks that a bundle may have: the base's, the VAE of previews, the encoder of image
        prompts."""
        previews = {} if self.preview_vae is None else {PREVIEW_VAE: self.preview_vae}
        encoder = {} if self.image_prompts is None else {IMAGE_ENCODER: self.image_prompts.encoder}
        return {**self.networks, **previews, **encoder}

    def made_for(self, config: Config) -> tuple[int, int] | None:
        """Return height and width in pixels of the denoiser's training images, if its configuration has
        them."""
        size = config.get("sample_size")
        if not size:
            return None
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return self.vae_factor * height, self.vae_factor * width

    def nearest_sizes(self, size: object) -> str:
        """Return a hint for messages that reject a height or width: ``" (the nearest are 1016 and
        1024)"``."""
        if not isinstance(size, Integral):
            return ""
        below = int(size) // self.size_multiple * self.size_multiple
        if below < self.size_multiple:
            return f" (the smallest is {self.size_multiple})"
        return f" (the nearest are {below} and {below + self.size_multiple})"

    def variant(self, name: str) -> Variant:
        """Return the variant of that name. Raises :class:`InputError` listing the accepted names."""
        if name not in self.variants:
            raise InputError(
                f"{self.name} has no variant {name!r}; accepted: {', '.join(self.variants)}",
                argument="variant",
            )
        return self.variants[name]
