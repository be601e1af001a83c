"""Where the ONNX files of preprocessors come from: a path, or the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from controlnext.errors import InputError, first_line
from controlnext.hub_errors import refusal_of
from controlnext.optional import is_installed

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?(:(?P<file>[\w./-]+))?")
_HUB = "https://huggingface.co"
"""The hub, unless the environment names another in HF_ENDPOINT."""
_ONNX = ".onnx"


@dataclass(frozen=True)
class ModelFile:
    """A ``file`` of the repository ``hub_id`` at the hub."""

    hub_id: str
    file: str
    revision: str | None = None


def find_model(argument: str, given: str | Path | None, default: ModelFile | None) -> Path:
    """Return the path of the ONNX file that ``given`` names: a path, ``owner/name[@revision]:FILE`` or None
    for the ``default``; a file of the hub is downloaded once.

    Raises :class:`InputError`, which blames ``argument`` and says what to put where.
    """
    if given is None:
        if default is None:
            raise InputError(
                f"no model is given; set `{argument}` to an ONNX file or a hub id (owner/name:FILE{_ONNX})",
                argument=argument,
            )
        return _from_hub(argument, default)
    path = Path(given).expanduser()
    if path.is_file():
        return path
    match = _HUB_ID.fullmatch(str(given))
    if path.exists() or not match or (match["file"] is None and str(given).endswith(_ONNX)):
        raise InputError(
            f"there is no model file {given}; set `{argument}` to an ONNX file or a hub id"
            f" (owner/name:FILE{_ONNX})",
            argument=argument,
        )
    file = match["file"] or (default.file if default else None)
    if file is None:
        raise InputError(
            f"{given} does not say which file; set `{argument}` to {given}:FILE{_ONNX}", argument=argument
        )
    return _from_hub(argument, ModelFile(match["id"], file, match["revision"]))


def _from_hub(argument: str, model: ModelFile) -> Path:
    if not is_installed("huggingface_hub"):
        raise _absent(argument, model, "huggingface_hub is not installed")
    from huggingface_hub import hf_hub_download

    where = {"repo_id": model.hub_id, "filename": model.file, "revision": model.revision}
    try:
        return Path(hf_hub_download(**where, local_files_only=True))
    except (OSError, ValueError):  # not downloaded before
        pass
    try:
        return Path(hf_hub_download(**where))
    except Exception as error:  # no connection: each network library has its own exception
        reason = refusal_of(model.hub_id, model.revision, error) or first_line(error)
        raise _absent(argument, model, f"it cannot be downloaded: {reason}") from error


def _absent(argument: str, model: ModelFile, reason: str) -> InputError:
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    return InputError(
        f"the model {model.file} of {model.hub_id} is not on this machine ({reason}); download it from"
        f" {hub}/{model.hub_id} and set `{argument}` to its path",
        argument=argument,
    )
