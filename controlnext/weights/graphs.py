"""Reading graphs of bundles, whose weights stay in their file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from controlnext.errors import BundleError


def read_graph(path: Path) -> ir.Model:
    """Return the graph in the file ``path``; weights are read when they are needed, from beside it.

    ``onnx_ir`` refuses files with several hard links, as Triton's model repositories and the copies of
    bundles have, and symbolic links, as hubs' caches have. The checksums of the manifest tell better whether
    a file is the bundle's. Raises :class:`BundleError` for weights in another directory.
    """
    model = ir.load(path)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _Weight(value.const_value, path)
    return model


class _Weight(ir.ExternalTensor):
    """A tensor in a file beside the graph's, whatever links lead there."""

    __slots__ = ("_file",)

    def __init__(self, tensor: ir.ExternalTensor, graph: Path) -> None:
        location = str(tensor.location)
        if location != Path(location).name:
            raise BundleError(f"{graph} has weights in {location}, not beside it; export the bundle again")
        super().__init__(
            location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
        )
        self._file = graph.parent / location

    @property
    def path(self) -> str:
        """The path of the file with the weights."""
        return str(self._file)
