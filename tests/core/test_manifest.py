"""The manifest: what is written is read back, and a damaged bundle is named."""

from __future__ import annotations

import json
from pathlib import Path

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
    sample = TensorEntry("sample", "float32", ["batch", 4, "height", "8*width"])
    return Manifest(
        schema=SCHEMA,
        family="sdxl",
        variant="sdxl",
        precision="fp16",
        graphs={"unet": Graph("unet", "fp16", [sample], [sample])},
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
    assert read_manifest(bundle).graphs["unet"].inputs[0].spec().shape == ("batch", 4, "height", "8*width")


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


def test_an_unknown_entry_is_of_a_newer_version_or_misspelled(bundle: Path) -> None:
    _change(bundle, grafs={})
    with pytest.raises(BundleError) as caught:
        read_manifest(bundle)
    assert f"{MANIFEST} has grafs, which this version does not know: it was written by a newer" in str(
        caught.value
    )
    assert str(caught.value).endswith("export the bundle again; did you mean graphs?")
    assert "damaged" not in str(caught.value)


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
        ({"configs": {"unett": {}}}, "configs has no unet, .* needs; it has unett"),
        ({"configs": {"unet": {}}}, "configs.unet has no sample_size"),
        ({"configs": {"unet": {"sample_size": "large"}}}, "configs.unet.sample_size is 'large'"),
        (
            {"configs": {"unet": {"sample_size": 128}, "vea": {}}},
            "configs has unet, vea; expected for 0 controls: none;",
        ),
        ({"configs": {}}, "configs has no unet, .* needs; it has none"),
        ({"graphs": {}, "configs": {"vea": {}}}, "configs has vea; expected for 1 controls: control;"),
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
        ({"unett": graph}, "graphs has the unknown graph unett; accepted: text_encoder, "),
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
