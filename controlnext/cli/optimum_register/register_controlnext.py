"""``optimum-cli export controlnext``: ``controlnext-export`` as a command of optimum.

The installed file lies in ``optimum.commands.register``, a package without ``__init__.py`` that several
distributions share: optimum imports every file there at each of its starts. The rest of this package is
therefore imported only when the command runs.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class ControlNeXtExportCommand(BaseOptimumCLICommand):
    """The command, which passes its arguments on: optimum knows none of its options."""

    COMMAND = CommandInfo(name="controlnext", help="Export a ControlNeXt model to a bundle of ONNX graphs.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Let the parser accept everything, ``--help`` too: without a prefix nothing is an option to it."""
        parser.prefix_chars = ""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Export, and exit with the status of ``controlnext-export``."""
        from controlnext.errors import MissingDependencyError
        from controlnext.optional import extra
        from controlnext.versions import check_versions

        try:
            with extra("export"):
                try:
                    from controlnext.cli.app import export_in_optimum
                except ModuleNotFoundError:
                    check_versions("export")  # what is missing may not fit to what is there
                    raise
        except MissingDependencyError as error:
            print(f"controlnext: error: {error}", file=sys.stderr)
            sys.exit(2)
        sys.exit(export_in_optimum(self.args.arguments))


REGISTER_COMMANDS = [(ControlNeXtExportCommand, ExportCommand)]
"""Read by optimum: commands, each with the command that it belongs to."""
