"""`/user/auth/totp/...`: a second factor for the log-in, by codes of an authenticator app."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import ConfigDict, Field

from app.accounts.log_in import totp
from app.accounts.log_in.sessions import require_own_log_in
from app.api.access.callers import Access, RequestContext
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema, StrictBody
from app.errors import Forbidden

router = APIRouter(prefix="/user/auth/totp", route_class=DirectRoute, tags=["账户"])

ChangeAccess = Annotated[RequestContext, Depends(Access(scope="account", limit="second-factor"))]


class CodeBody(StrictBody):
    """A code of the authenticator app."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "123456"}]})

    code: Annotated[
        str,
        Field(min_length=1, max_length=totp.MAX_CODE_LENGTH, pattern=r"^[^\x00]*$", examples=["123456"]),
    ]


class EnrolResponse(Schema):
    """The secret of an enrolment that a code has still to confirm."""

    secret: str = Field(description="密钥，手动输入验证器应用时使用")
    otpauthUrl: str = Field(description="otpauth:// 链接，做成二维码用验证器应用扫描")


class RecoveryCodesResponse(Schema):
    """Codes for users who have lost their app. Each is used once, and they are shown only now."""

    recoveryCodes: list[str]


@router.post("/enrol", summary="获取动态验证码的密钥，确认后生效")
async def enrol(context: ChangeAccess) -> Envelope[EnrolResponse]:
    """In production the enrolment of an admin gives rights, so somebody with only the password must not begin it."""
    settings = context.runtime.settings
    require_own_log_in(settings)
    if context.caller.role == "admin" and settings.environment == "production":
        raise Forbidden("管理员的动态验证码由平台方设置")
    made = await totp.begin_enrolment(context.runtime.database, context.user_id)
    return Envelope(data=EnrolResponse(secret=made.secret, otpauthUrl=made.url))


@router.post("/confirm", summary="用第一个验证码启用动态验证码，返回恢复码")
async def confirm(body: CodeBody, context: ChangeAccess) -> Envelope[RecoveryCodesResponse]:
    require_own_log_in(context.runtime.settings)
    codes = await totp.confirm_enrolment(context.runtime.database, context.user_id, body.code)
    return Envelope(data=RecoveryCodesResponse(recoveryCodes=codes))


@router.post("/disable", summary="停用动态验证码，须提供验证码或恢复码")
async def disable(body: CodeBody, context: ChangeAccess) -> Envelope[None]:
    require_own_log_in(context.runtime.settings)
    await totp.disable(context.runtime.database, context.user_id, body.code)
    return Envelope(data=None)
