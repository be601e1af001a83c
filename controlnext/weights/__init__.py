"""Weights: from the user's checkpoints to networks with strictly checked tensors (PyTorch)."""

from controlnext.weights.bundle import bundle_checkpoint
from controlnext.weights.checkpoint import Checkpoint, NetworkWeights
from controlnext.weights.lazy import is_finite
from controlnext.weights.load import load_checkpoint

__all__ = ["Checkpoint", "NetworkWeights", "bundle_checkpoint", "is_finite", "load_checkpoint"]
