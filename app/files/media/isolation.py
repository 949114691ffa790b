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

import anyio

from app.files.media.images import MediaError, OversizedError

TIMEOUT_SECONDS = 120.0
PROJECT_ROOT = Path(__file__).parents[3]  # the folder of the package `app`, installed or not
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG")  # the process gets no other variables, because they hold secrets

_processes = anyio.CapacityLimiter(2)


async def run_isolated(job: str, *paths: Path) -> dict[str, Any]:
    """Runs a job of `isolated_main.py` and returns its result.

    Raises MediaError if the job refuses the file, crashes or takes too long.
    """
    command = [sys.executable, "-m", "app.files.media.isolated_main", job, *(str(path.absolute()) for path in paths)]
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    async with _processes:
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
