"""`DELETE /user/ai/tasks/{task_no}` and `POST /user/erase`: callers delete a work, or all that is theirs."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import ConfigDict, Field

from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema, StrictBody
from app.tasks.erasure import erase_task, erase_user

router = APIRouter(prefix="/user", route_class=DirectRoute, tags=["删除"])

TasksAccess = Annotated[RequestContext, Depends(Access(scope="tasks:submit", limit="submit"))]
OwnAccess = Annotated[RequestContext, Depends(Access(scope="account", limit="submit"))]


class ErasedTaskResponse(Schema):
    """The task is gone: its owner does not find it any more."""

    taskNo: str
    erased: bool = Field(description="总为 true；文件随后删除，通常在两分钟内")


@router.delete("/ai/tasks/{task_no}", summary="删除已结束的任务及其作品，不可恢复")
async def erase(task_no: str, context: TasksAccess) -> Envelope[ErasedTaskResponse]:
    """The ledger keeps its entries. A repeat is a 404, as for a task that never was."""
    await erase_task(context.runtime, context.user_id, task_no)
    return Envelope(data=ErasedTaskResponse(taskNo=task_no, erased=True))


class EraseBody(StrictBody):
    """Asks for the word, because nothing brings the works back."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"confirm": "ERASE"}]})

    confirm: Annotated[Literal["ERASE"], Field(description="须为 ERASE")]


class EraseResponse(Schema):
    """What is erased, and what follows by itself. The points stay on the account."""

    erasedTasks: int = Field(description="本次请求中删除的任务")
    runningTasks: int = Field(description="已交给生成服务、不能取消的任务，结束后自动删除")
    isComplete: bool = Field(description="false: 其余已结束的任务和上传的文件随后自动删除")
    balance: int = Field(description="留在账户中的积分，不会因删除数据而减少")
    held: int = Field(description="进行中的任务占用的积分")


@router.post("/erase", summary="删除本人的全部作品与数据，吊销全部凭证，不可恢复")
async def erase_all(body: EraseBody, context: OwnAccess) -> Envelope[EraseResponse]:
    """By JWT only: an API key may have leaked, and must not be able to destroy everything."""
    del body  # its model has confirmed
    done = await erase_user(context.runtime, context.user_id)
    return Envelope(
        data=EraseResponse(
            erasedTasks=done.erased,
            runningTasks=done.running,
            isComplete=done.is_complete,
            balance=done.balance.available,
            held=done.balance.held,
        )
    )
