"""The registry: every entry is complete, and what it says of the published models is right."""

from __future__ import annotations

import json

import pytest

from controlnext.errors import InputError
from controlnext.families import FAMILIES, Family, Variant, get_family
from controlnext.models.control_module import meta_control
from support.recipe import GOLDEN

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
VARIANTS = [variant for family in FAMILIES.values() for variant in family.variants.values()]
# the published layout of each variant; sd3's was never published and is sdxl's, as wide as its base
LAYOUTS = {"down": "sd15", "mid": "sd15-mid", "sdxl": "sdxl", "v2": "svd", "v1": "svd-v1", "sd3": "sdxl"}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_control_module_has_the_published_tensors(variant: Variant) -> None:
    """Name and shape of every tensor equal those of the published full-size checkpoint."""
    published = json.loads((GOLDEN / "keys" / f"{LAYOUTS[variant.name]}.json").read_text())
    if variant.name == "sd3":
        published |= {"mid_convs.1.weight": [1536, 256, 1, 1], "mid_convs.1.bias": [1536]}
    module = meta_control(variant.control)
    assert {name: list(tensor.shape) for name, tensor in module.state_dict().items()} == published


@EVERY_FAMILY
def test_what_an_entry_refers_to_exists(family: Family) -> None:
    folders = {graph.name for graph in family.graphs}
    assert {graph.network for graph in family.graphs} <= set(family.known_networks)
    assert {family.denoiser, *family.prompt_encoders} <= folders
    assert family.default_sampler in family.samplers
    assert len(family.latent_rgb.factors) == family.networks["vae"].required["latent_channels"]
    for graph in family.graphs:
        symbols = set().union(*(spec.symbols() for spec in (*graph.inputs, *graph.outputs)))
        assert {symbol for symbol in symbols if not symbol.startswith("@")} == set(graph.trace_sizes)


@EVERY_FAMILY
def test_graphs_take_and_give_float32_and_token_ids(family: Family) -> None:
    """Bundles of different precision are interchangeable: only token ids are no float32."""
    types = {
        (spec.name if spec.dtype != "float32" else "", spec.dtype)
        for graph in family.graphs
        for spec in (*graph.inputs, *graph.outputs)
    }
    assert types <= {("", "float32"), ("input_ids", "int64")}


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown model 'sdxxl'; accepted: .*sdxl"):
        get_family("sdxxl")
    with pytest.raises(InputError, match="sdxl has no variant 'mid'; accepted: sdxl"):
        get_family("sdxl").variant("mid")
