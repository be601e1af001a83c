"""Untrained networks of the small model: SDXL's architecture with small widths."""

import json
from dataclasses import replace

from diffusers import AutoencoderKL, AutoencoderTiny, EulerDiscreteScheduler, UNet2DConditionModel
from draw import KINDS, PALETTE, SIZE
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from controlnext.families import ControlSpec, get_family

START, END = "<|startoftext|>", "<|endoftext|>"
PROMPT_LENGTH = 77
UNET_WIDTHS = (64, 80, 112)
TEXT_WIDTHS = (64, 96)
TIME_ID_WIDTH = 16
VARIANT = get_family("sdxl").variant("sdxl")


def build_vae() -> AutoencoderKL:
    """Build a VAE of factor 8 with 4 latent channels; its norms have two groups, to preserve absolute
    colours."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=SIZE,
        force_upcast=False,
    )


def build_tiny_vae() -> AutoencoderTiny:
    """Build a tiny VAE for the same latents, a quarter as wide as the published ones, with fewer blocks."""
    widths = (16, 16, 16, 16)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(2, 2, 1, 1),
    )


def build_unet() -> UNet2DConditionModel:
    """Build a narrower and shallower SDXL UNet."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        norm_num_groups=16,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[width // 16 for width in UNET_WIDTHS],  # as in SDXL: the number of heads
        cross_attention_dim=sum(TEXT_WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_ID_WIDTH + TEXT_WIDTHS[1],
    )


def build_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build the CLIP text encoders, without and with projection."""
    first, second = (
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=width // 16,
            max_position_embeddings=PROMPT_LENGTH,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        for width, activation in zip(TEXT_WIDTHS, ("quick_gelu", "gelu"), strict=True)
    )
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def control_spec() -> ControlSpec:
    """Return the published control module's configuration at a quarter of its widths."""
    return replace(VARIANT.control, out_channels=UNET_WIDTHS[0], embedding=(16, 16, 32), stages=(32, 64))


def build_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Build CLIP tokenizers of a small vocabulary; one pads with the end token, one with "!", as in SDXL."""
    vocabulary, merges = _vocabulary()
    return tuple(
        CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=PROMPT_LENGTH)
        for pad in (END, "!")
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """Build the scheduler of SDXL's base model."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        interpolation_type="linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges in CLIP's layout: bytes, bytes at a word's end, merges, start, end.

    All bytes are tokens, so that any text can be tokenized.
    """
    merges = _merges()
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_alphabet() -> list[str]:
    """Return the 256 byte symbols in CLIP's order: printable ones first, with "!" at 0."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _merges() -> list[tuple[str, str]]:
    """Return byte pair merges that make each word of the prompts one token."""
    words = [*PALETTE, *KINDS, "on", "background"]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
