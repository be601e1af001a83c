"""Removal of secrets from text: tokens, keys and passwords never reach messages, logs or files."""

from __future__ import annotations

import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any

HIDDEN = "***"
"""In place of a secret."""
_SHORTEST = 8
"""Letters of a variable's value that is taken for a secret: shorter ones are words such as ``true``."""
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEYS?|ACCESS_KEY(?:_ID)?|SECRET_KEY|CREDENTIALS?)$", re.I
)
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # a password may have slashes and signs of its own; a port has none
        (r"(:/{1,2})[^\s/@:'\"]*:(?!\d{1,5}(?:[/\s?#'\"]|$))[^\s'\"]*@", rf"\1{HIDDEN}@"),
        # a path that was made of a URL has one slash
        (r"(:/{1,2})[^\s/'\"]+@", rf"\1{HIDDEN}@"),
        # a location whose scheme is missing
        (
            r"(?<![^\s'\"(=])((?://)?)[^\s/@:'\"(=]+:(?!\d{1,5}(?:[/\s?#'\"]|$))[^\s/@'\"]+@",
            rf"\1{HIDDEN}@",
        ),
        # what signs a URL is in its query
        (r"(://[^\s?#'\"]*)\?[^\s'\")]+?(?=:?(?:[\s'\")]|$))", rf"\1?{HIDDEN}"),
        (
            r"(?i)\b((?:x-(?:amz|goog)-[\w-]+|signature|sig|awsaccesskeyid|(?:access_?|id_?|refresh_?)?token"
            r"|api_?key|password|secret(?:_?key)?)=)[^\s&'\",;)]+",
            rf"\1{HIDDEN}",
        ),
        (r"(?i)\b(bearer\s+)(?!KEY\b)[\w.~+/=-]{8,}", rf"\1{HIDDEN}"),
        (r"\bhf_[A-Za-z0-9]{16,}", HIDDEN),
        (r"\bsk-[\w-]{16,}", HIDDEN),
        (r"\bAKIA[0-9A-Z]{12,}", HIDDEN),
    )
)
"""Patterns of secrets: those in URLs, in queries and headers, and of forms that services give them."""


def without_secrets(text: str) -> str:
    """Return ``text`` with ``***`` in place of secrets.

    These are user names, passwords and queries of URLs, signatures and keys as ``name=value``, tokens whose
    form is known, and values of environment variables whose names say that they are secret (``HF_TOKEN``).
    """
    for secret in _of_environment():
        text = text.replace(secret, HIDDEN)
    # most texts have none of the signs
    if not any(sign in text for sign in ("@", ":/", "=", "earer", "EARER", "hf_", "sk-", "AKIA")):
        return text
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def hidden(value: Any) -> Any:
    """Return the texts of a value of JSON, keys too, as :func:`without_secrets` does."""
    if isinstance(value, dict):
        return {hidden(name): hidden(one) for name, one in value.items()}
    if isinstance(value, list):
        return [hidden(one) for one in value]
    return without_secrets(value) if isinstance(value, str) else value


def is_secret(variable: str) -> bool:
    """Return whether the name of an environment variable says that its value is secret."""
    return bool(_SECRET_VARIABLE.search(variable))


def has_password(location: str) -> bool:
    """Return whether a location ``scheme://...`` has a user name, a password or a token before its host."""
    return bool(password_of(location))


def password_of(location: str) -> str:
    """Return the user name, password or token before the host of ``scheme://...``; "" without one."""
    found = next(filter(None, (pattern.search(location) for pattern, _ in _RULES[:2])), None)
    return found[0].removesuffix("@").lstrip(":/") if found else ""


def _of_environment() -> list[str]:
    found = (value for name, value in os.environ.items() if is_secret(name))
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


def hide_secrets_of_tracebacks() -> None:
    """Have the traceback of an error that nothing catches, which ends the process, be without secrets."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show
