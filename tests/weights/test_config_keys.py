"""Every key of a network's configuration has its rule; settings that no graph supports are refused."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import diffusers
import pytest
import transformers

from controlnext.errors import CheckpointError
from controlnext.families import FAMILIES, Network, get_family
from controlnext.weights.config_check import check_network, check_unknown
from controlnext.weights.config_keys import NETWORKS
from controlnext.weights.networks import complete_config
from controlnext.weights.shipped import shipped_config

OF_DIFFUSERS = [name for name in NETWORKS if hasattr(diffusers, name)]
ALL = {
    one.cls: one
    for family in FAMILIES.values()
    for network in family.networks.values()
    for one in (network, *network.alternatives)
}
SET_BY_CLASS = {"AutoencoderTiny": {"block_out_channels"}}
"""Keys that a class writes into its configuration although they are no parameters of it."""
NEWER = "999.0.0"


def parameters(cls: Any) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", OF_DIFFUSERS)
def test_every_parameter_of_a_network_has_a_rule(name: str) -> None:
    """And no rule is about a parameter that the class does not have."""
    assert parameters(getattr(diffusers, name)) | SET_BY_CLASS.get(name, set()) == set(NETWORKS[name])


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(OF_DIFFUSERS)))
def test_every_key_of_a_configuration_of_transformers_has_a_rule(name: str) -> None:
    general = set(transformers.PretrainedConfig().to_dict())
    own = set(getattr(transformers, name).config_class().to_dict()) - general
    assert own <= set(NETWORKS[name])


def test_every_network_of_the_registry_has_rules() -> None:
    assert set(ALL) == set(NETWORKS)
    assert all(rule.why for rules in NETWORKS.values() for rule in rules.values())
    assert all(
        rule.accepted for rules in NETWORKS.values() for rule in rules.values() if rule.kind == "limited"
    )


UNET_REFUSED = {
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["KUpBlock2D"],
    "num_attention_heads": 8,
    "time_cond_proj_dim": 2,
    "class_embed_type": "timestep",
    "num_class_embeds": 10,
    "class_embeddings_concat": True,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_image_proj",
    "addition_embed_type": "image_hint",
    "attention_type": "gated",
    "upcast_attention": True,
    "dual_cross_attention": True,
    "time_embedding_type": "fourier",
    "resnet_skip_time_act": True,
    "cross_attention_norm": "layer_norm",
    "mid_block_only_cross_attention": True,
    "cross_attention_dim": True,
    "sample_size": True,
    "quantization_config": {"load_in_8bit": True},
}
REFUSED: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": UNET_REFUSED,
    "UNetSpatioTemporalConditionModel": {
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "cross_attention_dim": [1024, 2048],
        "sample_size": None,
    },
    "SD3Transformer2DModel": {"out_channels": 32, "sample_size": [64, 64]},
    "AutoencoderKL": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D"],
        "scaling_factor": None,
    },
    "AutoencoderKLTemporalDecoder": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D"],
        "scaling_factor": 0,
    },
    "AutoencoderTiny": {
        "in_channels": 4,
        "out_channels": 4,
        "encoder_block_out_channels": [64, 64, 64],
        "decoder_block_out_channels": [64, 64, 64],
        "num_encoder_blocks": [1, 3, 3],
        "num_decoder_blocks": [3, 3, 1],
        "upsampling_scaling_factor": 4,
        "upsample_fn": "bilinear",
        "scaling_factor": None,
    },
    "CLIPTextModel": {"return_dict": False, "quantization_config": {"bits": 4}, "model_type": "bert"},
    "CLIPTextModelWithProjection": {
        "return_dict": False,
        "quantization_config": {"bits": 4},
        "model_type": "roberta",
    },
    "CLIPVisionModelWithProjection": {
        "return_dict": False,
        "quantization_config": {"bits": 4},
        "model_type": "siglip_vision_model",
        "num_channels": 4,
    },
    "T5EncoderModel": {"return_dict": False, "quantization_config": {"bits": 4}, "model_type": "umt5"},
}


def test_a_value_is_tried_of_every_limited_key() -> None:
    for name, rules in NETWORKS.items():
        limited = {key for key, rule in rules.items() if rule.kind == "limited"}
        assert limited <= set(REFUSED[name]), name


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(name, key, value) for name, keys in REFUSED.items() for key, value in keys.items()],
)
def test_what_a_network_asks_for_and_no_graph_does_is_refused_by_name(
    name: str, key: str, value: Any
) -> None:
    with pytest.raises(CheckpointError, match=rf"its {ALL[name].folder} has {key}=.*accepted: ") as caught:
        check_network(ALL[name], {"_class_name": name, key: value})
    assert "\n" not in str(caught.value)


TOO_LARGE: list[tuple[str, str, Any, int]] = [
    ("UNet2DConditionModel", "layers_per_block", 10**9, 200),
    ("UNet2DConditionModel", "layers_per_block", [2, 10**9], 200),
    ("UNet2DConditionModel", "transformer_layers_per_block", [1, 201], 200),
    ("UNet2DConditionModel", "block_out_channels", [320, 10**9], 10**6),
    ("UNetSpatioTemporalConditionModel", "layers_per_block", 10**9, 200),
    ("SD3Transformer2DModel", "num_layers", 10**9, 200),
    ("SD3Transformer2DModel", "pos_embed_max_size", 10**6, 1024),
    ("AutoencoderKL", "layers_per_block", 10**9, 200),
    ("AutoencoderTiny", "num_decoder_blocks", [1, 1, 1, 10**9], 200),
    ("CLIPTextModel", "num_hidden_layers", 10**9, 200),
    ("CLIPTextModel", "max_position_embeddings", 10**9, 10**6),
    ("CLIPVisionModelWithProjection", "num_hidden_layers", 10**9, 200),
    ("T5EncoderModel", "num_layers", 10**9, 200),
]


@pytest.mark.parametrize(("name", "key", "value", "most"), TOO_LARGE)
def test_sizes_that_no_network_has_are_refused(name: str, key: str, value: Any, most: int) -> None:
    """Before the library makes modules or tables of that size, which would not end."""
    known = {**ALL, "AutoencoderTiny": get_family("sd15").known_networks["preview_vae"]}
    with pytest.raises(CheckpointError, match=rf" has {key}=.*accepted: at most {most}\)"):
        complete_config(known[name], {"_class_name": name, key: value})


WRONG_KINDS: list[tuple[str, str, Any, str]] = [
    ("AutoencoderKL", "shift_factor", "0.1", "a number or null"),
    ("AutoencoderKL", "latent_channels", True, "an integer"),
    ("UNet2DConditionModel", "norm_num_groups", -1, "an integer or null, not below 0"),
    ("AutoencoderKL", "latents_mean", 0.5, "a list or null"),
    ("AutoencoderKL", "force_upcast", "no", "true or false"),
    ("AutoencoderKLTemporalDecoder", "force_upcast", 1, "true or false"),
    ("UNet2DConditionModel", "act_fn", 3, "a string"),
    ("UNet2DConditionModel", "norm_num_groups", 32.0, "an integer or null"),
    ("UNet2DConditionModel", "norm_eps", [1e-5], "a number"),
    ("UNet2DConditionModel", "norm_eps", float("inf"), "a number"),
    ("UNet2DConditionModel", "block_out_channels", ["wide"], "a list"),
    ("UNet2DConditionModel", "addition_time_embed_dim", "256", "an integer or null"),
    ("UNetSpatioTemporalConditionModel", "num_frames", None, "an integer"),
    ("SD3Transformer2DModel", "patch_size", [2, 2], "an integer"),
    ("CLIPTextModel", "hidden_size", "768", "an integer"),
    ("CLIPTextModel", "layer_norm_eps", True, "a number"),
    ("T5EncoderModel", "is_gated_act", "yes", "true or false"),
]


@pytest.mark.parametrize(("name", "key", "value", "accepted"), WRONG_KINDS)
def test_a_value_of_another_kind_is_refused_by_name(name: str, key: str, value: Any, accepted: str) -> None:
    message = rf"its {ALL[name].folder} has {key}=.*not a value of this key \(accepted: {accepted}\); correct"
    with pytest.raises(CheckpointError, match=message):
        check_network(ALL[name], {"_class_name": name, key: value})


@pytest.mark.parametrize("name", OF_DIFFUSERS)
def test_defaults_and_null_for_false_are_of_the_right_kind(name: str) -> None:
    defaults = {key: p.default for key, p in inspect.signature(getattr(diffusers, name)).parameters.items()}
    sizes = {"sample_size": 64} if "sample_size" in defaults else {}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    check_network(ALL[name], {**defaults, **sizes})
    check_network(ALL[name], {**lists, **sizes})
    check_network(ALL[name], {key: None for key, value in defaults.items() if value is False})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_time_embed_dim": None}, "addition_time_embed_dim=None and projection_class"),
        ({"projection_class_embeddings_input_dim": None}, "input_dim=None .*more than 6 times the first"),
        ({"projection_class_embeddings_input_dim": 1536}, "input_dim=1536"),
    ],
)
def test_embeddings_of_sizes_have_widths_that_leave_the_prompt_one(
    changes: dict[str, Any], message: str
) -> None:
    config = shipped_config(get_family("sdxl"), get_family("sdxl").networks["unet"])
    with pytest.raises(CheckpointError, match=f"its unet has addition_embed_type=text_time with .*{message}"):
        check_network(ALL["UNet2DConditionModel"], {**config, **changes})


def of_vae(family: str, **changes: Any) -> dict[str, Any]:
    network = get_family(family).networks["vae"]
    return complete_config(network, {**shipped_config(get_family(family), network), **changes})


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("sd15", {"shift_factor": 0.1}, "of another family: shift_factor is 0.1, expected None"),
        ("sdxl", {"shift_factor": 0.1}, "of another family: shift_factor is 0.1, expected None"),
        ("sd15", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "another family: latents_mean is"),
        ("sd3", {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}, "another family: latents_mean is"),
        ("sd3", {"shift_factor": None}, "vae has shift_factor=None, where this family reads a number"),
        ("sdxl", {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "null for both, or lists of 4"),
        ("sdxl", {"latents_std": [1.0] * 4}, "latents_mean=None and .*null for both, or lists of 4"),
    ],
)
def test_what_the_stock_pipeline_does_not_read_of_a_vae_is_refused(
    family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        of_vae(family, **changes)


def test_what_it_reads_of_a_vae_passes() -> None:
    statistics = {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}
    assert of_vae("sdxl", **statistics)["latents_mean"] == [0.1] * 4
    assert of_vae("sd3", shift_factor=0)["shift_factor"] == 0


def test_the_network_of_a_checkpoint_is_checked_before_it_is_built() -> None:
    network = get_family("sdxl").networks["unet"]
    config = shipped_config(get_family("sdxl"), network)
    # diffusers itself would refuse a projection without a width, in words of its own
    with pytest.raises(CheckpointError, match="class_embed_type='projection', which is not supported"):
        complete_config(network, {**config, "class_embed_type": "projection"})


def test_unknown_keys_are_warned_of_or_refused_where_a_newer_release_wrote_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = {"_private": 1, "off": False, "nothing": None, "known": 5}
    check_unknown("its unet", config, {"known"}, "this class")
    assert not caplog.records
    check_unknown("its unet", {**config, "mode": "swish"}, {"known"}, "this class")
    assert "its unet has mode='swish', which this class does not know: it is left out" in caplog.text
    newer = {**config, "_diffusers_version": NEWER}
    check_unknown("its unet", newer, {"known"}, "this class")
    with pytest.raises(CheckpointError, match=rf"mode='swish', which .* {NEWER} wrote it.*update diffusers"):
        check_unknown("its unet", {**newer, "mode": "swish"}, {"known"}, "this class")


def test_keys_of_training_are_no_unknown_keys(caplog: pytest.LogCaptureFixture) -> None:
    """Keys that diffusers' EMAModel saves, and a switch of a class for training."""
    caplog.set_level(logging.WARNING)
    check_network(ALL["UNet2DConditionModel"], {"decay": 0.9999, "use_ema_warmup": True, "power": 0.75})
    check_network(Network("unet", "diffusers", "SomeOtherModel"), {"anything": 1})
    assert not caplog.records
