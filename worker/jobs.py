"""What ARQ may call: the bell. A job holds no work and no truth; losing one costs a second, never a task."""

from typing import Any


async def wake_worker(ctx: dict[str, Any]) -> None:
    """Something is due: the stepper of this process looks at once."""
    ctx["stepper"].wake()
