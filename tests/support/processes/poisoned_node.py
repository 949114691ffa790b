"""`gateway worker` with a bug: rehosting the result of a prompt with this word kills the process."""

import os
import signal
from typing import Any

from app.cli import main
from app.engine import execute
from app.engine.state import ClaimedTask
from app.runtime import Runtime

WORD = "poison"
_rehost_results = execute.rehost_results


async def _crash(runtime: Runtime, task: ClaimedTask) -> Any:
    if WORD in task.upstream_request["prompt"]:
        print("poisoned:", task.task_no, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return await _rehost_results(runtime, task)


if __name__ == "__main__":
    execute.rehost_results = _crash  # type: ignore[assignment]
    main()
