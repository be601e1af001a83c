"""Prompts become the ids that diffusers' pipelines make of them, added tokens of several vectors included."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from controlnext.families import FAMILIES, Family, get_family
from controlnext.reference.tokens import stock_tokenizers
from controlnext.runtime.tokens import PromptTokenizer
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.tokenizers import read_tokenizer
from support.exports import SHAPES
from support.tokenizer_files import (
    ADDED,
    KNOWN,
    VOCABULARY,
    write_fast,
    write_oldest,
    write_settings,
    write_slow,
)
from support.weights_models import t5_tokenizer

SDXL = get_family("sdxl")
WRITERS = {"slow": write_slow, "oldest": write_oldest, "fast": write_fast}
PROMPTS = [
    "",
    "<toy>",
    "a <toy> a blue background",
    "a <toy>, <toy>! (<toy>).<toy>",
    "A <TOY> ON <Toy> AND <BIG>",
    "<toy><toy>_1<toy>_2 <toy>_1",
    "<nothing> <toy <toy>_3 <toy>_",
    "a cat-toy, cat-toys, gap gap_2",
    "<toy> " * 40,
    "red circle " * 80 + "<toy>",
    "<|endoftext|> <|startoftext|> ! <toy>",
]


@pytest.fixture(scope="module", params=list(WRITERS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The runtime's tokenizer, and the one that diffusers loads from the same folder."""
    folder = WRITERS[request.param](tmp_path_factory.mktemp(request.param) / "tokenizer")
    content = read_tokenizer(folder, SDXL.networks["text_encoder_2"], KNOWN)
    return PromptTokenizer(content, multi_vector=True), CLIPTokenizer.from_pretrained(folder)


def _ids(tokenizer: PromptTokenizer, *prompts: str) -> list[list[int]]:
    return [tokens.encoding.ids for tokens in tokenizer(prompts)]


def _diffusers_ids(tokenizer: Any, prompt: str) -> list[int]:
    """As every ``encode_prompt`` of a pipeline that loads textual inversions."""
    text = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
    length = tokenizer.model_max_length
    ids: list[int] = tokenizer(text, padding="max_length", max_length=length, truncation=True).input_ids
    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_diffusers(both: tuple[Any, Any], prompt: str) -> None:
    ours, stock = both
    assert _ids(ours, prompt) == [_diffusers_ids(stock, prompt)]


@given(st.lists(st.sampled_from([*ADDED, *" ,.!()_1-'", "a", "RED", "<TOY>", "\n", "é", "画"]), max_size=90))
def test_any_text_has_the_ids_of_diffusers(both: tuple[Any, Any], parts: list[str]) -> None:
    ours, stock = both
    prompt = "".join(parts)
    assert _ids(ours, prompt) == [_diffusers_ids(stock, prompt)]


def test_every_vector_is_used_and_what_is_cut_off_is_told(both: tuple[Any, Any]) -> None:
    """Check the expected ids of a prompt with a token of three vectors, independently of diffusers."""
    first = len(VOCABULARY)
    (ids,) = _ids(both[0], "a <toy>")
    assert ids[1:6] == [VOCABULARY["a</w>"], first, first + 1, first + 2, VOCABULARY["<|endoftext|>"]]
    (tokens,) = both[0](["<toy> " * 26])
    assert tokens.cut_off == "<toy> <toy>_1 <toy>_2"
    assert both[0](["<toy>"])[0].cut_off == ""
    assert both[0].added == ["<toy>", "cat-toy", "<Big>", "<one>", "gap", "gap_2"]


def test_a_prompt_that_is_cut_off_in_front_is_told_by_its_front(tmp_path: Path) -> None:
    folder = write_fast(tmp_path / "tokenizer", truncation_side="left", padding_side="left")
    ours = PromptTokenizer(read_tokenizer(folder, SDXL.networks["text_encoder"], KNOWN), multi_vector=True)
    stock = CLIPTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        assert _ids(ours, prompt) == [_diffusers_ids(stock, prompt)]
    assert ours(["red " + "blue " * 75])[0].cut_off == "red"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_vectors_are_joined_where_diffusers_joins_them(family: Family) -> None:
    if family.prompt_encoders:
        stock = getattr(diffusers, family.pipeline_class)
        assert family.multi_vector_tokens == issubclass(stock, TextualInversionLoaderMixin)


def test_t5_has_the_added_token_alone(tmp_path: Path) -> None:
    """SD3's pipeline loads no textual inversions: a token that a base has nevertheless stands for itself."""
    stock = t5_tokenizer()
    stock.add_tokens(["<toy>", "<toy>_1"])
    stock.save_pretrained(tmp_path)
    family = get_family("sd3")
    content = read_tokenizer(tmp_path, family.networks["text_encoder_3"], {"vocab_size": len(stock)})
    ours = PromptTokenizer(content, family.multi_vector_tokens)
    for prompt in PROMPTS:
        wanted = stock(prompt, padding="max_length", max_length=256, truncation=True).input_ids
        assert _ids(ours, prompt) == [wanted]
    assert ours.added == ["<toy>", "<toy>_1"]


def _invert(pipe: Any, name: str) -> None:
    """Load a textual inversion of three vectors for the text encoder ``name`` alone."""
    tokenizer, encoder = (getattr(pipe, part.format(name)) for part in ("tokenizer{}", "text_encoder{}"))
    vectors = torch.randn(3, encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion(vectors, token="<toy>", text_encoder=encoder, tokenizer=tokenizer)


@pytest.fixture(scope="module", params=["", "_2", "both"])
def inverted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The checkpoint of the small trained model whose base was saved after a textual inversion was loaded for
    the first, the second or both text encoders, and the stock pipeline of that base."""
    stock = diffusers.StableDiffusionXLPipeline.from_pretrained(SHAPES / "base").to(torch.float32)
    for name in ("", "_2") if request.param == "both" else (request.param,):
        _invert(stock, name)
    folder = tmp_path_factory.mktemp("inverted") / "base"
    stock.save_pretrained(folder)
    return load_checkpoint(SDXL, base=folder, control=SHAPES / "controlnet.safetensors"), stock


def _hidden(checkpoint: Checkpoint, prompt: str) -> np.ndarray:
    """The embeddings of a prompt, by PyTorch with the checkpoint's weights and the runtime's token ids."""
    parts = []
    for name in ("text_encoder", "text_encoder_2"):
        tokenizer = PromptTokenizer(checkpoint.tokenizers[name.replace("text_encoder", "tokenizer")], True)
        ids = torch.tensor(_ids(tokenizer, prompt))
        with torch.no_grad():
            output = checkpoint.networks[name].module()(ids, output_hidden_states=True)
        parts.append(output.hidden_states[-2].numpy())
    return np.concatenate(parts, axis=-1)


def test_embeddings_of_a_base_with_textual_inversions(inverted: tuple[Any, Any]) -> None:
    """Of prompts and negative ones, with one or both tokenizers that know the token."""
    checkpoint, stock = inverted
    prompts = {"prompt": "a <toy> a blue background", "negative_prompt": "<toy>, red"}
    with torch.no_grad():
        wanted = stock.encode_prompt(**prompts, do_classifier_free_guidance=True)
    for prompt, embeddings in zip(prompts.values(), wanted[:2], strict=True):
        np.testing.assert_allclose(_hidden(checkpoint, prompt), embeddings.numpy(), rtol=1e-4, atol=1e-4)


def test_the_reference_does_not_take_the_tokenizers_of_the_export(inverted: tuple[Any, Any]) -> None:
    """It loads them from the base: what an export's tokenizers lack, a comparison shows."""
    checkpoint, stock = inverted
    wrong = dataclasses.replace(checkpoint, tokenizers=dict.fromkeys(checkpoint.tokenizers, "{}"))
    for name, tokenizer in stock_tokenizers(wrong, checkpoint.networks).items():
        prompt = "a <toy> on red"
        assert _diffusers_ids(tokenizer, prompt) == _diffusers_ids(getattr(stock, name), prompt)


def test_the_reference_of_a_bundle_takes_the_bundles_tokenizers(tmp_path: Path) -> None:
    folder = write_fast(tmp_path / "tokenizer", padding_side="left", truncation_side="left")
    content = read_tokenizer(folder, SDXL.networks["text_encoder"], KNOWN)
    checkpoint = Checkpoint(SDXL, SDXL.variant("sdxl"), {}, {"tokenizer": content}, {}, {}, [], False)
    loaded = stock_tokenizers(checkpoint, ["text_encoder"])
    assert loaded["tokenizer_2"] is None
    for prompt in PROMPTS:
        assert _diffusers_ids(loaded["tokenizer"], prompt) == _ids(PromptTokenizer(content, True), prompt)[0]


def test_a_length_that_the_folder_does_not_name_is_that_of_the_text_encoder(tmp_path: Path) -> None:
    write_fast(tmp_path / "tokenizer")
    write_settings(tmp_path / "tokenizer", model_max_length=None)
    content = read_tokenizer(tmp_path / "tokenizer", SDXL.networks["text_encoder"], KNOWN)
    assert len(_ids(PromptTokenizer(content, True), "red")[0]) == 77
