"""The command line: one module per subcommand, which parses options and calls the libraries.

They are imported when a command is run, so that Ctrl-C meanwhile ends it as it does later.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["export_main", "main"]

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Run the console script ``controlnext``."""
    with _ends_at_interrupt():
        from controlnext.cli import app

        sys.exit(app.main(sys.argv[1:]))


def export_main() -> None:
    """Run the console script ``controlnext-export``: the same as ``controlnext export``."""
    with _ends_at_interrupt():
        from controlnext.cli import app

        sys.exit(app.export_main(sys.argv[1:]))


@contextmanager
def _ends_at_interrupt() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
