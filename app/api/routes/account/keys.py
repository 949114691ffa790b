"""`/user/keys`: the API keys of a user. Only a JWT may call it: a key with caps must not make one without."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, Path, Query
from pydantic import ConfigDict, Field

from app.accounts.keys import user_keys
from app.accounts.keys.addresses import MAX_ADDRESS_LENGTH, MAX_ADDRESSES, normalize_addresses
from app.accounts.keys.budgets import cap_columns, end_user_caps, key_caps
from app.accounts.keys.caps import MONTH_LENGTH, Caps, local_day
from app.accounts.keys.user_keys import MAX_NAME_LENGTH, MAX_OVERLAP_HOURS, KeyRow, NewKey
from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Page, Schema, StrictBody, paged
from app.catalog.models import list_models
from app.datetimes import format_local, parse_datetime
from app.errors import InvalidParameter
from app.points.ledger import MAX_POINTS
from app.runtime import Runtime

router = APIRouter(prefix="/user/keys", route_class=DirectRoute, tags=["API 密钥"])

ReadAccess = Annotated[RequestContext, Depends(Access(scope="account", limit="read"))]
ChangeAccess = Annotated[RequestContext, Depends(Access(scope="account", limit="key-change"))]
Id = Annotated[int, Path(ge=1, le=2**53)]
Scope = Literal["tasks:submit", "tasks:read", "points:read", "files:write", "webhooks"]
ALL_SCOPES: list[Scope] = [*get_args(Scope)]
MAX_MODELS = 100
MAX_TASKS_CAP = 1_000_000
NO_NUL = r"^[^\x00]*$"

Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH, pattern=NO_NUL, examples=["shop"])]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=10, description="权限；默认全部")]
Models = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL)]],
    Field(min_length=1, max_length=MAX_MODELS, description="可用的模型；null 为不限"),
]
Addresses = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_ADDRESS_LENGTH)]],
    Field(
        min_length=1,
        max_length=MAX_ADDRESSES,
        description="可从哪些地址或网段调用；null 为不限",
        examples=[["203.0.113.7", "10.0.0.0/8"]],
    ),
]
ExpireTime = Annotated[
    str, Field(max_length=40, description="ISO 时间；null 为不过期", examples=["2030-01-01T00:00:00"])
]
Points = Annotated[int | None, Field(ge=0, le=MAX_POINTS)]


class CapsBody(StrictBody):
    """Caps. In a change, a missing field stays unchanged; null removes the cap."""

    daily: Annotated[Points, Field(description="每日积分上限")] = None
    monthly: Annotated[Points, Field(description="每月积分上限")] = None
    total: Annotated[Points, Field(description="累计积分上限")] = None
    maxTasks: Annotated[int | None, Field(ge=0, le=MAX_TASKS_CAP, description="同时进行的任务数上限")] = None

    def to_caps(self) -> Caps:
        return Caps(self.daily, self.monthly, self.total, self.maxTasks)

    def changes(self, prefix: str) -> dict[str, int | None]:
        """The columns of the caps that the caller wrote."""
        names = {"daily": "daily_cap", "monthly": "monthly_cap", "total": "total_cap", "maxTasks": "max_tasks"}
        return {prefix + names[name]: getattr(self, name) for name in self.model_fields_set}


class NewKeyBody(StrictBody):
    """A new key. Unknown fields are refused: a misspelt limit would be none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "小程序", "caps": {"daily": 1000}}]})

    name: Name = ""
    scopes: Scopes = ALL_SCOPES
    models: Models | None = None
    addresses: Addresses | None = None
    expireTime: ExpireTime | None = None
    caps: Annotated[CapsBody, Field(description="该密钥的额度")] = CapsBody()
    endUserCaps: Annotated[CapsBody, Field(description="每个 endUser 各自的额度")] = CapsBody()


class KeyChange(StrictBody):
    """Changes of a key. A missing field stays unchanged. Null removes the bound."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "小程序", "caps": {"daily": 2000}}]})

    name: Name = ""
    scopes: Scopes = ALL_SCOPES
    models: Models | None = None
    addresses: Addresses | None = None
    expireTime: ExpireTime | None = None
    caps: CapsBody | None = None
    endUserCaps: CapsBody | None = None


class RotationBody(StrictBody):
    """How long the old key stays valid."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlapHours": 24}]})

    overlapHours: Annotated[
        int, Field(ge=0, le=MAX_OVERLAP_HOURS, description="旧密钥继续有效的小时数；0 立即失效")
    ] = 24


class CapsResponse(Schema):
    """The caps of a key or of each of its end users; null where there is none."""

    daily: int | None
    monthly: int | None
    total: int | None
    maxTasks: int | None


class SpentResponse(Schema):
    """The points that the tasks of a key took, without refunds. Days and months are local."""

    today: int
    thisMonth: int
    total: int


class KeyResponse(Schema):
    """An API key. The key itself is shown once, when it is created. Keys that replace each other share one budget."""

    id: int
    prefix: str = Field(description="密钥的前 10 个字符")
    name: str
    status: str = Field(description="active, expired, revoked")
    scopes: list[str]
    models: list[str] | None
    addresses: list[str] | None
    caps: CapsResponse
    endUserCaps: CapsResponse
    spent: SpentResponse
    runningTasks: int
    createTime: str
    expireTime: str | None
    lastUseTime: str | None = Field(description="精确到一分钟")
    revokeTime: str | None


class NewKeyResponse(KeyResponse):
    """A new key. No other response shows `apiKey`."""

    apiKey: str


class RotationResponse(NewKeyResponse):
    """The new key, and the one that it replaces."""

    previous: KeyResponse


@router.get("", summary="API 密钥列表，最新的在前")
async def list_(
    context: ReadAccess,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 10,
    with_revoked: Annotated[bool, Query(alias="withRevoked", description="true 也列出已吊销的")] = False,
) -> Envelope[Page[KeyResponse]]:
    runtime = context.runtime
    rows, total = await user_keys.list_keys(
        runtime.database, context.user_id, with_revoked=with_revoked, page=page, size=size
    )
    records = [KeyResponse(**view_key(runtime, row)) for row in rows]
    return paged(records, total, page, size)


@router.post("", summary="创建 API 密钥，仅此时返回全文")
async def create(body: NewKeyBody, context: ChangeAccess) -> Envelope[NewKeyResponse]:
    runtime = context.runtime
    await _check_models(runtime, body.models)
    new = NewKey(
        name=body.name,
        scopes=tuple(dict.fromkeys(body.scopes)),
        models=body.models and list(dict.fromkeys(body.models)),
        addresses=body.addresses and normalize_addresses("addresses", body.addresses),
        expires_at=parse_datetime("expireTime", body.expireTime, runtime.settings.zone),
        caps=body.caps.to_caps(),
        end_user_caps=body.endUserCaps.to_caps(),
    )
    api_key, row = await user_keys.create_key(runtime.database, context.user_id, new)
    return Envelope(data=NewKeyResponse(**view_key(runtime, row), apiKey=api_key))


@router.get("/{key_id}", summary="查询 API 密钥")
async def get(key_id: Id, context: ReadAccess) -> Envelope[KeyResponse]:
    row = await user_keys.get_key(context.runtime.database, context.user_id, key_id)
    return Envelope(data=KeyResponse(**view_key(context.runtime, row)))


@router.post("/{key_id}", summary="修改 API 密钥的名称、权限与额度")
async def change(key_id: Id, body: KeyChange, context: ChangeAccess) -> Envelope[KeyResponse]:
    runtime = context.runtime
    columns = await _changed_columns(runtime, context.user_id, key_id, body)
    caps: dict[str, int | None] = {}
    for name, prefix in (("caps", ""), ("endUserCaps", "end_user_")):
        if name in body.model_fields_set:
            written: CapsBody | None = getattr(body, name)
            caps |= cap_columns(Caps(), prefix) if written is None else written.changes(prefix)
    row = await user_keys.change_key(runtime.database, context.user_id, key_id, columns, caps)
    return Envelope(data=KeyResponse(**view_key(runtime, row)))


@router.post("/{key_id}/rotate", summary="更换 API 密钥，旧密钥在重叠期内仍有效，两者共用额度")
async def rotate(key_id: Id, body: RotationBody, context: ChangeAccess) -> Envelope[RotationResponse]:
    runtime = context.runtime
    api_key, row, old = await user_keys.rotate_key(runtime.database, context.user_id, key_id, body.overlapHours)
    previous = KeyResponse(**view_key(runtime, old))
    return Envelope(data=RotationResponse(**view_key(runtime, row), apiKey=api_key, previous=previous))


@router.post("/{key_id}/revoke", summary="吊销 API 密钥，立即生效")
async def revoke(key_id: Id, context: ChangeAccess) -> Envelope[KeyResponse]:
    row = await user_keys.revoke_key(context.runtime.database, context.user_id, key_id)
    return Envelope(data=KeyResponse(**view_key(context.runtime, row)))


async def _changed_columns(runtime: Runtime, user_id: int, key_id: int, body: KeyChange) -> dict[str, Any]:
    """The columns of the fields that the caller wrote. Raises InvalidParameter."""
    columns: dict[str, Any] = {}
    written = body.model_fields_set
    if "name" in written:
        columns["name"] = body.name
    if "scopes" in written:
        columns["scopes"] = list(dict.fromkeys(body.scopes))
    if "models" in written:
        known = (await user_keys.get_key(runtime.database, user_id, key_id)).models
        await _check_models(runtime, body.models, known=known or ())
        columns["models"] = body.models and list(dict.fromkeys(body.models))
    if "addresses" in written:
        columns["addresses"] = body.addresses and normalize_addresses("addresses", body.addresses)
    if "expireTime" in written:
        columns["expires_at"] = parse_datetime("expireTime", body.expireTime, runtime.settings.zone)
    return columns


async def _check_models(runtime: Runtime, names: list[str] | None, *, known: Any = ()) -> None:
    """Raises InvalidParameter for a model that is not on sale. `known` are those that the key has already."""
    unknown = set(names or ()) - set(known)
    if unknown and (unknown := unknown - {model.model_name for model in await list_models(runtime.database)}):
        raise InvalidParameter("models", f"没有模型 {min(unknown)}")


def view_key(runtime: Runtime, row: KeyRow) -> dict[str, Any]:
    zone, today = runtime.settings.zone, local_day(row.now, runtime.settings.zone)
    return {
        "id": row.id,
        "prefix": row.prefix,
        "name": row.name,
        "status": _status(row),
        "scopes": row.scopes,
        "models": row.models,
        "addresses": row.addresses,
        "caps": _view_caps(key_caps(row)),
        "endUserCaps": _view_caps(end_user_caps(row)),
        "spent": {
            "today": row.spent_today if (row.day or "") >= today else 0,
            "thisMonth": row.spent_this_month if (row.day or "")[:MONTH_LENGTH] >= today[:MONTH_LENGTH] else 0,
            "total": row.spent_total or 0,
        },
        "runningTasks": row.running_tasks or 0,
        "createTime": format_local(row.created_at, zone),
        "expireTime": format_local(row.expires_at, zone),
        "lastUseTime": format_local(row.last_used_at, zone),
        "revokeTime": format_local(row.revoked_at, zone),
    }


def _view_caps(caps: Caps) -> Mapping[str, int | None]:
    return {"daily": caps.daily, "monthly": caps.monthly, "total": caps.total, "maxTasks": caps.max_tasks}


def _status(row: KeyRow) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= row.now else "active"
