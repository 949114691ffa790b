"""Runs a reader of strange files in a process of its own, with little memory and little time.

Readers of films and of rarer pictures are large libraries in C, and a thread of ours could neither be stopped nor
bounded: 700 bytes of MP4 make one ask for gigabytes. What the process may use is set in `reader.py`.
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
PROJECT_ROOT = Path(__file__).parents[2]  # where the package `app` lies, installed or not
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG")  # and none of our secrets

_processes = anyio.CapacityLimiter(2)


async def run_isolated(job: str, *paths: Path) -> dict[str, Any]:
    """What the job of `reader.py` found; raises MediaError where it refused the file, broke down or took too long."""
    command = [sys.executable, "-m", "app.files.media.isolated_main", job, *(str(path.absolute()) for path in paths)]
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    async with _processes:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT_ROOT, env=env, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
        )
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                said, _ = await process.communicate()
        except TimeoutError:
            raise MediaError(f"{job} took too long") from None
        finally:
            if process.returncode is None:  # nobody waits for it any more
                process.kill()
                await process.wait()
    return _parse_output(process.returncode or 0, said)


def _parse_output(code: int, said: bytes) -> dict[str, Any]:
    if code < 0:  # killed: by its limits, or by a fault of a library that the file has found
        raise MediaError(f"the reader was ended by signal {-code}")
    if code > 0:
        raise RuntimeError(f"the reader ended with {code}")  # it did not even come to read
    found: dict[str, Any] = json.loads(said)
    if "oversized" in found:
        raise OversizedError(found["oversized"])
    if "refused" in found:
        raise MediaError(found["refused"])
    return found
