"""Scheduler settings in single files: marker tensors and metadata are read in one order, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from controlnext.bundle.manifest import Setting
from controlnext.errors import CheckpointError
from controlnext.families import get_family
from controlnext.runtime.samplers import make_sampler
from controlnext.weights import Checkpoint, load_checkpoint, shipped
from controlnext.weights.markers import MARKERS, marked_settings
from controlnext.weights.shipped import original_layout, shipped_config
from support.weights_models import SDXL, originals

V = {"prediction_type": "v_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NOTHING = torch.zeros(0)


@pytest.fixture
def single(
    tmp_path: Path, tiny_checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Checkpoint]:
    """Load the tiny SDXL as a single file that holds these further tensors and metadata."""
    base = tiny_checkpoint_dir / "base"
    for encoder in ("text_encoder", "text_encoder_2"):
        assert not (base / encoder).exists()
    folder = Path(shutil.copytree(shipped.shipped_directory(SDXL), tmp_path / "shipped"))
    for name in ("unet", "vae"):
        shutil.copy(base / name / "config.json", folder / name / "config.json")
    monkeypatch.setattr(shipped, "shipped_directory", lambda _family: folder)
    tensors: dict[str, torch.Tensor] = {}
    for name in ("unet", "vae"):
        found = load_file(base / name / "diffusion_pytorch_model.safetensors")
        layout = original_layout(SDXL, name, shipped_config(SDXL, SDXL.networks[name]))
        tensors |= originals(SDXL, name, found, layout)

    def load(
        markers: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, **options: Any
    ) -> Checkpoint:
        file = tmp_path / "single.safetensors"
        save_file({k: v.contiguous() for k, v in (tensors | markers).items()}, file, metadata)
        control = tiny_checkpoint_dir / "control.safetensors"
        return load_checkpoint(SDXL, base=file, control=control, **options)

    return load


@pytest.mark.parametrize(
    ("markers", "metadata", "expected", "by"),
    [
        (["v_pred"], {}, V, {"prediction_type": "v_pred"}),
        (
            ["v_pred", "ztsnr"],
            {},
            V | ZERO_SNR,
            {"prediction_type": "v_pred", **dict.fromkeys(ZERO_SNR, "ztsnr")},
        ),
        ([], {"modelspec.prediction_type": "v"}, V, {"prediction_type": "modelspec.prediction_type"}),
        ([], {"modelspec.predict_key": "v"}, V, {"prediction_type": "modelspec.predict_key"}),
        (
            [],
            {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"},
            V | ZERO_SNR,
            {
                "prediction_type": "ss_v_parameterization",
                **dict.fromkeys(ZERO_SNR, "ss_zero_terminal_snr"),
            },
        ),
    ],
)
def test_markers_of_a_single_file_are_read(
    single: Callable[..., Checkpoint],
    markers: list[str],
    metadata: dict[str, str],
    expected: dict[str, Any],
    by: dict[str, str],
) -> None:
    """As tensors, which the strict match of names does not stumble over, or in the header; and the default
    sampler runs what they ask for."""
    checkpoint = single(dict.fromkeys(markers, NOTHING), metadata)
    assert {key: checkpoint.scheduler[key] for key in expected} == expected
    assert {key: s.name for key, s in checkpoint.settings.items() if s.origin == "marker"} == by
    assert checkpoint.settings["beta_end"] == Setting("shipped")
    assert len(make_sampler("unipc", checkpoint.scheduler, 20).timesteps) == 20


def test_a_single_file_without_markers_is_as_published(single: Callable[..., Checkpoint]) -> None:
    checkpoint = single({})
    assert checkpoint.scheduler["prediction_type"] == "epsilon"
    assert {setting.origin for setting in checkpoint.settings.values()} == {"shipped"}


@pytest.mark.parametrize("name", ["edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"])
def test_markers_of_what_no_sampler_does_are_refused(
    single: Callable[..., Checkpoint], tmp_path: Path, name: str
) -> None:
    with pytest.raises(CheckpointError, match=f"has the marker {name}: .*EDM.*accepted: v_pred, ztsnr; give"):
        single({name: torch.tensor(1.0)})
    file = tmp_path / "base.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=f"has the marker {name}: .*accepted: none; give a base"):
        marked_settings(get_family("sd3"), file, [name])


def test_a_schedule_without_signal_needs_v_prediction(single: Callable[..., Checkpoint]) -> None:
    with pytest.raises(CheckpointError, match="needs prediction_type=v_prediction, which is not set"):
        single({"ztsnr": NOTHING})
    assert single({"ztsnr": NOTHING}, scheduler=V).scheduler["prediction_type"] == "v_prediction"


def test_options_take_the_place_of_markers_and_markers_of_metadata(
    single: Callable[..., Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = single({"v_pred": NOTHING}, {"modelspec.prediction_type": "epsilon"})
    assert checkpoint.settings["prediction_type"] == Setting("marker", "v_pred")
    assert "v_pred says prediction_type=v_prediction, modelspec.prediction_type says epsilon" in caplog.text
    checkpoint = single({"v_pred": NOTHING}, scheduler={"prediction_type": "epsilon"})
    assert checkpoint.scheduler["prediction_type"] == "epsilon"
    assert checkpoint.settings["prediction_type"] == Setting("option")


@pytest.mark.parametrize("turn", [1, -1])
def test_metadata_that_differ_count_in_one_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, turn: int
) -> None:
    """Whatever order a file has them in, which safetensors does not keep; spellings of a value are one."""
    both = [("modelspec.prediction_type", "V-Prediction "), ("modelspec.predict_key", "eps")][::turn]
    file = tmp_path / "base.safetensors"
    save_file({"a": torch.zeros(1)}, file, dict(both))
    for _ in range(8):
        assert marked_settings(SDXL, file, ["a"])["prediction_type"] == (
            "v_prediction",
            "modelspec.prediction_type",
        )
    assert "modelspec.predict_key says epsilon: the first is used" in caplog.text


def test_unknown_metadata_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "base.safetensors"
    save_file({"a": torch.zeros(1)}, file, {"modelspec.prediction_type": "x0", "modelspec.title": "t"})
    assert marked_settings(SDXL, file, ["a"]) == {}
    assert "modelspec.prediction_type=x0, which is unknown and ignored" in caplog.text
    assert marked_settings(get_family("sd3"), file, ["a"]) == {}
    for name in MARKERS:
        with pytest.raises(
            CheckpointError, match=f"marker {name}, which .* does not support; accepted: none; give"
        ):
            marked_settings(get_family("sd3"), file, [name])
