"""`/user/webhooks/...`: signing secrets, endpoints, the delivery log, and a test message."""

import asyncio
import secrets
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import ConfigDict, Field

from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import (
    DeliveryResponse,
    EndpointResponse,
    Envelope,
    NewEndpointResponse,
    Page,
    SecretResponse,
    StrictBody,
    WebhookTestResponse,
    paged,
)
from app.datetimes import format_local
from app.egress import MAX_URL_LENGTH
from app.errors import InvalidParameter
from app.jobs.webhook_payload import EVENT_TYPES, message_id
from app.runtime import Runtime
from app.webhooks.deliveries import list_deliveries, replay
from app.webhooks.endpoints import (
    change_endpoint,
    create_endpoint,
    delete_endpoint,
    get_endpoint,
    list_endpoints,
    rotate_endpoint,
    validate_target,
)
from app.webhooks.outbox import CALLBACK
from app.webhooks.sender import send
from app.webhooks.signing import write_message
from app.webhooks.signing_secrets import SigningSecrets, get_secrets, rotate_secrets

router = APIRouter(prefix="/user/webhooks", route_class=DirectRoute, tags=["推送"])

ReadAccess = Annotated[RequestContext, Depends(Access(scope="webhooks", limit="read"))]
ChangeAccess = Annotated[RequestContext, Depends(Access(scope="webhooks", limit="webhook-change"))]
ReplayAccess = Annotated[RequestContext, Depends(Access(scope="webhooks", limit="webhook-replay"))]
TestAccess = Annotated[RequestContext, Depends(Access(scope="webhooks", limit="webhook-test"))]
Id = Annotated[int, Path(ge=1, le=2**53)]
Event = Literal["task.completed", "task.failed"]
MIN_FAILURE_SECONDS = 2.0
"""A failed connection is answered no sooner, so that the duration does not tell why it failed."""


class EndpointBody(StrictBody):
    """A new endpoint. Unknown fields are refused: a misspelt field would be a lost setting."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"url": "https://example.com/hook", "events": ["task.completed"]}]}
    )

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH)]
    events: Annotated[list[Event], Field(min_length=1, max_length=10)] = ["task.completed", "task.failed"]  # noqa: RUF012


class EndpointChange(StrictBody):
    """Changes of an endpoint. A field that is null or missing stays unchanged."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": True}]})

    url: Annotated[str | None, Field(min_length=1, max_length=MAX_URL_LENGTH)] = None
    events: Annotated[list[Event] | None, Field(min_length=1, max_length=10)] = None
    enabled: Annotated[bool | None, Field(description="true 重新启用，false 停用")] = None


class TestBody(StrictBody):
    """A test's receiver: exactly one of the two fields."""

    __test__ = False  # else pytest collects the class because of its name

    model_config = ConfigDict(json_schema_extra={"examples": [{"endpointId": 1}]})

    url: Annotated[str | None, Field(max_length=MAX_URL_LENGTH)] = None
    endpointId: Annotated[int | None, Field(ge=1, le=2**53)] = None


@router.get("/secret", summary="查询 callbackUrl 的签名密钥")
async def secret(context: ReadAccess) -> Envelope[SecretResponse]:
    return _secret(context.runtime, await get_secrets(context.runtime.database, context.user_id))


@router.post("/secret/rotate", summary="更换签名密钥，旧密钥继续签名 24 小时")
async def rotate(context: ChangeAccess) -> Envelope[SecretResponse]:
    return _secret(context.runtime, await rotate_secrets(context.runtime.database, context.user_id))


@router.get("/endpoints", summary="推送端点列表")
async def endpoints(context: ReadAccess) -> Envelope[list[EndpointResponse]]:
    rows = await list_endpoints(context.runtime.database, context.user_id)
    return Envelope(data=[EndpointResponse(**endpoint_view(context.runtime, row)) for row in rows])


@router.post("/endpoints", summary="添加推送端点，密钥仅此时返回")
async def create(body: EndpointBody, context: ChangeAccess) -> Envelope[NewEndpointResponse]:
    row = await create_endpoint(context.runtime, context.user_id, body.url, list(dict.fromkeys(body.events)))
    return Envelope(data=NewEndpointResponse(**endpoint_view(context.runtime, row), secret=row["secret"]))


@router.post("/endpoints/{endpoint_id}", summary="修改、停用或重新启用推送端点")
async def change(endpoint_id: Id, body: EndpointChange, context: ChangeAccess) -> Envelope[EndpointResponse]:
    row = await change_endpoint(
        context.runtime,
        context.user_id,
        endpoint_id,
        url=body.url,
        events=None if body.events is None else list(dict.fromkeys(body.events)),
        enabled=body.enabled,
    )
    return Envelope(data=EndpointResponse(**endpoint_view(context.runtime, row)))


@router.post("/endpoints/{endpoint_id}/rotate", summary="更换推送端点的密钥，旧密钥继续签名 24 小时")
async def rotate_endpoint_secret(endpoint_id: Id, context: ChangeAccess) -> Envelope[SecretResponse]:
    return _secret(context.runtime, await rotate_endpoint(context.runtime.database, context.user_id, endpoint_id))


@router.post("/endpoints/{endpoint_id}/delete", summary="删除推送端点")
async def delete(endpoint_id: Id, context: ChangeAccess) -> Envelope[None]:
    await delete_endpoint(context.runtime.database, context.user_id, endpoint_id)
    return Envelope(data=None)


@router.get("/deliveries", summary="推送记录，最新的在前，保留 30 天")
async def deliveries(
    context: ReadAccess,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    status: Annotated[Literal["pending", "delivered", "failed", ""] | None, Query()] = None,
    task_no: Annotated[str | None, Query(alias="taskNo", max_length=40)] = None,
) -> Envelope[Page[DeliveryResponse]]:
    rows, total = await list_deliveries(
        context.runtime.database, context.user_id, status=status or None, task_no=task_no or None, page=page, size=size
    )
    responses = [delivery_view(context.runtime, row) for row in rows]
    return paged(responses, total, page, size)


@router.post("/deliveries/{delivery_id}/replay", summary="重新推送")
async def replay_delivery(delivery_id: Id, context: ReplayAccess) -> Envelope[DeliveryResponse]:
    return Envelope(
        data=delivery_view(context.runtime, await replay(context.runtime.database, context.user_id, delivery_id))
    )


@router.post("/test", summary="立即发送一条 webhook.test 并返回结果")
async def test(body: TestBody, context: TestAccess) -> Envelope[WebhookTestResponse]:
    """Sends to `url`, signed with the user's secret, or to an endpoint, signed with the endpoint's secret."""
    if (body.url is None) == (body.endpointId is None):
        raise InvalidParameter("url", "与 endpointId 须且只能填写一个")
    runtime, database = context.runtime, context.runtime.database
    if body.endpointId is not None:
        url, signing_secrets = await get_endpoint(database, context.user_id, body.endpointId)
    else:
        url = validate_target("url", str(body.url), runtime.settings.egress_allowed)
        signing_secrets = await get_secrets(database, context.user_id)
    message = write_message(f"msg_test_{secrets.token_hex(12)}", "webhook.test", datetime.now(UTC), {"test": True})
    started_at = asyncio.get_running_loop().time()
    outcome = await send(runtime.caller_egress, url, signing_secrets, message)
    if outcome.status is None:
        await asyncio.sleep(started_at + MIN_FAILURE_SECONDS - asyncio.get_running_loop().time())
    return Envelope(
        data=WebhookTestResponse(
            delivered=outcome.is_delivered,
            statusCode=outcome.status,
            durationMs=outcome.duration_ms,
            outcome=outcome.code,
        )
    )


def _secret(runtime: Runtime, signing_secrets: SigningSecrets) -> Envelope[SecretResponse]:
    expires = format_local(signing_secrets.previous_until, runtime.settings.zone)
    return Envelope(data=SecretResponse(secret=signing_secrets.secret, previousExpireTime=expires))


def endpoint_view(runtime: Runtime, row: dict[str, Any]) -> dict[str, Any]:
    zone = runtime.settings.zone
    return {
        "id": row["id"],
        "url": row["url"],
        "events": row["events"],
        "enabled": row["disabled_at"] is None,
        "disabledReason": row["disabled_reason"],
        "disabledTime": format_local(row["disabled_at"], zone),
        "createTime": str(format_local(row["created_at"], zone)),
    }


def delivery_view(runtime: Runtime, row: dict[str, Any]) -> DeliveryResponse:
    zone = runtime.settings.zone
    return DeliveryResponse(
        id=row["id"],
        messageId=message_id(row["task_no"]),
        type=EVENT_TYPES[row["task_status"]],
        taskNo=row["task_no"],
        endpointId=None if row["endpoint_id"] == CALLBACK else row["endpoint_id"],
        url=row["url"],
        status=row["status"],
        attempts=row["attempts"],
        nextAttemptTime=format_local(row["next_run_at"], zone),
        outcome=row["outcome"],
        statusCode=row["status_code"],
        durationMs=row["duration_ms"],
        createTime=str(format_local(row["created_at"], zone)),
        deliveredTime=format_local(row["delivered_at"], zone),
    )
