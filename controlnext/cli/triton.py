"""``controlnext triton``: write a bundle as a model of NVIDIA Triton Inference Server."""

from __future__ import annotations

from controlnext.cli import options, serve_options, triton_options
from controlnext.cli.bundles import fetch_bundle
from controlnext.cli.console import print_json
from controlnext.runtime.triton.repository import write_model
from controlnext.runtime.triton.settings import TritonSettings


def triton(
    bundle: options.Bundle,
    output: triton_options.Output,
    name: triton_options.Name = None,
    decoupled: triton_options.Decoupled = True,
    max_rows: serve_options.MaxRows = TritonSettings.max_rows,
    queue: triton_options.Queue = TritonSettings.max_waiting,
    backend: options.RunBackend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    force: triton_options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a bundle as a model into a Triton model repository, for Triton's Python backend."""
    settings = TritonSettings(
        max_rows=max_rows, max_waiting=queue, backend=backend, device=device, threads=threads
    )
    directory = fetch_bundle(bundle, quiet=as_json)
    written = write_model(directory, output, settings, name=name, decoupled=decoupled, force=force)
    if as_json:
        print_json(
            {
                "model_repository": str(output),
                "model": written.name,
                "decoupled": decoupled,
                "bytes": written.bytes,
                "copied_bytes": written.copied,
            }
        )
    else:
        print(f"{written.directory}: serve it with tritonserver --model-repository {output}")
