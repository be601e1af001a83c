"""Export: PyTorch checkpoints to bundles of ONNX graphs (the build machine's part)."""

from controlnext.export.exporter import PRECISIONS, export_bundle

__all__ = ["PRECISIONS", "export_bundle"]
