"""`gateway worker` with a bug planted: hosting for a prompt with this word in it takes the whole process down."""

import os
import signal
from typing import Any

from app.cli import main
from app.engine import execute as advance
from app.engine.claim import ClaimedTask
from app.runtime import Runtime

WORD = "poison"
_host_results = advance.rehost_results


async def _crash(runtime: Runtime, visit: ClaimedTask) -> Any:
    if WORD in visit.upstream_request["prompt"]:
        print("poisoned:", visit.task_no, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return await _host_results(runtime, visit)


if __name__ == "__main__":
    advance.rehost_results = _crash  # type: ignore[assignment]
    main()
