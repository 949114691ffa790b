"""The step `poll`: ask the upstream for the state of the job."""

from datetime import timedelta

from app.engine import transitions
from app.engine.breaker_sync import acquire_permission
from app.engine.state import ClaimedTask, boottime
from app.engine.transitions import Decision
from app.failpoints import failpoint
from app.runtime import Runtime
from app.upstreams.protocol import ResultKind


async def poll(runtime: Runtime, task: ClaimedTask) -> Decision:
    action = runtime.actions[task.action]
    breaker = runtime.breakers[action.provider]
    is_last_poll = task.seconds_left() <= 0
    # A poll for fresh URLs of a finished job does not wait for the breaker, because the URLs may expire.
    ignores_breaker = is_last_poll or task.upstream_state.is_refreshed
    pause = 0.0 if ignores_breaker else await acquire_permission(runtime, breaker, for_poll=True)
    if pause:
        return transitions.wait_for_upstream(task, pause, "polls throttled or breaker open: " + breaker.reason)
    with breaker.call(is_free=True):
        failpoint("poll.before")
        result = await runtime.upstreams[action.provider].poll(action, task.upstream_task_id or "")
        failpoint("poll.after_answer")
        result = breaker.record_result(result, is_free=True)
    if result.kind is ResultKind.RATE_LIMITED:
        breaker.throttle_polls(result.retry_after_seconds)
    now = task.now + timedelta(seconds=boottime() - task.claimed_at)
    return transitions.after_poll(task, result, now, is_last_poll=is_last_poll)
