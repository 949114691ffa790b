"""The confined process: `python -m app.files.media.isolated_main JOB PATH…` bounds itself, reads one file, prints what it found."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.files.media.audio_video import probe
from app.files.media.conversion import convert
from app.files.media.images import MediaError, OversizedError

MEMORY_BYTES = 1_500_000_000
CPU_SECONDS = 60
MAX_OUTPUT_BYTES = 300_000_000  # more than a picture of 64 MP takes as PNG
OPEN_FILES = 32
JOBS: dict[str, Callable[..., dict[str, Any]]] = {"convert": convert, "probe": probe}


def main() -> None:
    job, *paths = sys.argv[1:]
    _apply_limits()
    try:
        found = JOBS[job](*map(Path, paths))
    except OversizedError as error:
        found = {"oversized": error.reason}
    except MediaError as error:
        found = {"refused": error.reason}
    except MemoryError:
        found = {"refused": "wants too much memory"}
    sys.stdout.write(json.dumps(found))


def _apply_limits() -> None:
    bounds = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: MAX_OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))


if __name__ == "__main__":
    main()
