"""The command line: one module per subcommand, which parses options and calls the libraries."""

from controlnext.cli.app import export_in_optimum, export_main, main

__all__ = ["export_in_optimum", "export_main", "main"]
