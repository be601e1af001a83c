"""Checks of configurations against the rules of :mod:`~controlnext.weights.config_keys`: errors and
warnings."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, get_type_hints

from packaging.version import InvalidVersion, Version

from controlnext.errors import CheckpointError
from controlnext.families import Network
from controlnext.families.values import did_you_mean, in_words, is_integer, takes
from controlnext.weights.config_keys import MOST, MOST_OF_KEYS, NETWORKS, OF_NETWORKS
from controlnext.weights.config_rules import Rules

log = logging.getLogger(__name__)

_VERSION = "_diffusers_version"


def check_network(
    network: Network, config: Mapping[str, Any], checkpoint: str = "", *, warn: bool = True
) -> None:
    """Raise for settings in the configuration of ``network`` that its graphs do not support, and for values
    of a wrong type; ``checkpoint``: the checkpoint's name, for the message.

    A key that neither a rule nor the installed class knows gives a warning; unknown keys of transformers'
    files are ignored, as they are many and mean nothing. ``warn``: false if the warnings were given before.
    Raises :class:`CheckpointError` naming the key.
    """
    if network.cls not in NETWORKS:
        return
    what = f"{checkpoint}: its {network.folder}" if checkpoint else f"its {network.folder}"
    rules = NETWORKS[network.cls]
    if network.library == "diffusers":
        rules = {**OF_NETWORKS, **rules}
        check_unknown(what, config, rules, f"diffusers' {network.cls}", warn=warn)
    check_values(what, config, rules)
    _check_kinds(what, config, rules, _kinds(network.library, network.cls))
    _check_sizes(what, config, rules)
    _check_added_embeddings(what, config)
    _check_statistics(what, config)


def check_values(
    what: str,
    config: Mapping[str, Any],
    rules: Rules,
    remedy: Callable[[str], str] = lambda _key: "give another base",
) -> None:
    """Raise :class:`CheckpointError` for the first key whose value its rule does not accept; ``what``: the
    configuration's name, ``remedy``: how to fix a key, both for the message."""
    for key, value in config.items():
        rule = rules.get(key)
        if rule is not None and not _accepts(rule.accepts, value):
            raise CheckpointError(
                f"{what} has {key}={_short(value)}, which is not supported: {rule.why} (accepted:"
                f" {rule.accepted}); {remedy(key)}"
            )


def _check_kinds(what: str, config: Mapping[str, Any], rules: Rules, kinds: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` for the first key that is read and whose value has a wrong type.

    The libraries check few of them: they fail later, or compute something else.
    """
    for key, value in config.items():
        if key not in rules or rules[key].kind == "harmless" or key not in kinds:
            continue
        kind = kinds[key]
        # both libraries take null for false
        fits = takes(kind, value) or (value is None and takes(kind, False))
        if not fits or (is_integer(value) and value < 0):
            raise CheckpointError(
                f"{what} has {key}={_short(value)}, which is not a value of this key (accepted:"
                f" {in_words(kind)}{', not below 0' if fits else ''}); correct its config.json, or get the"
                " base again"
            )


def _check_sizes(what: str, config: Mapping[str, Any], rules: Rules) -> None:
    """Raise :class:`CheckpointError` for the first number that no network has: the library would make
    modules, or a table, until memory or patience ends."""
    for key, value in config.items():
        most = MOST_OF_KEYS.get(key, MOST)
        if key in rules and rules[key].kind != "harmless" and _largest(value) > most:
            raise CheckpointError(
                f"{what} has {key}={_short(value)}, which is more than any network has (accepted: at most"
                f" {most}); correct its config.json, or get the base again"
            )


def _largest(value: Any) -> int:
    """Return the largest integer in a value and the lists in it."""
    if isinstance(value, list | tuple):
        return max(map(_largest, value), default=0)
    return value if is_integer(value) else 0


def _check_added_embeddings(what: str, config: Mapping[str, Any]) -> None:
    """Check that SDXL's embeddings of sizes leave room for the pooled prompt, whose width is the rest."""
    if config.get("addition_embed_type") != "text_time":
        return
    size, total = (config.get(key) for key in (_TIME_WIDTH, _ADDED_WIDTH))
    if not (is_integer(size) and is_integer(total) and 0 < _TIME_IDS * size < total):
        raise CheckpointError(
            f"{what} has addition_embed_type=text_time with {_TIME_WIDTH}={size} and {_ADDED_WIDTH}={total}"
            f" (accepted: integers, the second more than {_TIME_IDS} times the first); correct its"
            " config.json, or get the base again"
        )


_TIME_WIDTH, _ADDED_WIDTH = "addition_time_embed_dim", "projection_class_embeddings_input_dim"
_TIME_IDS = 6


def _check_statistics(what: str, config: Mapping[str, Any]) -> None:
    """Check that a VAE has both of its statistics, for every channel: diffusers ignores one without the
    other."""
    given = {key: config.get(key) for key in ("latents_mean", "latents_std")}
    if all(value is None for value in given.values()):
        return
    channels = config.get("latent_channels", 4)
    if any(value is None or len(value) != channels for value in given.values()):
        both = " and ".join(f"{key}={_short(value)}" for key, value in given.items())
        raise CheckpointError(
            f"{what} has {both} (accepted: null for both, or lists of {channels} numbers); correct its"
            " config.json, or get the VAE again"
        )


@cache
def _kinds(library: str, cls: str) -> Mapping[str, Any]:
    """Return the types of a network's configuration values that its class declares."""
    network = getattr(importlib.import_module(library), cls)
    if library == "transformers":
        return {key: type(value) for key, value in vars(network.config_class()).items() if value is not None}
    hints, parameters = get_type_hints(network.__init__), inspect.signature(network.__init__).parameters
    # an annotation that does not take the default is wrong
    return {
        key: kind if takes(kind, parameters[key].default) else type(parameters[key].default)
        for key, kind in hints.items()
        if key in parameters
    }


def check_unknown(
    what: str, config: Mapping[str, Any], known: Collection[str], reader: str, *, warn: bool = True
) -> None:
    """Raise for or warn of public keys that are not ``known`` and are switched on.

    diffusers ignores such keys with a warning. A key that a newer release than the installed one wrote may
    change what is computed: it raises :class:`CheckpointError`.
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
        if warn:
            log.warning(
                "%s has %s=%s, which %s does not know: it is left out%s",
                what,
                key,
                _short(value),
                reader,
                did_you_mean(key, known),
            )


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
