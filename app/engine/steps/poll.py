"""The step `poll`: ask the upstream for the state of the job."""

from datetime import timedelta

from app.engine import transitions
from app.engine.state import ClaimedTask, boottime
from app.engine.transitions import Decision
from app.failpoints import failpoint
from app.runtime import Runtime


async def poll(runtime: Runtime, task: ClaimedTask) -> Decision:
    action = runtime.actions[task.action]
    breaker = runtime.breakers[action.provider]
    is_last_poll = task.seconds_left() <= 0
    # A poll for fresh URLs of a finished job does not wait for the breaker, because the URLs may expire.
    ignores_breaker = is_last_poll or task.upstream_state.is_refreshed
    async with breaker.call(is_free=True, waits=not ignores_breaker) as call:
        if call.wait_seconds:
            reason = f"polls throttled or breaker open: {breaker.reason}"
            return transitions.wait_for_upstream(task, call.wait_seconds, reason)
        failpoint("poll.before")
        result = await runtime.upstreams[action.provider].poll(action, task.upstream_task_id or "")
        failpoint("poll.after_answer")
        result = await breaker.record_result(call, result)
    now = task.now + timedelta(seconds=boottime() - task.claimed_at)
    return transitions.after_poll(task, result, now, is_last_poll=is_last_poll)
