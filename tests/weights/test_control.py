"""The control modules' weights: published layouts, files and directories, refusals that say what was
given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.errors import CheckpointError, InputError
from controlnext.families import FAMILIES, ControlSpec, Family, Variant, get_family
from controlnext.models.control_module import ControlModule
from controlnext.weights import load as loading
from controlnext.weights import load_checkpoint
from controlnext.weights.base import Base, Part
from controlnext.weights.control import ControlWeights, check_width, match_control
from controlnext.weights.layouts import looks_like
from controlnext.weights.lazy import LazyTensor
from controlnext.weights.scheduler import Scheduler
from controlnext.weights.variants import arguments
from support.recipe import GOLDEN, numbers
from support.weights_models import SDXL

SHARED = (
    "`family` sd15 `variant` down, `family` sdxl or `family` svd `variant` v2, which share names and shapes"
)
# layout of a control checkpoint -> the variants that take it, and what it looks like to the others
LAYOUTS = {
    "sd15": (("down", "sdxl", "v2"), SHARED),
    "sdxl": (("down", "sdxl", "v2"), SHARED),
    "svd": (("down", "sdxl", "v2"), SHARED),
    "sd15-mid": (("mid",), "`family` sd15 `variant` mid"),
    "svd-v1": (("v1",), "`family` svd `variant` v1"),
    "sd3": (("sd3",), "`family` sd3"),
}
# what of the bases' configurations tells the width of their features
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": [320, 640, 1280, 1280]},
    "sdxl": {"block_out_channels": [320, 640, 1280]},
    "svd": {"block_out_channels": [320, 640, 1280, 1280]},
    "sd3": {"num_attention_heads": 24, "attention_head_dim": 64},
}
PAIRS = [(family, name) for family in FAMILIES.values() for name in ("auto", *family.variants)]
VARIANTS = [(family, variant) for family in FAMILIES.values() for variant in family.variants.values()]


def shapes_of(layout: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a full-size control module; sd3's is sdxl's, of its base's width."""
    path = GOLDEN / "keys" / f"{'sdxl' if layout == 'sd3' else layout}.json"
    shapes = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    if layout == "sd3":
        shapes |= {"mid_convs.1.weight": (1536, 256, 1, 1), "mid_convs.1.bias": (1536,)}
    return shapes


def published(layout: str) -> dict[str, LazyTensor]:
    """The full-size control module of that layout, without memory for its weights."""
    return {
        name: LazyTensor.from_tensor(torch.empty(shape, device="meta"))
        for name, shape in shapes_of(layout).items()
    }


def hollow(*names: str) -> dict[str, LazyTensor]:
    return {name: LazyTensor.from_tensor(torch.empty(1)) for name in names}


def take(found: dict[str, LazyTensor], family: Family, variant: str) -> ControlWeights:
    """The control module, if it is of the variant and of the full-size base's width."""
    control = match_control(found, family, variant, "control.bin")
    check_width(control, family, CONFIGS[family.name])
    return control


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "asked"), PAIRS, ids=[f"{family.name}-{name}" for family, name in PAIRS])
def test_a_published_control_fits_its_own_variants_and_is_named_to_others(
    family: Family, asked: str, layout: str
) -> None:
    """Every family and variant against every layout, at full size and the width of the base included."""
    variants, title = LAYOUTS[layout]
    fitting = [name for name in family.variants if name in variants and asked in ("auto", name)]
    found = published(layout)
    if fitting:
        control = take(found, family, asked)
        assert control.variant == family.variants[fitting[0]]
        assert control.spec == control.variant.control
        assert control.tensors == {name: found[name] for name in control.tensors}
        assert control.tensors.keys() == found.keys()
        return
    with pytest.raises(CheckpointError) as caught:
        take(found, family, asked)
    own = [variant for name, variant in family.variants.items() if name in variants]
    assert f"the control module of {arguments(family, own[0]) if own else title}" in str(caught.value)
    assert str(caught.value).startswith("control.bin ")
    assert "\n" not in str(caught.value)


def test_another_variant_than_the_one_asked_for_is_named_with_the_way_out() -> None:
    with pytest.raises(CheckpointError) as caught:
        match_control(published("sd15-mid"), get_family("sd15"), "down", "controlnet.safetensors")
    assert str(caught.value) == (
        "controlnet.safetensors does not fit `family` sd15 `variant` down: it is the control module of"
        " `family` sd15 `variant` mid; give that, or remove `variant`"
    )


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=[variant.name for _, variant in VARIANTS])
def test_a_full_size_control_file_loads(
    family: Family, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file of the published names, shapes and suffix to a module that works."""
    layout = next(name for name, (variants, _) in reversed(LAYOUTS.items()) if variant.name in variants)
    tensors = {name: torch.zeros(shape).half() for name, shape in shapes_of(layout).items()}
    tensors |= {"scale": torch.tensor(0.35).half()} if variant.control.learned_scale else {}
    torch.save(tensors, tmp_path / "controlnet.bin")
    base = Base(Scheduler({}, {}), {}, {family.denoiser: Part(CONFIGS[family.name], {})})
    monkeypatch.setattr(loading, "read_base", lambda *_args, **_options: base)
    checkpoint = load_checkpoint(family, control=tmp_path, base="somewhere")
    module = checkpoint.networks["control"].module()
    assert checkpoint.variant == variant
    assert isinstance(module, ControlModule)
    assert (module.scale is None) == (not variant.control.learned_scale)
    assert module.scale is None or module.scale == torch.tensor(0.35).half()
    image = torch.zeros(1, 2, 3, 64, 64) if family.task == "video" else torch.zeros(2, 3, 64, 64)
    feature = module(image, torch.ones(image.shape[0]))
    assert feature.shape[:2] == (2, variant.injection.width(CONFIGS[family.name]))


NARROW = [
    ("sdxl", ControlSpec(64, embedding=(32, 32, 64), stages=(64, 128), time_channels=(32, 64))),
    (
        "mid",
        ControlSpec(
            48,
            embedding=(),
            embedding_padding=(),
            stages=(8, 16, 24),
            stage_groups=(1, 8, 8),
            mid_groups=0,
            learned_scale=True,
            time_channels=(16, 32),
        ),
    ),
    ("v2", ControlSpec(32, embedding=(8, 8, 16), embedding_padding=(1, 0, 0), time_channels=(32, 64))),
    (
        "v1",
        ControlSpec(
            48,
            embedding=(8, 8, 16),
            embedding_padding=(1, 0, 0),
            embedding_pool=True,
            stages=(16, 24, 32),
            stage_groups=(4, 8, 8),
            learned_scale=True,
        ),
    ),
    ("sd3", ControlSpec(96)),
]


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=[variant.name for _, variant in VARIANTS])
def test_random_weights_have_the_published_control(
    family: Family, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where none was published; what is left out of the base is passed on."""
    base = Base(Scheduler({}, {}), {}, {family.denoiser: Part(CONFIGS[family.name], {})})
    left_out = []
    monkeypatch.setattr(
        loading,
        "random_base",
        lambda _family, _seed, leave_out, _scheduler: left_out.extend(leave_out) or base,
    )
    checkpoint = load_checkpoint(family, variant=variant.name, random_seed=0, leave_out=["text_encoder"])
    layout = next(name for name, (variants, _) in LAYOUTS.items() if variant.name in variants)
    tensors = checkpoint.networks["control"].tensors
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes_of(layout)
    assert (checkpoint.random, left_out) == (True, ["text_encoder"])


@pytest.mark.parametrize(("variant", "spec"), NARROW, ids=[name for name, _ in NARROW])
def test_a_narrowed_module_is_rebuilt_with_its_own_widths(variant: str, spec: ControlSpec) -> None:
    family = next(family for family in FAMILIES.values() if variant in family.variants)
    module = ControlModule(spec)
    found = {name: LazyTensor.from_tensor(tensor) for name, tensor in module.state_dict().items()}
    control = match_control(found, family, "auto", "small")
    assert (control.spec, control.variant.name) == (spec, variant)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet, not a ControlNeXt"),
        ("control_model.input_hint_block.0.weight", "a ControlNet, not a ControlNeXt"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.1.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("down_blocks.0.resnets.0.norm1.weight", "a UNet"),
        ("input_blocks.4.1.proj_in.weight", "a UNet under its original names"),
        ("encoder.conv_in.weight", "a VAE"),
        ("first_stage_model.decoder.mid.block_1.conv1.weight", "a VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text or image encoder"),
        ("image_proj.norm.weight", "an IP-Adapter"),
        ("transformer_blocks.0.attn.add_k_proj.weight", "an SD3 or Flux transformer"),
        ("mystery.weight", "unknown weights (1 tensors: mystery.weight ...)"),
    ],
)
def test_other_files_are_recognised_by_their_names(name: str, title: str) -> None:
    assert looks_like(hollow(name)) == title


def test_the_base_given_as_control_is_recognised(tiny_checkpoint_dir: Path, load) -> None:
    unet = tiny_checkpoint_dir / "base/unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match="not a control module of sdxl: it looks like an SDXL UNet"):
        load(unet)


def test_wrong_tensors_are_listed(control: Path, load) -> None:
    tensors = load_file(control)
    del tensors["down_sample.1.conv.bias"], tensors["mid_convs.1.weight"]
    save_file({**tensors, "epoch": torch.tensor(1.0)}, control)
    with pytest.raises(CheckpointError) as caught:
        load(control)
    assert "2 missing (down_sample.1.conv.bias, mid_convs.1.weight); 1 unexpected (epoch)" in str(
        caught.value
    )


def test_an_unknown_architecture_is_described(control: Path, load) -> None:
    save_file({**load_file(control), "scale": torch.tensor(1.0)}, control)
    with pytest.raises(CheckpointError) as caught:
        load(control)
    assert "an unknown variant with 3 embedding convolutions, 2 stages, norms in the middle" in str(
        caught.value
    )
    assert "and a learned scale; expected 3 embedding convolutions" in str(caught.value)


def test_groups_that_do_not_divide_the_widths_are_one_error() -> None:
    found = published("sdxl")
    odd = {f"down_res.{index}.conv1.weight": (20, 8, 3, 3) for index in (0, 1)}
    found |= {name: LazyTensor.from_tensor(torch.empty(shape, device="meta")) for name, shape in odd.items()}
    with pytest.raises(CheckpointError, match="no control module has these widths"):
        match_control(found, SDXL, "auto", "odd")


def test_a_control_of_another_width_than_the_base_is_refused(control: Path, load) -> None:
    tensors = load_file(control)
    shapes = {"mid_convs.1.weight": (48, 256, 1, 1), "mid_convs.1.bias": (48,)}
    save_file({**tensors, **numbers(shapes, 0)}, control)
    with pytest.raises(
        CheckpointError, match="gives 48 channels, the base's unet has 32 where they are injected"
    ):
        load(control)


def test_an_unknown_variant_is_refused(control: Path, load) -> None:
    with pytest.raises(InputError, match="sdxl has no variant 'mid'; accepted: sdxl"):
        load(control, variant="mid")


def test_no_control_is_refused(tiny_checkpoint_dir: Path) -> None:
    with pytest.raises(InputError, match="give `control`") as caught:
        load_checkpoint(SDXL, base=tiny_checkpoint_dir / "base")
    assert caught.value.argument == "control"


def test_where_no_control_was_published_the_message_says_so() -> None:
    with pytest.raises(
        InputError, match=r"no control weights are given; .*no control weights were published"
    ):
        load_checkpoint(get_family("sd3"))


def test_controls_of_different_variants_are_refused_each_with_its_own(tmp_path: Path) -> None:
    paths = [tmp_path / f"{layout}.bin" for layout in ("sd15", "sd15-mid")]
    for path in paths:
        shapes = shapes_of(path.stem)
        torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(get_family("sd15"), control=paths, base="somewhere")
    assert "sd15.bin is of variant down, sd15-mid.bin is of variant mid; give several" in str(caught.value)
