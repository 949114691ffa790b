"""The `gateway` command: runs the processes and gives an operator's hands. Exit 0 done, 2 bad usage, 1 otherwise."""

from app.cli.commands import main

__all__ = ["main"]
