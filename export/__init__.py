"""Export PyTorch checkpoints to bundles of ONNX graphs (on the build machine)."""

from controlnext.export.exporter import export_bundle

__all__ = ["export_bundle"]
