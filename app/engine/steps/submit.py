"""The step `submit`: commit the intent, then send the job once.

Between the two nobody else may send, and after them nobody ever sends again. So nothing that takes time stands between
them: the request is logged before.
"""

import structlog

from app.engine import transitions
from app.engine.state import ClaimedTask, TaskUpdate
from app.engine.steps.commit import CommitIntent
from app.engine.steps.refusal import record_result
from app.engine.transitions import Advance, Decision
from app.failpoints import failpoint
from app.runtime import Runtime

log = structlog.get_logger()


async def submit(runtime: Runtime, task: ClaimedTask, commit_intent: CommitIntent) -> Decision:
    action = runtime.actions[task.action]
    # Found before the intent: what raises after it leaves a task that may have been sent.
    upstream, breaker = runtime.upstreams[action.provider], runtime.breakers[action.provider]
    async with breaker.call(user_id=task.user_id) as call:
        if call.wait_seconds:
            return transitions.wait_for_upstream(task, call.wait_seconds, f"breaker open: {breaker.reason}")
        log.info("see2ai_submit", task_no=task.task_no, action=action.name, payload=task.upstream_request)
        failpoint("submit.before_intent")
        update = TaskUpdate(attempts=task.attempts)
        await commit_intent(Advance("submitting", f"sending to {action.provider}", update=update))
        failpoint("submit.after_intent")
        result = await upstream.submit(action, task.upstream_request, may_send=task.is_held)
        failpoint("submit.after_answer")
        result = await record_result(breaker, call, task, result)
    return transitions.after_submit(task, result)
