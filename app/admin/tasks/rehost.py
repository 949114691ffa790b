"""Stores the results of an ended task once more, from the provider's URLs.

The books decide what is safe. A completed task was paid for: where its files are lost, they are stored again. A failed
task was refunded, and the ledger closes a task once, so it can never become a completed one: it would be a work for
free. An admin may give its results away nevertheless (`gives_away`): then they are stored, and the answer and the audit
row name their URLs, but the task stays failed and refunded, as its owner was told.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

from app.admin.actions import Action, ActionResult, Admin, Change, find_repeated, perform
from app.admin.tasks.changes import change_task, lock_task
from app.admin.tasks.search import get_task_record
from app.database import Connection, utc_now
from app.engine.finish import append_history
from app.engine.state import ClaimedTask, UpstreamState, boottime
from app.engine.steps.rehost import rehost_results
from app.engine.transitions import Complete, Fail
from app.errors import ActionConflict, RateLimited, TaskFailure, Unavailable
from app.runtime import Runtime
from app.storage import StorageError

REHOST_SECONDS = 120.0
"""A request takes no longer. A later one may go on."""
MAX_AT_ONCE = 2
_running: set[str] = set()
"""The tasks whose results this process stores."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """The results as the column `results` holds them, and the state with the URLs that they came from."""

    results: list[dict[str, Any]]
    upstream_state: UpstreamState


async def rehost_again(
    runtime: Runtime, admin: Admin, task_no: str, *, gives_away: bool, reason: str, ref: str | None
) -> ActionResult:
    """Downloads and stores the results of a task, before the transaction that records it.

    Raises NotFound, ActionConflict where the task's state or the provider does not allow it, RateLimited while others
    run, and Unavailable where the storage fails or the download takes too long.
    """
    action = Action("task.rehost", "task", task_no, {"givesAway": gives_away}, reason, ref)
    repeated = await find_repeated(runtime.database, action)
    if repeated is not None:
        return repeated
    row = await get_task_record(runtime.database, task_no)
    await _check_state(runtime, row, gives_away=gives_away)
    stored = await _store_bounded(runtime, row)

    async def change(connection: Connection) -> Change:
        return await _write(runtime, connection, row, stored, reason)

    try:
        result = await perform(runtime.database, admin, action, change)
    except ActionConflict:
        await _discard_if_erased(runtime, task_no, stored)
        raise
    if result.applied:
        runtime.pubsub.publish(row["user_id"], task_no)
    return result


async def _check_state(runtime: Runtime, row: Mapping[str, Any], *, gives_away: bool) -> None:
    if row["erased_at"] is not None:
        raise ActionConflict("任务的内容已删除")
    if row["status"] == "completed":
        if gives_away:
            raise ActionConflict("任务已完成并已扣费，无需 givesAway")
        if not await _is_file_missing(runtime, row["results"]):
            raise ActionConflict("任务的文件都在，无需重新保存")
    elif row["error_code"] != TaskFailure.RESULT_LOST.name:
        raise ActionConflict("只能重新保存已完成的任务，或因 RESULT_LOST 失败的任务")
    elif not gives_away:
        raise ActionConflict("积分已退还，任务不会变为完成；确认免费赠送作品时请设置 givesAway 为 true")


async def _is_file_missing(runtime: Runtime, results: list[dict[str, Any]]) -> bool:
    try:
        return not all([await runtime.store.exists(key) for key in _keys(results)])
    except StorageError as error:
        raise Unavailable("存储暂时不可用，请稍后重试") from error


def _keys(results: list[dict[str, Any]]) -> list[str]:
    return [one[name] for one in results for name in ("key", "thumbnailKey") if name in one]


async def _discard_if_erased(runtime: Runtime, task_no: str, stored: _Stored) -> None:
    """Its owner erased the task in the meantime: the files must not come back."""
    if (await get_task_record(runtime.database, task_no))["erased_at"] is None:
        return
    with suppress(StorageError):
        for key in _keys(stored.results):
            await runtime.store.delete(key)


async def _store_bounded(runtime: Runtime, row: Mapping[str, Any]) -> _Stored:
    task_no = str(row["task_no"])
    if task_no in _running or len(_running) >= MAX_AT_ONCE:
        raise RateLimited("正在重新保存其他任务，请稍后再试", retry_after_seconds=10)
    _running.add(task_no)
    try:
        async with asyncio.timeout(REHOST_SECONDS):
            return await _store(runtime, row)
    except TimeoutError:
        raise Unavailable(f"未能在 {REHOST_SECONDS:.0f} 秒内取回结果，请稍后重试") from None
    finally:
        _running.discard(task_no)


async def _store(runtime: Runtime, row: Mapping[str, Any]) -> _Stored:
    """Stores the results: from the known URLs, else from fresh ones that the provider answers to a poll."""
    task, note = _as_claimed(row), "no result URL is known"
    for is_fresh in (False, True):
        urls = await _fresh_urls(runtime, task) if is_fresh else task.upstream_state.urls
        if not urls:
            continue
        task.upstream_state = replace(task.upstream_state, urls=urls)
        decision = await rehost_results(runtime, task)
        if isinstance(decision, Complete):
            return _Stored(decision.results, task.upstream_state)
        note = decision.note if isinstance(decision, Fail) else note
        if note.startswith("storage:"):
            raise Unavailable("存储暂时不可用，请稍后重试")
    raise ActionConflict(f"SEE2AI 的结果已无法取回: {note[:300]}")


async def _fresh_urls(runtime: Runtime, task: ClaimedTask) -> tuple[str, ...]:
    """A poll is free. The breaker learns from its answer."""
    action = runtime.actions.get(task.action)
    if action is None or not task.upstream_task_id or not action.status_path:
        return ()
    breaker = runtime.breakers[action.provider]
    async with breaker.call(is_free=True, waits=False) as call:
        result = await runtime.upstreams[action.provider].poll(action, task.upstream_task_id)
        return (await breaker.record_result(call, result)).urls


def _as_claimed(row: Mapping[str, Any]) -> ClaimedTask:
    """The ended task as the step `rehost` takes one. Its deadline has passed, so the first error decides."""
    columns = {one.name: row[one.name] for one in fields(ClaimedTask) if one.name in row}
    columns["deadline_at"] = row["created_at"]
    columns["upstream_state"] = UpstreamState.from_json(row["upstream_state"])
    return ClaimedTask(**columns, now=row["updated_at"], claimed_at=boottime(), held_until=boottime())


async def _write(
    runtime: Runtime, connection: Connection, known: Mapping[str, Any], stored: _Stored, reason: str
) -> Change:
    """The used URLs stay with the task: whoever erases a failed task learns from them which files it has."""
    row = await lock_task(connection, known["task_no"])
    if row.version != known["version"]:
        raise ActionConflict("任务刚刚被其他操作修改，请重新查询")
    history = append_history(row.history, row.step, f"results stored again by an admin: {reason}")
    columns: dict[str, Any] = {"history": history, "upstream_state": stored.upstream_state.to_json()}
    if row.status == "completed":
        columns |= {"results": stored.results, "updated_at": utc_now()}
    await change_task(connection, row, **columns)
    before = [runtime.store.public_url(one["key"]) for one in row.results or []]
    after = [runtime.store.public_url(one["key"]) for one in stored.results]
    return Change({"status": row.status, "resultUrls": before}, {"status": row.status, "resultUrls": after})
