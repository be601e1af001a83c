"""Textual inversions, against diffusers' loader: tokens, embeddings, and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from controlnext.errors import CheckpointError, InputError
from controlnext.families import get_family
from controlnext.reference import reference_pipeline
from controlnext.runtime.tokens import PromptTokenizer
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.base import Base
from controlnext.weights.scheduler import Scheduler
from controlnext.weights.textual_inversion import add_inversions
from support.weights_models import SDXL, add_text_encoders

KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
PROMPTS = ["a <toy> on a blue background", "<toy> <toy>, <TOY>!", "a red circle", "toy " * 90 + "<toy>"]


@pytest.fixture
def base(folder: Path) -> Path:
    """The tiny SDXL with text encoders."""
    add_text_encoders(folder / "base")
    return folder


def loaded(base: Path, *inversions: object) -> Checkpoint:
    given = [str(one) for one in inversions]
    control = base / "control.safetensors"
    return load_checkpoint(SDXL, base=base / "base", control=control, textual_inversion=given)


def width(base: Path, name: str) -> int:
    found: int = loaded(base).networks[name].config["hidden_size"]
    return found


def vectors(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def embedding(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    (name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
    return tensors[name]


def written(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def webui(tensor: torch.Tensor) -> dict[str, Any]:
    """As web UIs save it; the name is that of the training."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(tensor)},
        "name": "<toy>",
        "step": 500,
    }


def test_a_file_for_both_encoders_is_what_diffusers_loads(base: Path, tmp_path: Path) -> None:
    """Several vectors; the whole of encode_prompt, and the ids of the runtime's tokenizers."""
    both = {key: vectors(3, width(base, name), seed) for seed, (name, key) in enumerate(KEYS.items())}
    checkpoint = loaded(base, f"{written(tmp_path / 'style.safetensors', both)}:<toy>")
    ours = reference_pipeline(checkpoint).pipeline
    stock = reference_pipeline(loaded(base)).pipeline
    for name, key in KEYS.items():
        encoder, tokenizer = getattr(stock, name), getattr(stock, name.replace("text_encoder", "tokenizer"))
        stock.load_textual_inversion(both[key], token="<toy>", text_encoder=encoder, tokenizer=tokenizer)
    for prompt in PROMPTS:
        for got, wanted in zip(ours.encode_prompt(prompt), stock.encode_prompt(prompt), strict=True):
            assert torch.equal(got, wanted)
    for folder in ("tokenizer", "tokenizer_2"):
        plain = PromptTokenizer(checkpoint.tokenizers[folder], multi_vector=True)
        tokenizer = getattr(stock, folder)
        for prompt in PROMPTS:
            text = stock.maybe_convert_prompt(prompt, tokenizer)
            wanted = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
            assert [tokens.encoding.ids for tokens in plain([prompt])] == [wanted]


@pytest.mark.parametrize("kind", ["one key", "one vector", "web UI", "web UI's safetensors", "a tensor"])
def test_all_kinds_of_files(base: Path, tmp_path: Path, kind: str) -> None:
    """Each has the same vectors, for the encoders of their width; the source tells the token."""
    tensor = vectors(1 if kind == "one vector" else 2, width(base, "text_encoder"))
    content = {
        "one key": ("any.safetensors", {"<toy>": tensor}),
        "one vector": ("any.bin", {"<toy>": tensor[0]}),
        "web UI": ("any.pt", webui(tensor)),
        "web UI's safetensors": ("toyish.safetensors", {"emb_params": tensor}),
        "a tensor": ("toyish.pt", tensor),
    }[kind]
    token = "toyish" if content[0].startswith("toyish") else "<toy>"
    checkpoint = loaded(base, written(tmp_path / content[0], content[1]))
    network = checkpoint.networks["text_encoder"]
    table = embedding(network.tensors)
    assert torch.equal(table[-len(tensor) :], tensor)
    assert network.config["vocab_size"] == len(table)
    names = [token, f"{token}_1"][: len(tensor)]
    assert checkpoint.added_tokens["tokenizer"] == names
    (source,) = [source for source in checkpoint.sources if source.role == "textual inversion"]
    assert source.detail == f"token {token}"


def test_two_inversions(base: Path, tmp_path: Path) -> None:
    size = width(base, "text_encoder")
    paths = [written(tmp_path / f"{n}.safetensors", {f"<{n}>": vectors(2, size, n)}) for n in (1, 2)]
    checkpoint = loaded(base, *paths)
    table = embedding(checkpoint.networks["text_encoder"].tensors)
    assert torch.equal(table[-4:], torch.cat([vectors(2, size, 1), vectors(2, size, 2)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<toy>": torch.ones(2, 7)}, "does not fit the text encoders of sdxl: width of its vectors 7"),
        ({"a": torch.ones(2, 16), "b": torch.ones(2, 16)}, "is not a textual inversion: it holds a, b"),
        ({"<toy>": torch.ones(2, 2, 16)}, "is not a textual inversion"),
        ({"clip_l": torch.ones(1, 16)}, ""),
        ({"a": torch.full((1, 16), torch.nan)}, "holds NaN or infinity"),
        ({"a</w>": torch.ones(1, 16)}, "the token a</w> is in the vocabulary of tokenizer"),
    ],
)
def test_what_does_not_fit_is_one_line(
    base: Path, tmp_path: Path, content: dict[str, torch.Tensor], message: str
) -> None:
    size = width(base, "text_encoder")
    fitting = {k: t.repeat_interleave(size // 16, -1) if t.shape[-1] == 16 else t for k, t in content.items()}
    path = written(tmp_path / "styled-toys.safetensors", fitting)
    if not message:
        assert loaded(base, path).added_tokens.keys() == {"tokenizer"}
        return
    with pytest.raises(CheckpointError) as caught:
        loaded(base, path)
    assert message in str(caught.value)
    assert caught.value.argument == "textual_inversion"


def test_code_in_a_file_is_not_run(base: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, ("raise SystemExit('it was run')",)

    path = written(tmp_path / "bad.pt", {"string_to_param": {"*": Payload()}})
    with pytest.raises(CheckpointError, match="would need its code to run"):
        loaded(base, path)


def test_a_family_without_textual_inversions_refuses() -> None:
    """Before anything is read: SD3's pipeline in diffusers has none, and random weights replace all files."""
    family = get_family("sd3")
    assert not family.multi_vector_tokens
    with pytest.raises(InputError, match="textual inversions are not supported by sd3"):
        add_inversions(family, Base(Scheduler({}, {}), {}), ["x.safetensors"])
    with pytest.raises(InputError, match="random weights replace every file: remove `textual_inversion`"):
        load_checkpoint(family, textual_inversion=["x.safetensors"], random_seed=0)
