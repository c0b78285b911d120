"""The command line: arguments in, text and exit codes out."""

from curlfx.cli.app import app, main

__all__ = ["app", "main"]
