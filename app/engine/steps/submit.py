"""The step `submit`: commit the intent, then send the job once.

Between the two nobody else may send, and after them nobody ever sends again.
"""

from app.engine import transitions
from app.engine.breaker_sync import acquire_permission
from app.engine.state import ClaimedTask, TaskUpdate
from app.engine.steps.commit import CommitIntent
from app.engine.transitions import Advance, Decision
from app.failpoints import failpoint
from app.runtime import Runtime


async def submit(runtime: Runtime, task: ClaimedTask, commit_intent: CommitIntent) -> Decision:
    action = runtime.actions[task.action]
    # Found before the intent: what raises after it leaves a task that may have been sent.
    upstream, breaker = runtime.upstreams[action.provider], runtime.breakers[action.provider]
    if pause := await acquire_permission(runtime, breaker):
        return transitions.wait_for_upstream(task, pause, f"breaker open: {breaker.reason}")
    with breaker.call():
        failpoint("submit.before_intent")
        update = TaskUpdate(attempts=task.attempts)
        await commit_intent(Advance("submitting", f"sending to {action.provider}", update=update))
        failpoint("submit.after_intent")
        result = await upstream.submit(action, task.upstream_request, may_send=task.is_held)
        failpoint("submit.after_answer")
        result = breaker.record_result(result)
    return transitions.after_submit(task, result)
