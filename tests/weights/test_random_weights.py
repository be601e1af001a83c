"""Random weights: full size, quick, the same every time, of a size that activations survive."""

from __future__ import annotations

import pytest
import torch

from controlnext.errors import InputError
from controlnext.families import get_family
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.base import random_base
from controlnext.weights.networks import empty_module
from controlnext.weights.random_weights import random_tensors
from controlnext.weights.tokenizers import stand_in_tokenizer
from support.weights_models import NETWORKS, SDXL

SD3 = get_family("sd3")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(SDXL, random_seed=0)


@pytest.mark.export
def test_the_architecture_has_its_full_size(checkpoint: Checkpoint) -> None:
    counts = {
        name: sum(parameter.numel() for parameter in network.meta_module().parameters())
        for name, network in checkpoint.networks.items()
    }
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        # TAESD's README: 1,222,532 in the encoder, 1,222,531 in the decoder
        "preview_vae": 2_445_063,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "control": 3_526_400,
    }
    assert set(checkpoint.networks) == {*NETWORKS, "preview_vae", "control"}
    assert set(checkpoint.tokenizers) == {"tokenizer", "tokenizer_2"}
    assert checkpoint.random
    assert [(source.role, source.name) for source in checkpoint.sources] == [("random", "seed 0")]


def test_the_largest_tensors_come_quickly_and_in_float16(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3.5 G numbers a few are drawn, and repeated."""
    drawn, plain = [], torch.randn

    def counted(count: int, **options: torch.Generator) -> torch.Tensor:
        drawn.append(count)
        return plain(count, **options)

    monkeypatch.setattr(torch, "randn", counted)
    tensors = checkpoint.networks["unet"].tensors
    names = [name for name in tensors.keys() if "ff.net.0.proj.weight" in name]  # noqa: SIM118 (values are not read)
    read = [tensors[name] for name in names[:3]]
    assert len(drawn) == len(read)
    assert sum(drawn) < sum(tensor.numel() for tensor in read) / 20
    assert {tensor.dtype for tensor in read} == {torch.float16}


def test_the_numbers_depend_on_seed_network_and_name_alone() -> None:
    shapes = {"a.weight": (300, 500), "b.weight": (300, 500)}
    draw = lambda network, seed: random_tensors(shapes, network, seed)["a.weight"].read()  # noqa: E731
    first = draw("unet", 0)
    assert torch.equal(first, draw("unet", 0))
    assert not torch.equal(first, draw("unet", 1))
    assert not torch.equal(first, draw("vae", 0))
    assert not torch.equal(first, random_tensors(shapes, "unet", 0)["b.weight"].read())


def test_kernels_gains_and_biases_have_their_sizes() -> None:
    shapes = {"conv.weight": (320, 320, 3, 3), "norm.weight": (5000,), "norm.bias": (5000,), "scale": ()}
    drawn = {name: tensor.read().float() for name, tensor in random_tensors(shapes, "unet", 3).items()}
    assert drawn["conv.weight"].std().item() == pytest.approx((320 * 9) ** -0.5, rel=0.01)
    assert drawn["norm.weight"].mean().item() == pytest.approx(1.0, abs=0.01)
    assert drawn["norm.bias"].std().item() == pytest.approx(0.1, rel=0.05)
    assert drawn["scale"].shape == ()


def test_a_tensor_of_two_names_has_the_same_numbers_under_both() -> None:
    """T5's embedding."""
    drawn = random_tensors({"shared.weight": (9, 4), "encoder.embed_tokens.weight": (9, 4)}, "t5", 0)
    assert torch.equal(drawn["shared.weight"].read(), drawn["encoder.embed_tokens.weight"].read())


@pytest.mark.export
def test_sd3_has_its_own_positions_and_a_stand_in_for_t5s_vocabulary() -> None:
    """Tensors that a configuration determines are not drawn; a bundle of random weights takes prompts."""
    base = random_base(SD3, 0, leave_out=["text_encoder"])
    positions = empty_module(
        SD3.networks["transformer"], base.parts["transformer"].config
    ).pos_embed.pos_embed
    drawn = base.parts["transformer"].tensors["pos_embed.pos_embed"].read()
    assert drawn.shape == (1, 192 * 192, 1536)
    assert torch.equal(drawn[:, ::97], positions[:, ::97])
    assert set(base.parts) == {"transformer", "vae", "text_encoder_2", "text_encoder_3", "preview_vae"}
    assert set(base.tokenizers) == {"tokenizer_2", "tokenizer_3"}
    assert base.tokenizers["tokenizer_3"] == stand_in_tokenizer(SD3.networks["text_encoder_3"])
    assert base.scheduler.config["shift"] == 3.0


def test_no_two_rows_of_a_large_matrix_are_alike() -> None:
    matrix = random_tensors({"weight": (1280, 1280)}, "unet", 0)["weight"].read().float()
    rows = matrix / matrix.norm(dim=1, keepdim=True)
    cosines = rows @ rows.T - torch.eye(1280)
    assert cosines.abs().max() < 0.2


@pytest.mark.parametrize("option", ["base", "control", "unet_weights", "vae"])
def test_files_given_with_random_weights_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"remove `{option}` or `random_seed`"):
        load_checkpoint(SDXL, random_seed=0, **{option: "somewhere"})
