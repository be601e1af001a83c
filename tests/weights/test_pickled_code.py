"""No code in a checkpoint is carried out, whichever file of whichever option has it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controlnext.errors import CheckpointError, ControlNeXtError
from controlnext.evaluation.calibration_data import read_examples
from controlnext.runtime.loras.tensor_file import read_tensors
from controlnext.runtime.preprocess.onnx_model import OnnxModel
from controlnext.weights import load_checkpoint
from controlnext.weights.lazy import read_content, read_file
from support.payloads import PAYLOADS
from support.weights_models import SDXL, add_text_encoders, rewrite_json

FORMS = pytest.mark.parametrize("form", PAYLOADS)
FILES = pytest.mark.parametrize(
    ("suffix", "form"), [("bin", "zip"), ("ckpt", "old"), ("safetensors", "plain")]
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@FORMS
def test_the_code_of_these_files_is_real(form: str, trace: Path, tmp_path: Path) -> None:
    """Where a file is loaded without care, it leaves its trace: that none is left proves something."""
    PAYLOADS[form](tmp_path / "file", trace)
    if form == "plain":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert trace.exists()


@FORMS
@pytest.mark.parametrize("suffix", ["bin", "ckpt", "pt", "pth", "PT", "safetensors"])
@pytest.mark.parametrize("read", [read_file, read_content])
def test_no_weight_file_runs_its_code(
    read: Callable[[Path], object], suffix: str, form: str, tmp_path: Path, trace: Path
) -> None:
    file = tmp_path / f"given.{suffix}"
    PAYLOADS[form](file, trace)
    with pytest.raises(CheckpointError):
        read(file)
    assert not trace.exists()


@FILES
@pytest.mark.parametrize(
    "option",
    ["base", "control", "unet_weights", "vae", "preview_vae", "lora", "textual_inversion", "ip_adapter"],
)
def test_no_file_of_an_option_runs_its_code(
    folder: Path, trace: Path, option: str, suffix: str, form: str
) -> None:
    file = folder / f"given.{suffix}"
    PAYLOADS[form](file, trace)
    several = option in ("lora", "textual_inversion", "ip_adapter")
    given = {"base": folder / "base", "control": folder / "control.safetensors"}
    with pytest.raises(ControlNeXtError) as caught:
        load_checkpoint(SDXL, **{**given, option: [str(file)] if several else file})
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@FILES
@pytest.mark.parametrize("network", ["unet", "vae"])
def test_no_network_of_a_base_runs_its_code(
    folder: Path, trace: Path, network: str, suffix: str, form: str
) -> None:
    (folder / "base" / network / "diffusion_pytorch_model.safetensors").unlink()
    PAYLOADS[form](folder / "base" / network / f"diffusion_pytorch_model.{suffix}", trace)
    with pytest.raises(ControlNeXtError):
        load_checkpoint(SDXL, base=folder / "base", control=folder / "control.safetensors")
    assert not trace.exists()


def _calibration(file: Path) -> None:
    file.rename(file.with_suffix(".png"))
    file.with_suffix(".txt").write_text("a house")
    read_examples(file.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "a LoRA at run time": read_tensors,
    "a calibration image": _calibration,
    "a preprocessor": lambda file: OnnxModel(file, "weights"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("suffix", "form"), [("bin", "zip"), ("safetensors", "plain"), ("onnx", "old")])
def test_no_other_file_runs_its_code(reader: str, suffix: str, form: str, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / f"given.{suffix}"
    PAYLOADS[form](file, trace)
    with pytest.raises(ControlNeXtError):
        READERS[reader](file)
    assert not trace.exists()


@pytest.mark.parametrize("where", ["auto_map", "model_index"])
def test_no_code_beside_a_tokenizer_or_in_a_base_is_imported(folder: Path, trace: Path, where: str) -> None:
    """Neither the classes that ``auto_map`` names nor modules beside a component, which diffusers imports."""
    add_text_encoders(folder / "base")
    for place in (folder / "base", folder / "base/tokenizer", folder / "base/unet"):
        for name in ("own.py", "pipeline.py"):
            (place / name).write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    if where == "auto_map":
        config = folder / "base/tokenizer/tokenizer_config.json"
        rewrite_json(config, auto_map={"AutoTokenizer": ["own.Own", None]})
    else:
        rewrite_json(folder / "base/model_index.json", unet=["own", "Own"])
    with pytest.raises(ControlNeXtError):
        load_checkpoint(SDXL, base=folder / "base", control=folder / "control.safetensors")
    assert not trace.exists()
