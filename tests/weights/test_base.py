"""The base model from a diffusers directory: right values, every published file layout, and clear
refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError
from controlnext.families import get_family
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.networks import empty_module
from support.weights_models import NETWORKS, SDXL, add_text_encoders, rewrite_json

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint_dir: Path) -> Path:
    """A tiny base with text encoders and tokenizers; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("full") / "base"
    shutil.copytree(tiny_checkpoint_dir / "base", folder)
    return add_text_encoders(folder)


@pytest.fixture
def base(tmp_path: Path, tiny_checkpoint_dir: Path) -> Path:
    """A copy of the tiny base without text encoders, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint_dir / "base", tmp_path / "base"))


@pytest.fixture(scope="module")
def load(tiny_checkpoint_dir: Path):
    """Load a base with the tiny control module."""

    def load_base(base: Path, **options: object) -> Checkpoint:
        return load_checkpoint(
            SDXL, base=base, control=tiny_checkpoint_dir / "control.safetensors", **options
        )

    return load_base


@pytest.fixture(scope="module")
def loaded(full: Path, load) -> Checkpoint:
    """The tiny base with text encoders, loaded once for the tests that only look at it."""
    return load(full)


@pytest.mark.export
def test_a_module_can_be_had_in_another_precision(loaded: Checkpoint) -> None:
    module = loaded.networks["text_encoder"].module(torch.float16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_meta_modules_have_no_weights_in_memory_but_real_buffers(loaded: Checkpoint) -> None:
    for network in loaded.networks.values():
        module = network.meta_module()
        assert all(parameter.is_meta for parameter in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())


def test_the_rest_of_the_checkpoint(loaded: Checkpoint) -> None:
    assert set(loaded.networks) == {*NETWORKS, "control"}
    assert set(loaded.tokenizers) == {"tokenizer", "tokenizer_2"}
    assert loaded.options == {"force_zeros_for_empty_prompt": True}
    assert loaded.scheduler["_class_name"] == "UniPCMultistepScheduler"
    assert not any(key.startswith("_diffusers") for key in loaded.scheduler)
    assert not loaded.random


def test_options_of_the_model_index_are_taken(base: Path, load) -> None:
    rewrite_json(base / "model_index.json", force_zeros_for_empty_prompt=False)
    assert load(base).options == {"force_zeros_for_empty_prompt": False}


@pytest.mark.parametrize("value", [None, "yes", 1, [True]])
def test_an_option_of_another_kind_is_refused(base: Path, load, value: object) -> None:
    rewrite_json(base / "model_index.json", force_zeros_for_empty_prompt=value)
    with pytest.raises(
        CheckpointError,
        match=r"model_index.json has force_zeros_for_empty_prompt=.*accepted: one like True.; correct",
    ):
        load(base)


def test_an_unknown_key_is_warned_of_once(base: Path, load, caplog: pytest.LogCaptureFixture) -> None:
    """Of a base, and of a VAE given apart; nothing of it is in the bundle's configurations."""
    rewrite_json(base / "unet/config.json", use_linear_projektion="swish")
    checkpoint = load(base)
    assert len(caplog.records) == 1
    assert "use_linear_projektion='swish', which" in caplog.text
    assert "it is left out; did you mean use_linear_projection?" in caplog.text
    assert "use_linear_projektion" not in checkpoint.networks["unet"].config
    caplog.clear()
    rewrite_json(base / "unet/config.json", use_linear_projektion=None)
    rewrite_json(base / "vae/config.json", mode="swish")
    load(base, vae=base / "vae")
    assert caplog.text.count("mode='swish'") == 1


def test_a_text_encoder_that_wants_masks_is_refused(full: Path, tmp_path: Path, load) -> None:
    """diffusers' pipelines then tell it which tokens are padding, which the graph cannot be told."""
    folder = Path(shutil.copytree(full, tmp_path / "base"))
    rewrite_json(folder / "text_encoder" / "config.json", use_attention_mask=True)
    with pytest.raises(CheckpointError, match="has use_attention_mask=true, which is not supported"):
        load(folder)


def test_sources_tell_names_and_digests_but_no_paths(full: Path, loaded: Checkpoint) -> None:
    sources = loaded.sources
    assert [source.role for source in sources] == [*NETWORKS, "control"]
    assert {source.name for source in sources} == {"base", "control.safetensors"}
    assert all(len(source.sha256) == 64 for source in sources)
    assert not any(str(full.parent) in str(source) for source in sources)


def test_configurations_are_complete_and_tell_nothing_of_the_machine(base: Path, load) -> None:
    path = base / "unet" / "config.json"
    rewrite_json(path, _name_or_path="/home/somebody/base")
    path.write_text(path.read_text().replace('"flip_sin_to_cos": true,', ""))
    networks = load(base).networks
    keys = {key for network in networks.values() for key in network.config}
    assert not any(key.startswith("_") for key in keys - {"_class_name"})
    assert networks["unet"].config["flip_sin_to_cos"] is True


def test_text_encoders_without_a_tokenizer_are_left_out(full: Path, load, tmp_path: Path) -> None:
    base = Path(shutil.copytree(full, tmp_path / "base"))
    shutil.rmtree(base / "tokenizer")
    shutil.rmtree(base / "text_encoder_2")
    assert set(load(base).networks) == {"unet", "vae", "control"}


def shards(base: Path, pattern: str) -> None:
    """Replace the UNet's file by two shards named after ``pattern``."""
    tensors = list(load_file(base / UNET_FILE).items())
    (base / UNET_FILE).unlink()
    for number, part in enumerate((tensors[:100], tensors[100:]), 1):
        save_file(dict(part), base / "unet" / pattern.format(number))


@pytest.mark.parametrize(
    "pattern",
    [
        "diffusion_pytorch_model-{:05}-of-00002.safetensors",
        "diffusion_pytorch_model.fp16-{:05}-of-00002.safetensors",
        "diffusion_pytorch_model-{:05}-of-00002.fp16.safetensors",
    ],
)
def test_sharded_files(base: Path, load, pattern: str) -> None:
    expected = load_file(base / UNET_FILE)
    shards(base, pattern)
    tensors = load(base).networks["unet"].tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_a_missing_shard_is_named(base: Path, load) -> None:
    shards(base, "diffusion_pytorch_model-{:05}-of-00002.safetensors")
    (base / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of the 2 parts of diffusion_pytorch_model-00001-of-00002"):
        load(base)


def test_the_plain_file_goes_before_a_variant_and_a_variant_will_do(base: Path, load) -> None:
    variant = base / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({k: v.half() for k, v in load_file(base / UNET_FILE).items()}, variant)
    assert load(base).networks["unet"].tensors["conv_in.weight"].dtype == torch.float32
    (base / UNET_FILE).unlink()
    assert load(base).networks["unet"].tensors["conv_in.weight"].dtype == torch.float16


def test_pickled_state_dicts_are_read_as_nothing_but_tensors(base: Path, load) -> None:
    tensors = load_file(base / UNET_FILE)
    (base / UNET_FILE).unlink()
    torch.save(tensors, base / "unet" / "diffusion_pytorch_model.bin")
    assert torch.equal(load(base).networks["unet"].tensors["conv_in.weight"], tensors["conv_in.weight"])


def test_names_of_older_releases(full: Path, loaded: Checkpoint, load, tmp_path: Path) -> None:
    """Old VAEs store attention as convolutions named query, key and value; old CLIPs keep positions."""
    base = Path(shutil.copytree(full, tmp_path / "base"))
    vae, clip = base / "vae/diffusion_pytorch_model.safetensors", base / "text_encoder/model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(vae).items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        linear = "attentions" in name and tensor.ndim == 2
        tensors[name] = tensor[:, :, None, None] if linear else tensor
    save_file(tensors, vae)
    tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(clip).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]}, clip)
    now = load(base)
    for name in ("vae", "text_encoder"):
        before, after = loaded.networks[name].tensors, now.networks[name].tensors
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_missing_unexpected_and_misshaped_tensors_are_listed(base: Path, load) -> None:
    tensors = load_file(base / UNET_FILE)
    del tensors["conv_in.bias"]
    tensors["surplus.weight"] = torch.zeros(1)
    tensors["conv_out.bias"] = torch.zeros(5)
    save_file(tensors, base / UNET_FILE)
    with pytest.raises(CheckpointError) as caught:
        load(base)
    assert "1 missing (conv_in.bias)" in str(caught.value)
    assert "1 unexpected (surplus.weight)" in str(caught.value)
    assert "1 mis-shaped (conv_out.bias [5] for [4])" in str(caught.value)


def test_a_network_of_another_class_is_refused(base: Path, load) -> None:
    rewrite_json(base / "unet/config.json", _class_name="UNetSpatioTemporalConditionModel")
    with pytest.raises(
        CheckpointError, match="is UNetSpatioTemporalConditionModel, expected UNet2DCondition"
    ):
        load(base)


@pytest.mark.parametrize("change", [{"block_out_channels": [32]}, {"norm_num_groups": 7}])
def test_an_impossible_configuration_is_one_error(base: Path, load, change: dict[str, object]) -> None:
    rewrite_json(base / "unet/config.json", **change)
    with pytest.raises(
        CheckpointError, match="the configuration of unet does not make a UNet2DConditionModel"
    ):
        load(base)


@pytest.mark.parametrize("change", [{"num_hidden_layers": "x"}, {"hidden_act": "x"}])
def test_an_impossible_text_encoder_is_one_error(change: dict[str, object]) -> None:
    """transformers has errors of its own for wrong types."""
    with pytest.raises(CheckpointError, match="the configuration of text_encoder does not make a CLIPText"):
        empty_module(get_family("sdxl").networks["text_encoder"], {"hidden_size": 32, **change})


def test_a_folder_that_is_no_base_is_refused(load, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks unet/config.json, vae/config.json, scheduler"):
        load(tmp_path)


def test_a_damaged_configuration_is_named(base: Path, load) -> None:
    for damaged in ('{"in_channels": ', "[" * 100_000):
        (base / "unet/config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"unet/config.json is not readable JSON"):
            load(base)


def test_a_damaged_tokenizer_is_named(full: Path, load, tmp_path: Path) -> None:
    base = Path(shutil.copytree(full, tmp_path / "base"))
    (base / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer holds no usable tokenizer"):
        load(base)


def test_a_tokenizer_of_another_model_is_refused(full: Path, load, tmp_path: Path) -> None:
    base = Path(shutil.copytree(full, tmp_path / "base"))
    tensors = load_file(base / "text_encoder/model.safetensors")
    name = next(name for name in tensors if name.endswith("token_embedding.weight"))
    save_file({**tensors, name: tensors[name][:1000].clone()}, base / "text_encoder/model.safetensors")
    rewrite_json(base / "text_encoder/config.json", vocab_size=1000, bos_token_id=0, eos_token_id=1)
    with pytest.raises(CheckpointError, match="49408 tokens, its text encoder has 1000"):
        load(base)


def test_a_replacement_vae_as_folder_base_or_file(base: Path, full: Path, load, tmp_path: Path) -> None:
    other = Path(shutil.copytree(full, tmp_path / "other"))
    file = other / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    rewrite_json(other / "vae/config.json", force_upcast=False)
    alone = Path(shutil.copy(file, tmp_path / "my-vae.safetensors"))
    key = "decoder.conv_in.weight"
    original = load(base).networks["vae"].tensors[key]
    for given, upcast in ((other, False), (other / "vae", False), (file, False), (alone, True)):
        checkpoint = load(base, vae=given)
        assert torch.equal(checkpoint.networks["vae"].tensors[key], 2 * original)
        assert checkpoint.networks["vae"].config["force_upcast"] is upcast
        assert [source.name for source in checkpoint.sources if source.role == "vae"] == [given.name]


def test_something_else_as_vae_says_what_it_looks_like(base: Path, load) -> None:
    with pytest.raises(CheckpointError, match="looks like an SDXL UNet"):
        load(base, vae=base / UNET_FILE)
