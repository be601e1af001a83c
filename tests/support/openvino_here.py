"""Where OpenVINO runs."""

from __future__ import annotations

import pytest

from controlnext import processor
from controlnext.engines.openvino.backend import BF16_SETS
from controlnext.optional import is_installed

needs_openvino = pytest.mark.skipif(
    not is_installed("openvino"), reason='OpenVINO is not installed: pip install "controlnext[openvino]"'
)
needs_bf16 = pytest.mark.skipif(
    processor.instruction_sets().isdisjoint(BF16_SETS), reason="the processor does not multiply bfloat16"
)
