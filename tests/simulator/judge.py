"""What must be true after the faults have ended and all tasks had time to end. Each line found is a violation."""

from typing import TYPE_CHECKING

from app.points.audit.checks import audit
from app.runtime import open_runtime
from tests.simulator.weather import FAULTS

if TYPE_CHECKING:
    from tests.simulator.world import World

GOOD_FATES = frozenset({"success", "empty", "endless"})


async def judge(world: "World") -> list[str]:
    async with open_runtime(world.settings) as runtime:
        found = [f"audit {one.invariant}: {one.meaning}: {one.row}" for one in await audit(runtime.database)]
    return [
        *found,
        *[f"{what}: {task_no}" for what, task_no in world.database.poll("SELECT what, task_no FROM watch")],
        *_unended(world),
        *_upstream(world),
        *_polls(world),
        *_calm(world),
        *_promises(world),
        *_money(world),
        *_results(world),
    ]


def _unended(world: "World") -> list[str]:
    rows = world.database.poll("SELECT task_no, step, deadline_at FROM tasks WHERE step <> 'done'")
    return [f"I9: {task_no} still stands at {step}, its deadline was {deadline}" for task_no, step, deadline in rows]


def _upstream(world: "World") -> list[str]:
    """At most one job for each task, sent with a stored intent and before the task's end. A lost job is flagged."""
    found = []
    for send_request, stood in world.upstream.sent.items():
        if send_request not in world.requests:
            found += _reference(world, send_request, stood)
            continue
        if len(stood) > 1:
            found.append(f"I8: {len(stood)} jobs were accepted for {send_request}: {stood}")
        for at in stood:
            if at is None:
                found.append(f"I3: a job was sent for {send_request}, which nobody has stored")
            elif at[0] == "done":
                found.append(f"I8: a job was sent for {send_request} after its end: {at}")
            elif at[0] != "submitting":
                found.append(f"I8: a job was sent for {send_request} without an intent on record: {at}")
        unanswered = world.database.poll(
            "SELECT task_no, error_code FROM tasks WHERE prompt = ? AND status = 'failed' AND suspected_orphan = 0"
            " AND upstream_task_id IS NULL AND results IS NULL"
            """ AND (upstream_state IS NULL OR upstream_state NOT LIKE '%"urls"%')""",
            send_request,
        )
        if unanswered and send_request not in world.upstream.excused:
            found.append(f"I8: a job for {send_request} runs unheard and is not flagged: {unanswered}")
    return found


def _reference(world: "World", link: str, stood: list[tuple[str, str] | None]) -> list[str]:
    """A reference may be normalized twice, but not for an ended or cancelled task: each call costs money."""
    prompt = world.references.get(link)
    if prompt is None:
        return []  # uploaded before, so the link does not identify the task
    found = [f"I8: a reference of {prompt} was normalized at {at}" for at in stood if at is None or at[0] != "prepare"]
    if world.database.poll("SELECT 1 FROM tasks WHERE prompt = ? AND error_code = 'CANCELLED'", prompt):
        found.append(f"I8: a reference of {prompt} was normalized, and the task cancelled all the same")
    return found


def _polls(world: "World") -> list[str]:
    """A poll that was lost, slow, malformed or about another job fails no task whose job succeeded."""
    if world.weather.hits["up.poll_404"] or world.weather.hits["up.reused_id"]:
        return []  # three 404s in a row end a task; a reused id makes two tasks share one job
    failed = world.database.poll(
        "SELECT task_no, upstream_task_id FROM tasks WHERE error_code IN ('UPSTREAM_FAILED', 'UPSTREAM_REJECTED')"
        " AND upstream_task_id IS NOT NULL"
    )
    fates = [(task_no, world.upstream.jobs[job].fate) for task_no, job in failed]
    return [f"I11: {task_no} failed, and its job did not: {fate}" for task_no, fate in fates if fate in GOOD_FATES]


def _calm(world: "World") -> list[str]:
    """In a run without faults no task fails, except by a cancel."""
    if any(world.weather.hits[kind] for kind in FAULTS):
        return []
    rows = world.database.poll("SELECT task_no, error_code FROM tasks WHERE status = 'failed'")
    return [f"I11: {task_no} failed in calm weather: {code}" for task_no, code in rows if code != "CANCELLED"]


def _promises(world: "World") -> list[str]:
    found = []
    for send_request, task_no in world.acknowledged.items():
        rows = world.database.poll("SELECT prompt, user_id FROM tasks WHERE task_no = ?", task_no)
        if rows != [(send_request, world.requests[send_request])]:
            found.append(f"I7: {task_no} was acknowledged for {send_request} and is {rows}")
    for send_request, count in world.database.poll(
        "SELECT prompt, COUNT(*) FROM tasks GROUP BY prompt HAVING COUNT(*) > 1"
    ):
        found.append(f"I7: {count} tasks for {send_request}")
    for task_no in sorted(world.cancelled):
        rows = world.database.poll("SELECT status, error_code FROM tasks WHERE task_no = ?", task_no)
        if rows != [("failed", "CANCELLED")]:
            found.append(f"I6: {task_no} was cancelled and is {rows}")
    return found


def _money(world: "World") -> list[str]:
    """A separate model of the points, from the submits and their ends. It does not use the ledger."""
    found = []
    applied = dict(world.database.poll("SELECT ref, COUNT(*) FROM points_ledger WHERE ref IS NOT NULL GROUP BY ref"))
    granted = {1: 0, 2: 0}
    for ref, (user, points, is_received) in world.grants.items():
        if applied.get(ref, 0) > 1 or (is_received and ref not in applied):
            found.append(f"I13: {ref} was applied {applied.get(ref, 0)} times, heard of: {is_received}")
        granted[user] += points if ref in applied else 0
    for user, had in granted.items():
        ended = world.database.poll("SELECT status, points_cost FROM tasks WHERE user_id = ?", user)
        spent = sum(cost for status, cost in ended if status == "completed")
        rows = world.database.poll(
            "SELECT available + expired, held, spent, granted FROM points_accounts WHERE user_id = ?", user
        )
        if rows != [(had - spent, 0, spent, had)]:
            found.append(f"I1: user {user} has {rows}; granted {had}, spent {spent}")
    for task_no, cost, opened, settled, refunded, status in world.database.poll(_ENTRIES):
        want = (1, int(status == "completed"), int(status == "failed")) if cost else (0, 0, 0)
        if (opened, settled, refunded) != want:
            found.append(f"I4: {task_no} {status}: {opened} deductions, {settled} settled, {refunded} refunded")
    return found


def _results(world: "World") -> list[str]:
    import json

    found = []
    for task_no, status, results in world.database.poll("SELECT task_no, status, results FROM tasks"):
        keys = [one["key"] for one in json.loads(results)] if results else []
        if (status == "completed") != bool(keys) or not set(keys) <= world.cloud.stored:
            found.append(f"I14: {task_no} is {status} with {keys}")
    return found


_ENTRIES = """
    SELECT t.task_no, t.points_cost, COALESCE(SUM(l.kind = 'deduct'), 0), COALESCE(SUM(l.kind = 'settle'), 0),
           COALESCE(SUM(l.kind = 'refund'), 0), t.status
    FROM tasks t LEFT JOIN points_ledger l ON l.task_id = t.id WHERE t.step = 'done' GROUP BY t.id
"""
