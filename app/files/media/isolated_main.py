"""The isolated process: `python -m app.files.media.isolated_main SIZE JOB ARGUMENT…`. SIZE is `small` or `large`.

It limits its own resources, runs one job on a file, and prints the result as JSON.
"""

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

from app.files.media.audio_video import probe
from app.files.media.conversion import convert
from app.files.media.images import MediaError, OversizedError

MEMORY_BYTES = 1_500_000_000
CPU_SECONDS = {"small": 10, "large": 60}
MAX_OUTPUT_BYTES = 300_000_000  # more than a PNG of 64 megapixels needs
MAX_OPEN_FILES = 32
JOBS: dict[str, Callable[..., dict[str, Any]]] = {"convert": convert, "probe": probe}


def main() -> None:
    size, job, *arguments = sys.argv[1:]
    _apply_limits(CPU_SECONDS[size])
    try:
        result = JOBS[job](*arguments)
    except OversizedError as error:
        result = {"oversized": error.reason}
    except MediaError as error:
        result = {"refused": error.reason}
    except MemoryError:
        result = {"refused": "needs too much memory"}
    sys.stdout.write(json.dumps(result))


def _apply_limits(cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: MAX_OUTPUT_BYTES,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()
