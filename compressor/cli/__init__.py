"""The command line: one subcommand a file, nothing heavy imported before a command runs."""

from compressor.cli.app import main

__all__ = ["main"]
