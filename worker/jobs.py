"""The only ARQ job: the wakeup. It carries no data, so a lost job delays a task by a second and loses none."""

from typing import Any


async def wake_worker(ctx: dict[str, Any]) -> None:
    """Makes the task runner of this process query for due tasks now."""
    ctx["runner"].wake()
