"""Find the GPU of this machine through NVIDIA's driver, without any other library."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from controlnext.engines.devices import device_index, device_kind

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_CAPABILITY = (75, 76)


class Gpu(NamedTuple):
    """A GPU: its ``name`` by the driver ("NVIDIA H100 PCIe") and its ``architecture`` ("sm90")."""

    name: str
    architecture: str


def find_gpu(index: int = 0) -> Gpu | None:
    """Return GPU number ``index`` (among those in CUDA_VISIBLE_DEVICES), or None if there is none."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    digits = []
    for attribute in _CAPABILITY:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        digits.append(str(value.value))
    return Gpu(name.value.decode(), f"sm{''.join(digits)}")


def find_gpus() -> Iterator[Gpu]:
    """Yield the GPUs in CUDA_VISIBLE_DEVICES, all by default."""
    for index in count():
        gpu = find_gpu(index)
        if gpu is None:
            return
        yield gpu


def gpu_of(device: str) -> Gpu | None:
    """Return the GPU of ``device``, the first for ``"auto"``; None if there is none."""
    return None if device_kind(device) == "cpu" else find_gpu(device_index(device) or 0)
