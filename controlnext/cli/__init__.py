"""The command line: one module a subcommand, which parses, validates and calls functions."""

from controlnext.cli.app import export_main, main

__all__ = ["export_main", "main"]
