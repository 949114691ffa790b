"""`/admin/tasks`: the tasks of all users, one task with its timeline, and what an admin changes by hand."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import ConfigDict, Field

from app.admin.actions import MAX_REASON_LENGTH, MAX_REF_LENGTH, ActionResult, Admin
from app.admin.tasks.changes import close_orphan, end_task
from app.admin.tasks.rehost import rehost_again
from app.admin.tasks.search import TaskFilters, get_task_record, search_tasks
from app.api.access.callers import RequestContext
from app.api.routes.admin.actions import AdminAccess
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema, StrictBody
from app.datetimes import format_local, parse_datetime
from app.engine.state import UpstreamState
from app.runtime import Runtime
from app.tasks.view import snippet

router = APIRouter(prefix="/admin/tasks", route_class=DirectRoute, tags=["管理"])

Status = Literal["created", "queued", "processing", "completed", "failed", ""]
Step = Literal["prepare", "submit", "submitting", "poll", "rehost", "done", ""]
NO_NUL = r"^[^\x00]*$"
Id = Annotated[int | None, Query(ge=1, le=2**63 - 1)]
Text = Annotated[str | None, Query(max_length=128, pattern=NO_NUL)]


class ChangeBody(StrictBody):
    """Why an admin changes a task. A request with a `ref` is done once, however often it is sent."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "用户申诉", "ref": "ticket-4711"}]})

    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON_LENGTH, pattern=NO_NUL)]
    ref: Annotated[
        str | None,
        Field(
            min_length=1, max_length=MAX_REF_LENGTH, pattern=NO_NUL, description="操作的唯一编号，同一编号只生效一次"
        ),
    ] = None


class EndBody(ChangeBody):
    """The end of a living task."""

    mayRunUpstream: Annotated[
        bool, Field(description="确认 SEE2AI 可能仍在运行并收费；任务正在提交或已被接受时必填，任务会标记为疑似孤儿")
    ] = False


class RehostBody(ChangeBody):
    """Results that are stored again."""

    givesAway: Annotated[
        bool, Field(description="失败任务的积分已退还：确认免费赠送作品。任务仍为失败，链接只在本接口返回")
    ] = False


class AdminTask(Schema):
    """A task of any user, as a list shows it."""

    taskNo: str
    userId: int
    keyId: int | None = Field(description="提交所用的 API 密钥；JWT 提交为 null")
    endUser: str | None
    modelName: str
    taskType: str
    status: str
    step: str = Field(description="prepare, submit, submitting, poll, rehost, done")
    progress: int
    promptSnippet: str
    pointsCost: int
    errorCode: str | None
    suspectedOrphan: bool = Field(description="积分已退还，但 SEE2AI 可能仍在运行")
    upstreamTaskId: str | None
    createTime: str
    updateTime: str
    completeTime: str | None


class AdminTaskList(Schema):
    """Tasks, newest first. `nextBefore` goes into `before` of the next request; null: all tasks were searched.

    A request searches a bounded number of tasks, so a list may be short, or empty, and still go on.
    """

    records: list[AdminTask]
    nextBefore: str | None


class HistoryLine(Schema):
    """One step of a task, with the text of SEE2AI where it has one."""

    time: str | None
    step: str
    note: str


class TaskAction(Schema):
    """What an admin did with the task. `adminId` is null for the command line."""

    id: int
    adminId: int | None
    action: str
    reason: str
    time: str


class AdminTaskDetail(AdminTask):
    """A task with everything that an operator needs. Texts of SEE2AI are for operators only."""

    prompt: str
    params: dict[str, Any]
    upstreamRequest: dict[str, Any] = Field(description="发给 SEE2AI 的请求体")
    attempts: int = Field(description="当前步骤连续失败的次数")
    crashes: int
    nextRunTime: str | None
    leaseTime: str | None
    deadlineTime: str
    waitReason: str = Field(description="任务为何等待")
    unknownState: str = Field(description="SEE2AI 最近一次返回的未知状态")
    upstreamUrls: list[str] = Field(description="SEE2AI 最近给出的结果链接，可能已过期")
    resultUrls: list[str]
    history: list[HistoryLine]
    errorMessage: str | None
    operatorNote: str | None
    callbackUrl: str | None
    eraseTime: str | None
    actions: list[TaskAction] = Field(description="管理员操作，最新的在前")


class TaskChange(Schema):
    """The task after a change. `applied` is false where an earlier request with this `ref` made it."""

    applied: bool
    resultUrls: list[str] = Field(description="重新保存的结果链接")
    task: AdminTaskDetail


@router.get("", summary="搜索所有用户的任务，最新的在前")
async def search(
    context: AdminAccess,
    before: Annotated[str | None, Query(max_length=40, description="上一页的 nextBefore")] = None,
    size: Annotated[int, Query(ge=1, le=100)] = 20,
    task_no: Annotated[str | None, Query(alias="taskNo", max_length=40)] = None,
    user_id: Annotated[Id, Query(alias="userId")] = None,
    key_id: Annotated[Id, Query(alias="keyId")] = None,
    end_user: Annotated[Text, Query(alias="endUser")] = None,
    status: Annotated[Status | None, Query()] = None,
    step: Annotated[Step | None, Query()] = None,
    model_name: Annotated[Text, Query(alias="modelName")] = None,
    error_code: Annotated[Text, Query(alias="errorCode")] = None,
    upstream_task_id: Annotated[Text, Query(alias="upstreamTaskId")] = None,
    suspected_orphan: Annotated[bool | None, Query(alias="suspectedOrphan")] = None,
    start_time: Annotated[str | None, Query(alias="startTime", max_length=40)] = None,
    end_time: Annotated[str | None, Query(alias="endTime", max_length=40)] = None,
) -> Envelope[AdminTaskList]:
    runtime, zone = context.runtime, context.runtime.settings.zone
    filters = TaskFilters(
        task_no=task_no or None,
        user_id=user_id,
        key_id=key_id,
        end_user=end_user or None,
        status=status or None,
        step=step or None,
        model_name=model_name or None,
        error_code=error_code or None,
        upstream_task_id=upstream_task_id or None,
        suspected_orphan=suspected_orphan,
        start=parse_datetime("startTime", start_time or None, zone),
        end=parse_datetime("endTime", end_time or None, zone),
    )
    found = await search_tasks(
        runtime.database, context.user_id, zone, runtime.actions, filters, before=before or None, size=size
    )
    records = [AdminTask(**_listed(runtime, row)) for row in found.rows]
    return Envelope(data=AdminTaskList(records=records, nextBefore=found.next_before))


@router.get("/{task_no}", summary="任一用户的任务，含每一步的记录")
async def get(task_no: str, context: AdminAccess) -> Envelope[AdminTaskDetail]:
    return Envelope(data=await _detail(context.runtime, task_no))


@router.post("/{task_no}/end", summary="终止进行中的任务并退还积分")
async def end(task_no: str, body: EndBody, context: AdminAccess, request: Request) -> Envelope[TaskChange]:
    runtime, may_run = context.runtime, body.mayRunUpstream
    result = await end_task(
        runtime, _admin(context, request), task_no, may_run_upstream=may_run, reason=body.reason, ref=body.ref
    )
    return await _changed(runtime, task_no, result)


@router.post("/{task_no}/rehost", summary="重新保存丢失的结果文件")
async def rehost(task_no: str, body: RehostBody, context: AdminAccess, request: Request) -> Envelope[TaskChange]:
    runtime = context.runtime
    result = await rehost_again(
        runtime, _admin(context, request), task_no, gives_away=body.givesAway, reason=body.reason, ref=body.ref
    )
    return await _changed(runtime, task_no, result)


@router.post("/{task_no}/close-orphan", summary="处理完毕疑似孤儿任务，reason 为处理说明")
async def close(task_no: str, body: ChangeBody, context: AdminAccess, request: Request) -> Envelope[TaskChange]:
    runtime = context.runtime
    result = await close_orphan(runtime, _admin(context, request), task_no, reason=body.reason, ref=body.ref)
    return await _changed(runtime, task_no, result)


def _admin(context: RequestContext, request: Request) -> Admin:
    return Admin(context.user_id, request.scope.get("request_id", ""))


async def _changed(runtime: Runtime, task_no: str, result: ActionResult) -> Envelope[TaskChange]:
    urls = [str(url) for url in result.after.get("resultUrls", [])]
    return Envelope(data=TaskChange(applied=result.applied, resultUrls=urls, task=await _detail(runtime, task_no)))


def _listed(runtime: Runtime, row: Mapping[str, Any]) -> dict[str, Any]:
    zone = runtime.settings.zone
    return {
        "taskNo": row["task_no"],
        "userId": row["user_id"],
        "keyId": row["key_id"],
        "endUser": row["end_user"],
        "modelName": row["model_name"],
        "taskType": row["task_type"],
        "status": row["status"],
        "step": row["step"],
        "progress": row["progress"],
        "promptSnippet": snippet(row["prompt"]),
        "pointsCost": row["points_cost"],
        "errorCode": row["error_code"],
        "suspectedOrphan": row["suspected_orphan"],
        "upstreamTaskId": row["upstream_task_id"],
        "createTime": str(format_local(row["created_at"], zone)),
        "updateTime": str(format_local(row["updated_at"], zone)),
        "completeTime": format_local(row["completed_at"], zone),
    }


async def _detail(runtime: Runtime, task_no: str) -> AdminTaskDetail:
    row, zone = await get_task_record(runtime.database, task_no), runtime.settings.zone
    state = UpstreamState.from_json(row["upstream_state"])
    return AdminTaskDetail(
        **_listed(runtime, row),
        prompt=row["prompt"],
        params=row["params"],
        upstreamRequest=row["upstream_request"],
        attempts=row["attempts"],
        crashes=row["crashes"],
        nextRunTime=format_local(row["next_run_at"], zone),
        leaseTime=format_local(row["lease_until"], zone),
        deadlineTime=str(format_local(row["deadline_at"], zone)),
        waitReason=state.note,
        unknownState=state.unknown_state,
        upstreamUrls=list(state.urls),
        resultUrls=[runtime.store.public_url(one["key"]) for one in row["results"] or []],
        history=[_history_line(runtime, line) for line in row["history"]],
        errorMessage=row["error_message"],
        operatorNote=row["operator_note"],
        callbackUrl=row["callback_url"],
        eraseTime=format_local(row["erased_at"], zone),
        actions=[
            TaskAction(
                id=done["id"],
                adminId=done["admin_id"],
                action=done["action"],
                reason=done["reason"],
                time=str(format_local(done["created_at"], zone)),
            )
            for done in row["actions"]
        ],
    )


def _history_line(runtime: Runtime, line: Mapping[str, Any]) -> HistoryLine:
    at = datetime.fromisoformat(line["at"]) if line.get("at") else None
    return HistoryLine(
        time=format_local(at, runtime.settings.zone), step=line.get("step", ""), note=line.get("note", "")
    )
