"""Ray Serve's configuration file of the application, for ``serve deploy`` and KubeRay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from controlnext.bundle.files import check_new_file, new_file
from controlnext.bundle.remote import is_remote
from controlnext.bundle.remote_files import check_location
from controlnext.errors import InputError
from controlnext.regular import read_small
from controlnext.runtime.cluster.deployment import BUILDER, QUIET
from controlnext.runtime.cluster.elsewhere import APPLICATION
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.server import check_port


def write_config(spec: ClusterSpec, config: Path, host: str, port: int) -> None:
    """Write Serve's configuration file of the application to ``config``; an earlier one is replaced.

    Bundles at paths are opened here, without their engines; those at locations are not asked for, and a GPU
    may be where the replicas are.

    Raises:
        InputError: the file cannot be written there or is not such a configuration, the device is left open,
            or what would be in it is not accepted.
        BundleError: a bundle is missing, incomplete or truncated.
        WorkError: the disk is full.
    """
    _check_replaceable(config)
    _check_options(spec, port)
    _check_bundles(spec)
    described = {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": BUILDER,
        "args": spec.fields(),
    }
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "logging_config": QUIET,
        "applications": [described],
    }
    with new_file(config, "config") as file:
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _check_replaceable(config: Path) -> None:
    check_new_file(config, "config")
    if config.exists() and not _is_config(config):
        raise InputError(
            f"config {config} is there and is not a configuration of this application; give a new file",
            argument="config",
        )


def _is_config(path: Path) -> bool:
    """Return whether a file is what :func:`write_config` writes, perhaps edited, or empty."""
    try:
        text = read_small(path).decode()
        return not text or any(one["import_path"] == BUILDER for one in yaml.safe_load(text)["applications"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return False


def _check_options(spec: ClusterSpec, port: int) -> None:
    if spec.device == "auto":
        raise InputError(
            "device is auto, and a configuration is for machines that are not known here; give cpu or cuda",
            argument="device",
        )
    check_port(port)
    if not port:
        raise InputError(
            "port is 0, and a configuration is for proxies that have one; give an integer from 1 to 65535",
            argument="port",
        )


def _check_bundles(spec: ClusterSpec) -> None:
    paths = [Path(bundle) for bundle in spec.bundles if not is_remote(bundle)]
    for bundle in spec.bundles:
        if is_remote(bundle):
            check_location(bundle)
    _check_names(spec.bundles)
    # whatever the replicas have: engines are not opened
    load = replace(spec, backend="auto", device="cpu").load()
    Models(paths, spec.settings, load, Metrics())


def _check_names(bundles: Sequence[str]) -> None:
    """Raise :class:`InputError` for two bundles of one name, which would be one model."""
    known: dict[str, str] = {}
    for bundle in bundles:
        other = known.setdefault(Path(bundle).name, bundle)
        if other is not bundle:
            raise InputError(
                f"{other} and {bundle} have the same name {Path(bundle).name!r}; rename one of the"
                " directories"
            )
