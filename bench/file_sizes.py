"""What it costs to store one result: the step `rehost` in a process of its own, with videos of several sizes.

A video is one second long, and a `free` box brings it to its size. An HTTP server of the standard library sends it from
this machine, and the storage is a folder, so the network of a real installation is not in the figures.
"""

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from app.engine.state import ClaimedTask, UpstreamState, boottime
from app.engine.steps.rehost import rehost_results
from app.engine.transitions import Complete
from app.runtime import open_runtime
from app.sandbox.media.videos import VideoSpec, encode_video
from app.settings import Settings
from app.telemetry.logs import configure_logs
from bench.harness import wait_for_port
from tests.support.ports import free_port

ACTION = "see2ai_video_generation_v1"
TURNS = 3


async def measure(megabytes: list[int]) -> dict[str, str]:
    """The time, the CPU time and the peak memory for each size."""
    video = encode_video(VideoSpec("bench", "bench", "bench", (640, 360), seconds=1, has_audio=False))
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
        folder = Path(directory)
        for size in megabytes:
            _write(folder / f"{size}.mp4", video, size * 1_000_000)
        async with _server(folder) as origin:
            return {f"{size:,} MB": await _in_a_process(folder, f"{origin}/{size}.mp4") for size in megabytes}


def _write(path: Path, video: bytes, size: int) -> None:
    padding = max(size - len(video), 8)
    with path.open("wb") as file:
        file.write(video + padding.to_bytes(4, "big") + b"free")
        file.truncate(len(video) + padding)


@asynccontextmanager
async def _server(folder: Path) -> AsyncIterator[str]:
    port = free_port()
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder))
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        await child.wait()


async def _in_a_process(folder: Path, url: str) -> str:
    """A new process for each size, because the peak of the memory never falls."""
    command = (sys.executable, "-m", "bench.file_sizes", str(folder), url)
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    if child.returncode:
        raise SystemExit("storing a result failed")
    return output.decode().strip()


async def _main(folder: Path, url: str) -> None:
    settings = Settings(
        _env_file=None,
        database_url=f"sqlite+aiosqlite:///{folder}/bench.db",
        storage_url=(folder / "files").as_uri(),
        egress_allow=url.split("/")[2],
        log_level="WARNING",
    )
    configure_logs(settings)
    async with open_runtime(settings) as runtime:
        first = _peak(resource.RUSAGE_SELF)
        times, cpu_before = [], _cpu()
        for number in range(TURNS):
            began = time.perf_counter()
            decision = await rehost_results(runtime, _task(f"BENCH-{number}", url))
            times.append(time.perf_counter() - began)
            if not isinstance(decision, Complete):
                raise SystemExit(f"storing a result failed: {decision}")
    cpu = (_cpu() - cpu_before) / TURNS
    own, child = _peak(resource.RUSAGE_SELF) - first, _peak(resource.RUSAGE_CHILDREN)
    print(f"{median(times):6.2f} s   {cpu:6.2f} s CPU   worker +{own:.0f} MB   its media process {child:.0f} MB")


def _task(task_no: str, url: str) -> ClaimedTask:
    now = datetime.now(UTC)
    values: dict[str, Any] = dict.fromkeys(("id", "user_id", "points_cost", "version", "progress"), 0)
    values |= dict.fromkeys(("attempts", "crashes"), 0)
    return ClaimedTask(
        **values,
        task_no=task_no,
        model_name="bench",
        task_type="text_to_video",
        action=ACTION,
        upstream_request={},
        status="processing",
        step="rehost",
        history=[],
        upstream_task_id=task_no,
        upstream_state=UpstreamState(urls=(url,)),
        created_at=now,
        deadline_at=now + timedelta(hours=1),
        now=now,
        claimed_at=boottime(),
        held_until=boottime() + 3600,
    )


def _peak(whose: int) -> float:
    """The peak of the resident memory in MB; for children, that of the largest."""
    return resource.getrusage(whose).ru_maxrss / 1024


def _cpu() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2]))
