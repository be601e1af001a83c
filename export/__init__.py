"""Export: PyTorch checkpoints to bundles of ONNX graphs (the build machine's part)."""

from controlnext.export.exporter import export_bundle

__all__ = ["export_bundle"]
