"""controlnext: ControlNeXt models from PyTorch to production."""

from controlnext.errors import (
    BundleError,
    CheckpointError,
    ControlNeXtError,
    InputError,
    MissingDependencyError,
    OutOfMemoryError,
    ParityError,
    QueueFullError,
    WorkError,
)

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "CheckpointError",
    "ControlNeXtError",
    "InputError",
    "MissingDependencyError",
    "OutOfMemoryError",
    "ParityError",
    "QueueFullError",
    "WorkError",
    "__version__",
]
