"""``controlnext serve --ray``: the same server on a Ray cluster."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from controlnext.cli.bundles import shared_location
from controlnext.optional import extra
from controlnext.runtime.ray_cluster import LOCAL, ReplicaRange, threads_of_replica
from controlnext.runtime.serving.log_format import write_log
from controlnext.runtime.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterOptions:
    """Options of the command that every replica is told of."""

    bundles: list[str]
    backend: str
    device: str
    threads: int | None
    offload: bool
    api_keys: Path | None
    log_json: bool
    log_prompts: bool


def serve_on_ray(
    options: ClusterOptions,
    settings: ServerSettings,
    address: str,
    replicas: str | None,
    config: Path | None,
    host: str,
    port: int,
) -> None:
    """Serve on a cluster until a signal comes, or write Serve's configuration to the file ``config``."""
    with extra("serve"), extra("ray"):
        from controlnext.runtime.cluster.service import (
            served,
            wait_for_signal,
            write_config,
        )
        from controlnext.runtime.cluster.spec import ClusterSpec

    several = ReplicaRange.parse(replicas or "1")
    local = address == LOCAL and config is None
    spec = ClusterSpec(
        [shared_location(bundle) for bundle in options.bundles],
        settings=replace(settings, api_keys=()),
        api_keys=str(options.api_keys.resolve()) if options.api_keys else None,
        replicas=several,
        backend=options.backend,
        device=options.device,
        threads=threads_of_replica(options.threads, several, local=local),
        offload=options.offload,
        log_json=options.log_json,
        log_prompts=options.log_prompts,
    )
    if config is not None:
        write_config(spec, config, host, port)
        print(f"wrote {config}; run it with: serve deploy {config}")
        return
    write_log(as_json=options.log_json, prompts=options.log_prompts)
    names = ", ".join(Path(bundle).name for bundle in spec.bundles)
    with served(spec, address, host, port) as url:
        print(f"serving {names} on {url} with {replicas or 1} replicas (Ctrl-C stops)", flush=True)
        wait_for_signal()
