"""The class that Triton's Python backend looks for; it can be imported only there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from controlnext.errors import ControlNeXtError
from controlnext.runtime.pipelines.image import ImagePipeline
from controlnext.runtime.triton.failures import Failure
from controlnext.runtime.triton.parent import ParentWatch
from controlnext.runtime.triton.repository import BUNDLE
from controlnext.runtime.triton.service import ResponseSender, TritonService
from controlnext.runtime.triton.settings import TritonSettings
from controlnext.runtime.triton.tensors import INPUTS
from controlnext.runtime.warm_up import warm_up


class TritonPythonModel:
    """A bundle as a model; an instance of it has a pipeline and a batcher of its own."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle beside the model's file and run a warm-up step; called once by Triton."""
        config = json.loads(args["model_config"])
        try:
            self._open(config, args)
        except ControlNeXtError as error:
            raise triton.TritonModelException(str(error)) from error

    def _open(self, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        settings = TritonSettings.of(
            {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        )
        bundle = Path(args["model_repository"], args["model_version"], BUNDLE)
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else settings.device
        with ExitStack() as opened:
            opened.enter_context(ParentWatch())
            pipe = opened.enter_context(
                ImagePipeline.load(bundle, settings.backend, device, threads=settings.threads)
            )
            warm_up(pipe, settings.max_size)
            decoupled = config["model_transaction_policy"]["decoupled"]
            self._service = opened.enter_context(TritonService(pipe, settings, decoupled=decoupled))
            self._opened = opened.pop_all()

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin requests and return at once: the responses come from other threads."""
        for request in requests:
            reply = _TritonSender(request.get_response_sender())
            self._service.submit(_tensors(request), reply, list(json.loads(request.parameters() or "{}")))

    def finalize(self) -> None:
        """Close the engines; called once by Triton, when all requests are done."""
        self._opened.close()


class _TritonSender(ResponseSender):
    """The responses of one request. A sender must not be used any more after the last one."""

    def __init__(self, sender: Any) -> None:
        self._sender, self._lock, self._ended = sender, Lock(), False

    def send(self, images: list[bytes], seed: int, index: int, *, partial: bool) -> None:
        outputs = [
            triton.Tensor("image", np.array([images], np.object_)),
            triton.Tensor("seed", np.array([[seed]], np.int64)),
            triton.Tensor("index", np.array([[index]], np.int32)),
            triton.Tensor("partial", np.array([[partial]], np.bool_)),
        ]
        self._respond(triton.InferenceResponse(outputs), last=not partial)

    def fail(self, failure: Failure) -> None:
        error = triton.TritonError(failure.message, getattr(triton.TritonError, failure.code))
        self._respond(triton.InferenceResponse(error=error), last=True)

    def is_cancelled(self) -> bool:
        with self._lock:
            return not self._ended and self._sender.is_cancelled()

    def _respond(self, response: Any, *, last: bool) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = last
            self._sender.send(response, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


def _tensors(request: Any) -> dict[str, np.ndarray]:
    given = {field.name: triton.get_input_tensor_by_name(request, field.name) for field in INPUTS}
    return {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
