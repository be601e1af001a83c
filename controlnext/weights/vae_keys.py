"""The treatment of every key of a VAE's configuration, as data, for
:mod:`controlnext.weights.config_keys`."""

from __future__ import annotations

from controlnext.families.values import is_number
from controlnext.weights.config_rules import RUNTIME, TRACED, Rule, Rules, blocks, harmless, keys, only

KL_VAE: Rules = {
    **keys(TRACED, "layers_per_block", "block_out_channels", "latent_channels"),
    "in_channels": only(3, why="the graph takes RGB images"),
    "out_channels": only(3, why="the graph gives RGB images"),
    "down_block_types": blocks("DownEncoderBlock2D"),
    "sample_size": RUNTIME,
    "scaling_factor": Rule(
        "limited", "latents are divided by it", lambda v: is_number(v) and v > 0, "a number above 0"
    ),
    "force_upcast": Rule("supported", "keeps the VAE's graphs in float32"),
}
VAE: Rules = {
    **KL_VAE,
    **keys(
        TRACED,
        "act_fn",
        "norm_num_groups",
        "use_quant_conv",
        "use_post_quant_conv",
        "mid_block_add_attention",
    ),
    **keys(RUNTIME, "shift_factor", "latents_mean", "latents_std"),
    "up_block_types": blocks("UpDecoderBlock2D"),
}

_FOUR = Rule(
    "limited",
    "images are 8 times as high and wide as latents",
    lambda value: isinstance(value, list | tuple) and len(value) == 4,
    "a list of 4",
)
TINY_VAE: Rules = {
    **keys(TRACED, "act_fn", "latent_channels"),
    **keys(
        _FOUR,
        "encoder_block_out_channels",
        "decoder_block_out_channels",
        "num_encoder_blocks",
        "num_decoder_blocks",
    ),
    **{key: KL_VAE[key] for key in ("in_channels", "out_channels", "scaling_factor")},
    "upsampling_scaling_factor": only(2, why="images are 8 times as high and wide as latents"),
    "upsample_fn": only("nearest", why="another interpolation was never compared"),
    "shift_factor": RUNTIME,
    "force_upcast": harmless("diffusers' class sets it to false"),
    "block_out_channels": harmless("diffusers' class sets it to the decoder's"),
    **keys(
        harmless("of latents as 8-bit images, which nothing here stores"), "latent_magnitude", "latent_shift"
    ),
}
