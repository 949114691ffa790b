"""How a job's answer reaches the circuit breaker, and what the task remembers of a refusal."""

from dataclasses import replace

from app.engine.state import ClaimedTask
from app.upstreams.breaker import BreakerCall, CircuitBreaker
from app.upstreams.protocol import ResultKind, UpstreamResult


async def record_result(
    breaker: CircuitBreaker, call: BreakerCall, task: ClaimedTask, result: UpstreamResult
) -> UpstreamResult:
    """The result as the breaker reads it. A job that only this task is refused becomes REJECTED."""
    refused = task.upstream_state.successes_when_refused
    result = await breaker.record_result(call, result, refused)
    if result.kind is ResultKind.ACCOUNT_ERROR and refused is None:
        # As the refusal found it: jobs of others may have been accepted while the refusal was written.
        task.upstream_state = replace(task.upstream_state, successes_when_refused=breaker.state.successes_at_open)
    return result
