"""A scheduler's settings come from the base's file and from options; settings that do not fit are refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlnext.bundle.manifest import Setting
from controlnext.cli.sources import Sources, parse_settings
from controlnext.errors import CheckpointError, InputError
from controlnext.families import get_family
from controlnext.reference.stock import SCHEDULERS, StockPipeline
from controlnext.weights import Checkpoint, load_checkpoint
from controlnext.weights.base import read_base
from controlnext.weights.model_index import check_index, part_names
from support.cli import Cli
from support.weights_models import SDXL, rewrite_json


@pytest.fixture
def load(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Checkpoint]:
    """Load a family's tiny base after its scheduler's file was changed."""

    def make(family: str, changes: dict[str, Any], **options: Any) -> Checkpoint:
        base = Path(shutil.copytree(tiny_checkpoint(family) / "base", tmp_path / "base", dirs_exist_ok=True))
        rewrite_json(base / "scheduler/scheduler_config.json", **changes)
        control = tiny_checkpoint(family) / "control.safetensors"
        return load_checkpoint(get_family(family), base=base, control=control, **options)

    return make


def test_settings_given_as_options_come_before_those_of_the_base(load: Callable[..., Checkpoint]) -> None:
    checkpoint = load(
        "sdxl", {}, scheduler={"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    )
    assert checkpoint.scheduler["prediction_type"] == "v_prediction"
    assert checkpoint.settings["timestep_spacing"] == Setting("option")
    assert checkpoint.settings["beta_end"] == Setting("base", "base")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prediction_typ": "v_prediction"},
            "unknown key 'prediction_typ'; .* accepts .*; did you mean prediction_type?",
        ),
        ({"prediction_type": "v"}, "prediction_type='v', which no sampler .*accepted: epsilon, v_prediction"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas=True.*accepted: false"),
        ({"algorithm_type": "sde-dpmsolver++"}, "algorithm_type=.*accepted: dpmsolver"),
        (
            {"prediction_type": "original_sample"},
            "'unipc' does not support .*'original_sample'.*; give `scheduler` prediction_type=VALUE, an",
        ),
    ],
)
def test_unknown_settings_are_refused(
    load: Callable[..., Checkpoint], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load("sdxl", {}, scheduler=settings)


def test_the_reference_reads_the_scheduler_by_itself(load: Callable[..., Checkpoint]) -> None:
    """It shares no reading with the export, but for the settings that were given."""
    checkpoint = load("sd15", {"steps_offset": 0}, scheduler={"timestep_spacing": "trailing"})
    assert checkpoint.settings["steps_offset"].origin == "pipeline"
    checkpoint.scheduler["beta_end"] = 0.5  # a fault of ours
    stock = StockPipeline.of(checkpoint).scheduler("unipc")
    assert type(stock).__name__ == SCHEDULERS["unipc"]
    assert stock.config.beta_end != 0.5
    assert (stock.config.steps_offset, stock.config.timestep_spacing) == (1, "trailing")


def test_settings_are_read_as_json_or_words() -> None:
    given = [
        "prediction_type=v_prediction, timestep_spacing=trailing",
        "sigma_max=80",
        "trained_betas=[1,2.5]",
    ]
    assert parse_settings(given) == {
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "sigma_max": 80,
        "trained_betas": [1, 2.5],
    }
    assert parse_settings(["use_karras_sigmas=true,sigma_min=null"]) == {
        "use_karras_sigmas": True,
        "sigma_min": None,
    }
    for wrong in ("prediction_type", "=v", "prediction_type=", ""):
        with pytest.raises(InputError, match="is not a setting; give KEY=VALUE"):
            parse_settings([wrong])
    with pytest.raises(InputError, match="shift twice"):
        parse_settings(["shift=1,shift=2"])


def test_the_command_line_refuses_an_unknown_setting(
    cli: Cli, tiny_checkpoint_dir: Path, tmp_path: Path
) -> None:
    folder = tiny_checkpoint_dir
    sources = ["--base", folder / "base", "--control", folder / "control.safetensors"]
    output = ["--output", tmp_path / "out", "--scheduler", "prediction=v"]
    done = cli("export", "--model", "sdxl", *sources, *output)
    assert done.status == 2
    assert "unknown key 'prediction'" in done.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("beta_end=2", "with the settings of --scheduler: .* betas range from .*lie between 0 and 1"),
        ("use_karras_sigmas=true,use_exponential_sigmas=true", "`scheduler` use_karras_sigmas=false"),
        ("trained_betas=[0.1]", "1 trained_betas for 1000 training timesteps"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_load(
    tiny_checkpoint_dir: Path, setting: str, message: str
) -> None:
    folder = tiny_checkpoint_dir
    sources = Sources(str(folder / "base"), [str(folder / "control.safetensors")], scheduler=[setting])
    with pytest.raises(CheckpointError, match=message):
        sources.load(SDXL, "auto")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EulerDiscreteSheduler"}, "accepted: .*; did you mean EulerDiscreteScheduler?"),
        (
            {"_class_name": "LCMScheduler"},
            "accepted: .*; give a base that was trained for one .*config.json$",
        ),
        ({"use_beta_sigmas": True}, "accepted: false.; give `scheduler` use_beta_sigmas=VALUE, an"),
        (
            {"sigma_data": 0.5},
            "no sampler supports .accepted: null.; give another base, or, .*remove it from its",
        ),
        ({"shift": True}, "shift=True, which is not supported"),
    ],
)
def test_a_refused_scheduler_says_how_to_go_on(
    load: Callable[..., Checkpoint], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message.replace("?", "[?]$")):
        load("sdxl", changes)


def test_a_folder_without_a_scheduler_says_what_to_put_there(
    load: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    load("sdxl", {})
    (tmp_path / "base/scheduler/scheduler_config.json").unlink()
    message = (
        r"lacks scheduler/scheduler_config.json; no other file has the unet.s prediction type .* copy into it"
    )
    with pytest.raises(CheckpointError, match=f"{message}.*such as {SDXL.default_base}"):
        read_base(SDXL, tmp_path / "base", None)


INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "text_encoder": [None, None],
    "force_zeros_for_empty_prompt": True,
    "requires_aesthetics_score": False,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "KolorsPipeline"},
            "names the pipeline KolorsPipeline.*accepted: Stable",
        ),
        ({"_class_name": ["mine", "LatentConsistencyModelPipeline"]}, "pipeline LatentConsistencyModel"),
        ({"_class_name": "StableDiffusionXLInstructPix2PixPipeline"}, "InstructPix2Pix"),
        ({"_class_name": "StableDiffusionPipeline"}, "names the pipeline StableDiffusionPipeline"),
        (
            {"requires_aesthetics_score": True},
            "aesthetics_score=True, which is not supported: a refiner",
        ),
        ({"is_distilled": True}, "is_distilled=True"),
        ({"unet": ["mine", "MyUNet"]}, "has MyUNet as its unet; accepted: UNet2DConditionModel"),
        (
            {"motion_adapter": ["diffusers", "MotionAdapter"]},
            "has the component motion_adapter .MotionAdapter.",
        ),
        ({"scheduler": ["diffusers", "LCMScheduler"]}, "has LCMScheduler as its scheduler"),
    ],
)
def test_an_index_that_asks_for_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "EulerDiscreteScheduler"}')
    (tmp_path / "model_index.json").write_text(json.dumps({**INDEX, **changes}))
    with pytest.raises(CheckpointError, match=message):
        check_index(SDXL, tmp_path, part_names(SDXL))


def test_an_index_of_the_same_networks_passes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    check_index(SDXL, tmp_path, part_names(SDXL))  # none
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text("{}")
    for cls in (SDXL.pipeline_class, *SDXL.pipelines):
        (tmp_path / "model_index.json").write_text(json.dumps({**INDEX, "_class_name": cls}))
        check_index(SDXL, tmp_path, part_names(SDXL))
    assert not caplog.records
    (tmp_path / "model_index.json").write_text(json.dumps({**INDEX, "my_option": 3}))
    check_index(SDXL, tmp_path, part_names(SDXL))
    assert "my_option=3" in caplog.text


def test_all_that_makes_a_base_unfit_is_named_at_once(
    load: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    load("sdxl", {})
    rewrite_json(tmp_path / "base/unet/config.json", class_embed_type="timestep")
    rewrite_json(tmp_path / "base/model_index.json", _class_name="LatentConsistencyModelPipeline")
    rewrite_json(tmp_path / "base/scheduler/scheduler_config.json", _class_name="LCMScheduler")
    unfit = r"LatentConsistency.*its scheduler is LCM.*class_embed_type='timestep'"
    with pytest.raises(CheckpointError, match=unfit):
        read_base(SDXL, tmp_path / "base", None)
