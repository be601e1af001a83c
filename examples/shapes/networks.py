"""The networks of the small model, freshly initialised: SDXL's architecture with small widths."""

import json
from dataclasses import replace

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
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
    """Factor 8, 4 latent channels. Two groups, so that normalization leaves the absolute colours alone."""
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


def build_unet() -> UNet2DConditionModel:
    """A narrower and shallower SDXL UNet."""
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
    """The plain and the projecting CLIP text encoder."""
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
    """The published control module at a quarter of its widths."""
    return replace(VARIANT.control, out_channels=UNET_WIDTHS[0], embedding=(16, 16, 32), stages=(32, 64))


def build_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """CLIP's tokenizer over a small vocabulary. One pads with the end token, one with "!", as in SDXL."""
    vocabulary, merges = _vocabulary()
    return tuple(
        CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=PROMPT_LENGTH)
        for pad in (END, "!")
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """The scheduler of SDXL's base model."""
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
    """CLIP's layout: all bytes, all bytes at a word's end, merges, start, end. Any text can be tokenized."""
    merges = _merges()
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_alphabet() -> list[str]:
    """The 256 byte symbols in CLIP's order: printable ones first, "!" being 0."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _merges() -> list[tuple[str, str]]:
    """Byte pair merges that make each word of the prompts one token."""
    words = [*PALETTE, *KINDS, "on", "background"]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(end_of_word_suffix="</w>", min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
