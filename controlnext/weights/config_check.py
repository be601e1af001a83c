"""What a configuration asks for, held against :mod:`~controlnext.weights.config_keys`: refused, warned of, or
right."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from controlnext.errors import CheckpointError
from controlnext.registry import Network
from controlnext.weights.config_keys import NETWORKS, OF_NETWORKS, Rules

log = logging.getLogger(__name__)

_VERSION = "_diffusers_version"


def check_network(network: Network, config: Mapping[str, Any], place: str = "") -> None:
    """Refuse what the configuration file of ``network`` asks for and its graphs do not do; ``place``: the
    name of the checkpoint that it is of, for the message.

    A key that no rule and no version of the class that is installed knows is warned of; transformers' files
    are full of such keys that mean nothing, which pass. Raises :class:`CheckpointError` naming the key.
    """
    if network.cls not in NETWORKS:
        return
    what = f"{place}: its {network.folder}" if place else f"its {network.folder}"
    rules = NETWORKS[network.cls]
    if network.library == "diffusers":
        rules = {**OF_NETWORKS, **rules}
        check_unknown(what, config, rules, f"diffusers' {network.cls}")
    check_values(what, config, rules)


def check_values(what: str, config: Mapping[str, Any], rules: Rules) -> None:
    """Raise :class:`CheckpointError` for the first key whose value its rule does not accept; ``what`` says
    whose configuration it is."""
    for key, value in config.items():
        rule = rules.get(key)
        if rule is not None and not _accepts(rule.accepts, value):
            raise CheckpointError(
                f"{what} has {key}={_short(value)}, which is not supported: {rule.why} (accepted:"
                f" {rule.accepted})"
            )


def check_unknown(what: str, config: Mapping[str, Any], known: Collection[str], reader: str) -> None:
    """Refuse or warn of the public keys that are not ``known`` and are switched on.

    diffusers leaves them out with a warning, whatever they say. What a newer release than the one that is
    installed wrote may change what is computed: that is refused.
    """
    for key, value in config.items():
        if key in known or key.startswith("_") or _is_off(value):
            continue
        if _is_newer(config.get(_VERSION)):
            raise CheckpointError(
                f"{what} has {key}={_short(value)}, which {reader} does not know; diffusers"
                f" {config[_VERSION]} wrote it, {importlib.metadata.version('diffusers')} is installed:"
                " update diffusers"
            )
        log.warning("%s has %s=%s, which %s does not know: it is left out", what, key, _short(value), reader)


def _accepts(accepts: Any, value: Any) -> bool:
    try:
        return bool(accepts(value))
    except TypeError:  # a number where a list is expected
        return False


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "")


def _is_newer(written: Any) -> bool:
    try:
        return Version(str(written)).release > Version(importlib.metadata.version("diffusers")).release
    except InvalidVersion:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
