"""The treatment of every key of the base's configurations, as data.

A key is supported (the graph or the runtime implements it), harmless (it changes no number here, for the
given reason) or limited: values that no graph implements raise an error naming the key.
:mod:`controlnext.weights.config_check` applies these rules.
"""

from __future__ import annotations

from collections.abc import Mapping

from controlnext.families.values import is_integer
from controlnext.weights.config_rules import (
    RUNTIME,
    TRACED,
    TRAINING,
    Rule,
    Rules,
    blocks,
    harmless,
    keys,
    only,
)
from controlnext.weights.vae_keys import KL_VAE, TINY_VAE, VAE

MOST = 1_000_000
"""The largest integer of a configuration: vocabularies have up to 250,000 entries."""
_MOST_LAYERS = 200
"""The most layers of a kind: published networks have up to 38."""
MOST_OF_KEYS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "layers_per_block",
            "transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
            "num_layers",
            "num_hidden_layers",
            "num_encoder_blocks",
            "num_decoder_blocks",
        ),
        _MOST_LAYERS,
    ),
    # a table of its square is made
    "pos_embed_max_size": 1024,
}
"""The largest integers of keys that have others."""

_SIZE = Rule(
    "limited",
    "engines and calibration take their sizes from it",
    lambda value: is_integer(value) and value > 0,
    "a positive integer: the size of latents that it was trained at",
)
_WIDTH = Rule("limited", "blocks that read embeddings of different widths", is_integer, "an integer")

UNET: Rules = {
    **keys(
        TRACED,
        "in_channels",
        "out_channels",
        "center_input_sample",
        "flip_sin_to_cos",
        "freq_shift",
        "only_cross_attention",
        "block_out_channels",
        "layers_per_block",
        "downsample_padding",
        "mid_block_scale_factor",
        "act_fn",
        "norm_num_groups",
        "norm_eps",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "attention_head_dim",
        "use_linear_projection",
        "addition_time_embed_dim",
        "resnet_time_scale_shift",
        "resnet_out_scale_factor",
        "time_embedding_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
        "conv_in_kernel",
        "conv_out_kernel",
        "projection_class_embeddings_input_dim",
    ),
    "sample_size": _SIZE,
    "dropout": TRAINING,
    "cross_attention_dim": _WIDTH,
    "addition_embed_type_num_heads": harmless("of addition_embed_type text alone, which is refused"),
    "down_block_types": blocks("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": only(
        "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None, why="another middle was never compared"
    ),
    "up_block_types": blocks("CrossAttnUpBlock2D", "UpBlock2D"),
    "num_attention_heads": only(None, why="diffusers itself refuses it: attention_head_dim counts heads"),
    "time_cond_proj_dim": Rule(
        "limited",
        "the width of the guidance embedding that a distilled denoiser takes",
        lambda value: value is None or (is_integer(value) and value >= 4),
        "null, or an integer of at least 4",
    ),
    "class_embed_type": only(None, why="the denoiser takes class labels, which the graph does not take"),
    "num_class_embeds": only(None, why="the denoiser takes class labels, which the graph does not take"),
    "class_embeddings_concat": only(False, None, why="class labels, which the graph does not take"),
    "encoder_hid_dim": only(None, why="another encoder's embeddings, projected within the denoiser"),
    "encoder_hid_dim_type": only(None, why="another encoder's embeddings, projected within the denoiser"),
    "addition_embed_type": only(
        None, "text_time", why="the denoiser takes image embeddings, hints or pooled text of another kind"
    ),
    "attention_type": only("default", None, why="GLIGEN's boxes and phrases, which the graph does not take"),
    "upcast_attention": only(
        False, None, why="attention in float32 whatever the precision, which float16 graphs do not have"
    ),
    "dual_cross_attention": only(False, None, why="two encoders' embeddings side by side"),
    "time_embedding_type": only("positional", why="random frequencies, which were never compared"),
    "resnet_skip_time_act": only(False, None, why="blocks that no supported denoiser has"),
    "cross_attention_norm": only(None, False, why="blocks that no supported denoiser has"),
    "mid_block_only_cross_attention": only(None, False, why="a middle that no supported denoiser has"),
}

SPATIO_TEMPORAL_UNET: Rules = {
    **keys(
        TRACED,
        "in_channels",
        "out_channels",
        "block_out_channels",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "layers_per_block",
        "transformer_layers_per_block",
        "num_attention_heads",
    ),
    "cross_attention_dim": _WIDTH,
    "sample_size": _SIZE,
    "num_frames": RUNTIME,
    "down_block_types": blocks("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": blocks("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}

SD3_TRANSFORMER: Rules = {
    **keys(
        TRACED,
        "in_channels",
        "num_layers",
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "caption_projection_dim",
        "pooled_projection_dim",
        "dual_attention_layers",
        "qk_norm",
    ),
    "patch_size": RUNTIME,
    "pos_embed_max_size": RUNTIME,
    "sample_size": _SIZE,
    "out_channels": only(16, None, why="the graph gives noise of the latents' 16 channels"),
}

_TRANSFORMERS: Rules = {
    "return_dict": only(True, None, why="outputs by number, which the graph's adapter does not read"),
    "quantization_config": only(None, why="quantized weights; get them in float32, float16 or bfloat16"),
    "initializer_range": TRAINING,
    "initializer_factor": TRAINING,
}
"""Rules for every network of transformers. Other keys are not read by these classes: transformers keeps any
key, and old releases wrote dozens about the generation of text."""

_CLIP: Rules = {
    **_TRANSFORMERS,
    **keys(
        TRACED,
        "hidden_size",
        "intermediate_size",
        "projection_dim",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
    ),
    "attention_dropout": TRAINING,
}
CLIP_TEXT: Rules = {
    **_CLIP,
    **keys(TRACED, "vocab_size", "max_position_embeddings", "eos_token_id"),
    "pad_token_id": harmless("prompts are padded by the tokenizer"),
    "bos_token_id": harmless("the tokenizer puts it in"),
    "model_type": only("clip_text_model", None, why="another encoder than CLIP's of text"),
}
CLIP_VISION: Rules = {
    **_CLIP,
    **keys(TRACED, "image_size", "patch_size"),
    "num_channels": only(3, why="the graph takes RGB images"),
    "model_type": only("clip_vision_model", None, why="another encoder than CLIP's of images"),
}
T5: Rules = {
    **_TRANSFORMERS,
    **keys(
        TRACED,
        "vocab_size",
        "d_model",
        "d_kv",
        "d_ff",
        "num_layers",
        "num_heads",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "layer_norm_epsilon",
        "feed_forward_proj",
        "dense_act_fn",
        "is_gated_act",
    ),
    **keys(TRAINING, "dropout_rate", "classifier_dropout"),
    **keys(
        harmless("of the decoder, which is not used"),
        "num_decoder_layers",
        "use_cache",
        "is_decoder",
        "is_encoder_decoder",
        "scale_decoder_outputs",
        "tie_word_embeddings",
    ),
    "pad_token_id": harmless("prompts are padded by the tokenizer"),
    "eos_token_id": harmless("the tokenizer puts it in"),
    "model_type": only("t5", None, why="another encoder than T5"),
}

NETWORKS: Mapping[str, Rules] = {
    "UNet2DConditionModel": UNET,
    "UNetSpatioTemporalConditionModel": SPATIO_TEMPORAL_UNET,
    "SD3Transformer2DModel": SD3_TRANSFORMER,
    "AutoencoderKL": VAE,
    "AutoencoderKLTemporalDecoder": KL_VAE,
    "AutoencoderTiny": TINY_VAE,
    "CLIPTextModel": CLIP_TEXT,
    "CLIPTextModelWithProjection": CLIP_TEXT,
    "CLIPVisionModelWithProjection": CLIP_VISION,
    "T5EncoderModel": T5,
}
"""Rules by class. Other classes, of registry entries that a user adds, have no rules: their graphs are
traced."""

OF_NETWORKS: Rules = {
    "quantization_config": only(None, why="quantized weights; get them in float32, float16 or bfloat16"),
    # diffusers' EMAModel saves these among the network's
    **keys(
        TRAINING,
        "decay",
        "min_decay",
        "inv_gamma",
        "power",
        "optimization_step",
        "update_after_step",
        "use_ema_warmup",
        "gradient_checkpointing",
    ),
}
"""Rules for keys that are not parameters of a diffusers class but found in its files."""
