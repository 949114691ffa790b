"""A video of 300 MB goes from SEE2AI through a worker into the bucket. The worker's memory hardly grows."""

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

from tests.support.processes.books import environment, open_books
from tests.support.processes.process import Process, Processes
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database

SIZE_BYTES = 300_000_000
MAX_GROWTH_MB = 60
MODEL = "sc_video_text_fast"


def test_a_large_video_takes_no_memory(
    real_services: RealServices, sandbox_server: Server, tmp_path: Path, record_property: Any
) -> None:
    with own_database() as url:
        env = environment(real_services, sandbox_server, url)
        with Processes(tmp_path, env) as processes:
            growth = asyncio.run(_growth_mb(env, processes.worker()))
    record_property("growth_mb", growth)
    print(f"growth {growth:.1f} MB")
    assert growth < MAX_GROWTH_MB, f"{growth:.0f} MB"


async def _growth_mb(env: dict[str, Any], worker: Process) -> float:
    """The worker's memory peak while it rehosts a large video, minus that of a small one, in MB."""
    async with open_books(env) as books:
        await books.submit('[[sandbox: {"take_seconds": 0}]]', MODEL)
        await books.all_ended()
        before = _resident_mb(worker)
        peak = Peak(worker)
        await books.submit(f'[[sandbox: {{"size_bytes": {SIZE_BYTES}, "take_seconds": 0}}]]', MODEL)
        rows = await books.all_ended(300)
        growth = peak.stop() - before
        assert [row["status"] for row in rows] == ["completed"] * 2, rows[-1]["operator_note"]
        [result] = rows[-1]["results"]
        assert (result["bytes"], result["type"]) == (SIZE_BYTES, "video/mp4")
        stored = await books.runtime.store.open(result["key"])
        assert stored is not None
        assert stored.size == SIZE_BYTES
        await books.prove()
    return growth


class Peak:
    """The largest resident size of a process until `stop`, measured every few milliseconds."""

    def __init__(self, process: Process) -> None:
        self._process, self._largest, self._over = process, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self._largest

    def _poll(self) -> None:
        while not self._over.wait(0.005):
            self._largest = max(self._largest, _resident_mb(self._process))


def _resident_mb(process: Process) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
