"""The isolated process: `python -m app.files.media.isolated_main JOB ARGUMENT… [--small]`.

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
from app.files.media.isolation import SMALL

MEMORY_BYTES = 1_500_000_000
CPU_SECONDS = 60
SMALL_CPU_SECONDS = 10
MAX_OUTPUT_BYTES = 300_000_000  # more than a PNG of 64 megapixels needs
MAX_OPEN_FILES = 32
JOBS: dict[str, Callable[..., dict[str, Any]]] = {"convert": convert, "probe": probe}


def main() -> None:
    job, *arguments = sys.argv[1:]
    is_small = arguments[-1] == SMALL
    _apply_limits(SMALL_CPU_SECONDS if is_small else CPU_SECONDS)
    try:
        result = JOBS[job](*(arguments[:-1] if is_small else arguments))
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
