"""Runs a job on a media file in an isolated process with limited memory and time.

The decoders of videos and rarer image formats are large C libraries. A thread could be neither stopped nor limited,
and an MP4 of 700 bytes can request gigabytes of memory. `isolated_main.py` sets the limits.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

from app.files.media.images import MediaError, MediaSlots, OversizedError

TIMEOUT_SECONDS = 120.0
SMALL = "--small"
PROJECT_ROOT = Path(__file__).parents[3]  # the folder of the package `app`, installed or not
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG")  # the process gets no other variables, because they hold secrets

_slots = MediaSlots()


async def run_isolated(job: str, *arguments: Path | int, is_large: bool) -> dict[str, Any]:
    """Runs a job of `isolated_main.py` and returns its result. A job that is not large gets less time.

    Raises MediaError if the job refuses the file, crashes or takes too long.
    """
    texts = [str(one.absolute() if isinstance(one, Path) else one) for one in arguments]
    command = [sys.executable, "-m", "app.files.media.isolated_main", job, *texts, *([] if is_large else [SMALL])]
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    async with _slots.slot(is_large=is_large):
        process = await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT_ROOT, env=env, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
        )
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            raise MediaError(f"{job} took too long") from None
        finally:
            if process.returncode is None:  # a timeout or a cancellation
                process.kill()
                await process.wait()
    return _parse_output(process.returncode or 0, output)


def _parse_output(exit_code: int, output: bytes) -> dict[str, Any]:
    if exit_code < 0:  # a limit, or a crash of a library
        raise MediaError(f"the isolated process was killed by signal {-exit_code}")
    if exit_code > 0:
        raise RuntimeError(f"the isolated process ended with {exit_code}")  # it failed before the job: our bug
    result: dict[str, Any] = json.loads(output)
    if "oversized" in result:
        raise OversizedError(result["oversized"])
    if "refused" in result:
        raise MediaError(result["refused"])
    return result
