"""`killed_migration.py NUMBER migrate`: runs `gateway migrate` and kills itself after this number of changes."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # this file is started as a program

from app.cli import main
from tests.support.stopping import count_changes


def kill_after(number: int) -> None:
    def kill(executed: int) -> None:
        if executed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with count_changes(kill):
        main()


if __name__ == "__main__":
    kill_after(int(sys.argv.pop(1)))
