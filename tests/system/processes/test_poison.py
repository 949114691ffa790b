"""A task that kills its process each time: it ends with a refund after three crashes, and no other task does."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.processes import poisoned_node
from tests.support.processes.books import accepted, environment, open_books
from tests.support.processes.process import Process, Processes
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database

OTHERS = 8


@contextmanager
def supervised(processes: Processes) -> Iterator[list[Process]]:
    """Restarts the worker each time it dies, as every supervisor does."""
    runs: list[Process] = []
    over = threading.Event()

    def supervise() -> None:
        while not over.is_set():
            run = processes.start(sys.executable, poisoned_node.__file__, "worker", name="poisoned")
            runs.append(run)
            while run.code is None and not over.wait(0.05):
                pass

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield runs
    finally:
        over.set()
        thread.join()


def test_a_task_that_crashes_its_process_ends_alone(
    real_services: RealServices, sandbox_server: Server, tmp_path: Path
) -> None:
    with own_database() as url:
        env = environment(real_services, sandbox_server, url)
        with Processes(tmp_path, env) as processes:
            asyncio.run(_run(env, processes, sandbox_server))


async def _run(env: dict[str, Any], processes: Processes, sandbox: Server) -> None:
    async with open_books(env) as books:
        # All are rehosted at the same moment, so the first crash hits them all.
        for number in range(OTHERS // 2):
            await books.submit(f'好 good-{number}- [[sandbox: {{"take_seconds": 1}}]]')
        bad = await books.submit(f'坏 {poisoned_node.WORD} [[sandbox: {{"take_seconds": 1}}]]')
        for number in range(OTHERS // 2, OTHERS):
            await books.submit(f'好 good-{number}- [[sandbox: {{"take_seconds": 1}}]]')
        with supervised(processes) as runs:
            rows = {row["task_no"]: row for row in await books.all_ended()}
            late = await books.submit('后 late [[sandbox: {"take_seconds": 0.1}]]')
            await books.all_ended()
            assert runs[-1].code is None
        row = rows.pop(bad)
        assert (row["status"], row["error_code"]) == ("failed", "INTERNAL"), row["history"]
        workers = [line for run in runs for line in run.log().splitlines() if line == f"poisoned: {bad}"]
        assert len(workers) == 3
        notes = [row["operator_note"] for row in rows.values()]
        assert {row["status"] for row in rows.values()} == {"completed"}, notes
        assert (await books.row(late))["status"] == "completed"
        assert len(accepted(sandbox, poisoned_node.WORD)) == 1
        await books.prove()
