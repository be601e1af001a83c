"""``controlnext serve --ray``: the same server on a Ray cluster."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from controlnext.bundle.remote import is_remote
from controlnext.bundle.remote_files import check_location
from controlnext.cli import verbosity
from controlnext.cli.bundles import fetch_bundle, shared_location
from controlnext.optional import extra
from controlnext.runtime.ray_cluster import LOCAL, ReplicaRange, let_nobody_in, threads_of_replica
from controlnext.runtime.serving.log_format import write_log
from controlnext.runtime.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


def serve_on_ray(
    bundles: list[str],
    settings: ServerSettings,
    address: str,
    replicas: str | None,
    config: Path | None,
    host: str,
    port: int,
    *,
    api_keys: Path | None,
    threads: int | None,
    **options: Any,
) -> None:
    """Serve on a cluster until a signal comes, or write Serve's configuration to the file ``config``.

    ``options``: the other fields of :class:`ClusterSpec`.
    """
    if address == LOCAL:
        let_nobody_in()
    with extra("serve"), extra("ray"):
        from controlnext.runtime.cluster.config import write_config
        from controlnext.runtime.cluster.service import served, wait_for_signal
        from controlnext.runtime.cluster.spec import ClusterSpec
        from controlnext.runtime.serving.metrics import Metrics
        from controlnext.runtime.serving.models import Models

    several = ReplicaRange.parse(replicas or "1")
    spec = ClusterSpec(
        [shared_location(bundle) for bundle in bundles],
        settings=replace(settings, api_keys=()),
        api_keys=str(api_keys.resolve()) if api_keys else None,
        replicas=several,
        threads=threads_of_replica(threads, several, local=address == LOCAL and config is None),
        log_level=verbosity.level(),
        **options,
    )
    if config is not None:
        write_config(spec, config, host, port)
        print(f"wrote {config}; run it with: serve deploy {config}")
        return
    write_log(as_json=spec.log_json, prompts=spec.log_prompts, level=spec.log_level)
    for bundle in filter(is_remote, spec.bundles):
        check_location(bundle)
    if address == LOCAL:
        # a bundle that cannot be served is told at once, not when replicas have failed several times
        Models([fetch_bundle(bundle) for bundle in spec.bundles], spec.settings, spec.load(), Metrics())
    names = ", ".join(Path(bundle).name for bundle in spec.bundles)
    with served(spec, address, host, port) as url:
        print(f"serving {names} on {url} with {replicas or 1} replicas (Ctrl-C stops)", flush=True)
        wait_for_signal()
