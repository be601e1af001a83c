"""``controlnext serve``: serve bundles over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from controlnext.cli import options, ray_options, run_options, serve_options, verbosity
from controlnext.cli.bundles import fetch_bundle
from controlnext.cli.config_file import ConfigCommand
from controlnext.cli.option_names import MIB
from controlnext.cli.ray_options import RayCommand
from controlnext.cli.serve_ray import serve_on_ray
from controlnext.optional import extra
from controlnext.runtime import Pipeline
from controlnext.runtime.serving.log_format import write_log
from controlnext.runtime.serving.settings import ServerSettings, read_keys


class ServeCommand(RayCommand, ConfigCommand):
    """The command: ``--ray`` may stand alone, and options may be in a file."""


def serve(
    bundles: serve_options.Bundles,
    host: serve_options.Host = "127.0.0.1",
    port: serve_options.Port = 8000,
    api_keys: serve_options.ApiKeys = None,
    loras: serve_options.Loras = None,
    no_metadata: run_options.NoMetadata = False,
    memory: serve_options.Memory = None,
    grace: serve_options.Grace = ServerSettings.grace,
    max_rows: serve_options.MaxRows = ServerSettings.max_rows,
    queue: serve_options.Queue = ServerSettings.max_waiting,
    max_body: serve_options.MaxBody = ServerSettings.max_body // MIB,
    max_pixels: serve_options.MaxPixels = ServerSettings.max_pixels,
    max_steps: serve_options.MaxSteps = ServerSettings.max_steps,
    max_images: serve_options.MaxImages = ServerSettings.max_images,
    max_size: serve_options.MaxSize = ServerSettings.max_size,
    max_frames: serve_options.MaxFrames = ServerSettings.max_frames,
    log_json: serve_options.LogJson = False,
    log_prompts: serve_options.LogPrompts = False,
    backend: options.RunBackend = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    offload: run_options.Offload = False,
    ray: ray_options.Ray = None,
    replicas: ray_options.Replicas = None,
    write_config: ray_options.WriteConfig = None,
) -> None:
    """Serve bundles over HTTP, with the routes of OpenAI's image API.

    The first bundle is loaded at once, the others when they are first asked for. SIGTERM or Ctrl-C lets
    running requests finish.
    """
    settings = ServerSettings(
        max_rows=max_rows,
        max_waiting=queue,
        max_body=max_body * MIB,
        max_pixels=max_pixels,
        max_steps=max_steps,
        max_images=max_images,
        max_size=max_size,
        max_frames=max_frames,
        loras=None if loras is None else str(loras.absolute()),
        metadata=not no_metadata,
        memory=memory,
        grace=grace,
        api_keys=read_keys(api_keys) if api_keys else (),
    )
    opening: dict[str, Any] = {
        "backend": backend,
        "device": device,
        "threads": threads,
        "offload": offload,
    }
    log: dict[str, Any] = {"log_json": log_json, "log_prompts": log_prompts}
    if ray is not None:
        serve_on_ray(
            bundles, settings, ray, replicas, write_config, host, port, api_keys=api_keys, **opening, **log
        )
        return
    ray_options.check_ray(ray, replicas=replicas, write_config=write_config)
    load = partial(Pipeline.load, **opening)
    _serve_here(bundles, settings, load, host, port, **log)


def _serve_here(
    bundles: list[str],
    settings: ServerSettings,
    load: Callable[[Path], Pipeline],
    host: str,
    port: int,
    *,
    log_json: bool,
    log_prompts: bool,
) -> None:
    """Serve in this process until a signal comes."""
    with extra("serve"):
        from controlnext.runtime.serving.access_log import AccessLog
        from controlnext.runtime.serving.app import make_app
        from controlnext.runtime.serving.metrics import Metrics
        from controlnext.runtime.serving.models import Models
        from controlnext.runtime.serving.server import (
            Server,
            address_of,
            is_local,
            open_listener,
            warn_if_open,
        )

    metrics = Metrics()
    models = Models([fetch_bundle(bundle) for bundle in bundles], settings, load, metrics)
    with open_listener(host, port) as listener:
        write_log(as_json=log_json, prompts=log_prompts, level=verbosity.level())
        warn_if_open(listener, guarded=bool(settings.api_keys))
        title = f"serving {', '.join(models.names())} on {address_of(listener)} (Ctrl-C stops)"
        app = make_app(models, settings, metrics, local=is_local(listener))
        application = AccessLog(app, metrics, prompts=log_prompts, keys=settings.api_keys)
        on_ready = partial(print, title, flush=True)
        Server(
            application,
            models,
            listener,
            grace=settings.grace,
            on_ready=on_ready,
            on_abort=app.state.clips.remove_files,
        ).run()
