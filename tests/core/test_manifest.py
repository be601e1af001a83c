"""The manifest: what is written is read back, and a damaged bundle is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlnext.bundle.files import MANIFEST
from controlnext.bundle.format import check_file, list_files
from controlnext.bundle.manifest import (
    SCHEMA,
    Graph,
    Manifest,
    ParityRow,
    Setting,
    Source,
    TensorEntry,
    write_manifest,
)
from controlnext.bundle.reader import read_manifest
from controlnext.errors import BundleError
from controlnext.families import get_family
from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one small file besides its manifest."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, _manifest(tmp_path))
    return tmp_path


def _manifest(bundle: Path) -> Manifest:
    spec = next(spec for spec in get_family("sdxl").graphs if spec.name == "unet").with_controls(0).of({})
    sizes = {"cross_attention_dim": 2048, "pooled": 1280, "ids": 6}
    inputs, outputs = (
        [TensorEntry.of(tensor.resolve(sizes)) for tensor in side] for side in (spec.inputs, spec.outputs)
    )
    return Manifest(
        schema=SCHEMA,
        family="sdxl",
        variant="sdxl",
        precision="fp16",
        graphs={"unet": Graph("unet", "fp16", inputs, outputs)},
        configs={"unet": {"in_channels": 4, "sample_size": 128}},
        options={"force_zeros_for_empty_prompt": True},
        sources=[Source("base", "base", "00ff")],
        tools={"torch": "2.13.0"},
        files=list_files(bundle),
        parity=[ParityRow("unet: noise_pred", "relative L2", 1e-3, 4e-3)],
    )


def _change(bundle: Path, **fields: object) -> None:
    content = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**content, **fields}))


def test_what_is_written_is_read_back(bundle: Path) -> None:
    assert read_manifest(bundle) == _manifest(bundle)
    assert read_manifest(bundle).graphs["unet"].inputs[0].spec().shape == ("batch", 4, "height", "width")


def test_equal_manifests_give_equal_files(bundle: Path) -> None:
    first = (bundle / MANIFEST).read_bytes()
    manifest = _manifest(bundle)
    write_manifest(
        bundle, msgspec.structs.replace(manifest, configs=dict(reversed(manifest.configs.items())))
    )
    assert (bundle / MANIFEST).read_bytes() == first


def test_the_files_are_listed_without_the_manifest(bundle: Path) -> None:
    assert list(list_files(bundle)) == ["unet/model.onnx"]


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path)


def test_a_newer_schema_is_refused_whatever_else_it_holds(bundle: Path) -> None:
    _change(bundle, schema=SCHEMA + 1, graphs="something new")
    with pytest.raises(BundleError, match=f"has schema {SCHEMA + 1}.*update controlnext"):
        read_manifest(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"schema": 1}', b'{"schema": "one"}'])
def test_a_damaged_manifest_is_named(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=f"{MANIFEST} is damaged"):
        read_manifest(bundle)


UNKNOWN = {
    "grafs": {},
    "files": {"unet/model.onnx": {"mode": 7}},
    "graphs": {"unett": {"network": "unet"}, "unet": {"shape": 1, "lora": {"rang": 1}}},
    "configs": {"vea": 7},
    "options": {"unkown": []},
}


def test_what_this_version_does_not_know_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer version wrote it, or it is misspelled; at any depth."""
    bundle = write_fake_bundle(tmp_path / "bundle", lora_rank=2)
    whole = read_manifest(bundle)
    content = json.loads((bundle / MANIFEST).read_text())
    _merge(content, UNKNOWN)
    (bundle / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(bundle) == whole
    named = caplog.messages[-1]
    for entry in (
        "grafs (did you mean graphs?)",
        "graphs.unett (did you mean unet?)",
        "configs.vea",
        "options",
    ):
        assert entry in named
    assert "and 2 more" in named
    assert "does not know and ignores" in named


def _merge(content: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and key in content:
            _merge(content[key], value)
        else:
            content[key] = value


def test_a_graph_whose_name_was_lost_is_not_left_out(tmp_path: Path) -> None:
    """SD3 without its third text encoder makes other images."""
    bundle = write_fake_bundle(tmp_path / "bundle", "sd3")
    content = json.loads((bundle / MANIFEST).read_text())
    _rename(content["graphs"], "text_encoder_3")
    (bundle / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"files has 'text_encoder_3/model.onnx.*no text_encoder_3"):
        read_manifest(bundle)


def test_a_whole_file_passes(bundle: Path) -> None:
    assert check_file(bundle, read_manifest(bundle), "unet/model.onnx") == bundle / "unet" / "model.onnx"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.onnx is missing"),
        (b"gra", "model.onnx has 3 bytes, the manifest says 5 .*: truncated"),
        (b"grapf", "model.onnx is damaged: its sha256 is [0-9a-f]{64}, the manifest says [0-9a-f]{64}"),
    ],
)
def test_a_broken_file_is_named(bundle: Path, content: bytes | None, message: str) -> None:
    path = bundle / "unet" / "model.onnx"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        check_file(bundle, read_manifest(bundle), "unet/model.onnx")


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "passed"),
    [
        (1e-3, 1e-3, False, True),
        (2e-3, 1e-3, False, False),
        (float("nan"), 1e-3, False, False),
        (float("inf"), 1e-3, False, False),
        (40, 40, True, True),
        (39, 40, True, False),
        (float("nan"), 40, True, False),
    ],
)
def test_a_row_passes_within_its_limit(value: float, limit: float, at_least: bool, passed: bool) -> None:
    assert ParityRow("output", "metric", value, limit, at_least).passed is passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "sd9"}, "unknown model 'sd9'; accepted: sd15"),
        ({"variant": "up"}, "unknown variant 'up'; accepted: sdxl"),
        ({"precision": "fp8"}, "precision is 'fp8'; accepted: fp32, fp16, int8"),
        ({"configs": {"unett": {}}}, "configs has no unet, .* needs; it has none"),
        ({"configs": {"unet": {}}}, "configs.unet has no sample_size"),
        ({"configs": {"unet": {"sample_size": "large"}}}, "configs.unet.sample_size is 'large'"),
        (
            {"configs": {"unet": {"sample_size": 128}, "control": {}}},
            "configs has unet, control; expected for 0 controls: none;",
        ),
        ({"configs": {}}, "configs has no unet, .* needs; it has none"),
        ({"configs": {"unet": {"sample_size": 1 << 40}}}, "configs.unet.sample_size is 1099511627776; exp"),
        ({"configs": {"unet": {"sample_size": 8, "in_channels": 7}}}, "configs.unet.in_channels is 7: it is"),
        ({"precision": "fp32"}, "precision is fp32, graphs.unet.precision fp16; expected the same"),
        ({"graphs": {}}, "files has 'unet/model.onnx', but graphs has no unet"),
        ({"options": {"force_zeros_for_empty_prompt": 1}}, "options.force_zeros_for_empty_prompt is 1; exp"),
        (
            {"graphs": {}, "files": {}, "configs": {"control_2": {}}},
            "configs has control_2; expected for 1 controls: control;",
        ),
        (
            {"graphs": {}, "files": {}, "configs": {"control": {}}},
            "configs.control is not of a control module: .*out_channels",
        ),
    ],
)
def test_a_manifest_that_lacks_what_its_family_needs_is_one_line(
    bundle: Path, change: dict[str, object], message: str
) -> None:
    """Any entry may have another name or type: it is found at once, not when it is read."""
    _change(bundle, **change)
    with pytest.raises(BundleError, match=f"{MANIFEST}: {message}.*export the bundle again") as caught:
        read_manifest(bundle)
    assert "\n" not in str(caught.value)


def test_graphs_are_those_of_the_family(bundle: Path) -> None:
    graph = json.loads((bundle / MANIFEST).read_text())["graphs"]["unet"]
    for graphs, message in (
        ({"unet": {**graph, "compute": "fp16"}}, "graphs.unet.precision is fp16; expected neither of comp"),
        ({"unet": {**graph, "outputs": graph["outputs"] * 2}}, "graphs.unet.outputs are noise_pred, noise_p"),
        ({"unet": {**graph, "network": "vae"}}, "graphs.unet.network is 'vae'; expected 'unet'"),
        (
            {"unet": {**graph, "precision": "fp7"}},
            "graphs.unet.precision is 'fp7'; accepted: fp32, fp16, int8",
        ),
        ({"unet": {**graph, "compute": "fp7"}}, "graphs.unet.compute is 'fp7'; accepted: fp32, fp16, int8"),
    ):
        _change(bundle, graphs=graphs)
        with pytest.raises(BundleError, match=message):
            read_manifest(bundle)


def test_a_file_that_the_manifest_does_not_list_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"files has no scheduler/scheduler_config.json"):
        check_file(bundle, read_manifest(bundle), "scheduler/scheduler_config.json")


def _rename(entries: dict[str, object], name: str) -> None:
    entries[f"{name}_"] = entries.pop(name)


@pytest.mark.parametrize("part", ["graphs", "configs", "options"])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_a_bundle_with_any_entry_renamed_is_refused_when_it_is_loaded(
    tmp_path: Path, family: str, part: str
) -> None:
    folder = write_fake_bundle(tmp_path / "bundle", family)
    Pipeline.load(folder).close()
    whole = json.loads((folder / MANIFEST).read_text())
    for name in whole[part]:
        changed = json.loads(json.dumps(whole))
        _rename(changed[part], name)
        (folder / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=f"{MANIFEST}: .*export the bundle again"):
            Pipeline.load(folder)


def test_inputs_of_the_denoiser_are_those_that_the_runtime_gives(tmp_path: Path) -> None:
    folder = write_fake_bundle(tmp_path / "bundle")
    whole = json.loads((folder / MANIFEST).read_text())
    for key, value in (("name", "samples"), ("dtype", "float16"), ("shape", ["batch", 4])):
        changed = json.loads(json.dumps(whole))
        changed["graphs"]["unet"]["inputs"][0][key] = value
        (folder / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=r"graphs.unet.inputs.*expected"):
            Pipeline.load(folder)
    for options in ({}, {"force_zeros_for_empty_prompt": "yes"}):
        (folder / MANIFEST).write_text(json.dumps({**whole, "options": options}))
        with pytest.raises(BundleError, match=r"options.*force_zeros_for_empty_prompt"):
            Pipeline.load(folder)


def test_where_settings_of_the_scheduler_came_from_is_kept_and_may_be_absent(bundle: Path) -> None:
    assert read_manifest(bundle).scheduler == {}
    settings = {"prediction_type": Setting("marker", "v_pred"), "shift": Setting("option")}
    write_manifest(bundle, msgspec.structs.replace(_manifest(bundle), scheduler=settings))
    assert read_manifest(bundle).scheduler == settings
    content = json.loads((bundle / MANIFEST).read_text())
    del content["scheduler"]  # as earlier releases wrote it
    (bundle / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(bundle).scheduler == {}
