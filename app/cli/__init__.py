"""The `gateway` command. It exits with 0 when done, 2 for bad usage, and 1 for any other failure."""

from app.cli.commands import main

__all__ = ["main"]
