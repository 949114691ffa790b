"""`/user/auth/...` and `/user/info`: registration, log-in, refresh, log-out, passwords, and the caller's own account.

A session is an access token and a refresh token. The refresh token is in the JSON, or in a cookie (`session_cookies`).
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from app.accounts.authentication import Caller
from app.accounts.log_in import sessions
from app.accounts.log_in.passwords import MAX_LENGTH as MAX_PASSWORD_LENGTH
from app.accounts.log_in.passwords import MIN_LENGTH as MIN_PASSWORD_LENGTH
from app.accounts.log_in.refresh_tokens import MAX_TOKEN_LENGTH, find_token
from app.accounts.log_in.sessions import Profile, Session, require_own_log_in
from app.accounts.log_in.totp import MAX_CODE_LENGTH
from app.accounts.log_in.usernames import MAX_LENGTH as MAX_USERNAME_LENGTH
from app.accounts.log_in.usernames import username_key
from app.api.access.callers import OWN_SCOPES, Access, RequestContext
from app.api.access.guests import Guest, GuestContext, client_of
from app.api.access.session_cookies import delete_cookie, read_cookie, require_origin, set_cookie
from app.api.routing import DirectRoute
from app.api.schemas import Envelope, Schema, StrictBody
from app.database import Connection
from app.datetimes import format_local
from app.errors import Unauthenticated
from app.points import ledger
from app.runtime import Runtime

router = APIRouter(prefix="/user", route_class=DirectRoute, tags=["账户"])

NO_NUL = r"^[^\x00]*$"
Kind = Annotated[
    Literal["token", "cookie"],
    Field(description="token：刷新令牌在响应里；cookie：刷新令牌在 HttpOnly Cookie 里，用于网页"),
]
Username = Annotated[str, Field(min_length=1, max_length=MAX_USERNAME_LENGTH, pattern=NO_NUL, examples=["alice"])]
Password = Annotated[str, Field(min_length=1, max_length=MAX_PASSWORD_LENGTH, pattern=NO_NUL)]
NewPassword = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_PASSWORD_LENGTH,
        pattern=NO_NUL,
        description=f"{MIN_PASSWORD_LENGTH} 到 {MAX_PASSWORD_LENGTH} 个字符，不能是常见密码",
    ),
]
SIGNUP_REMARK = "注册赠送"


class RegisterBody(StrictBody):
    """A new user. Unknown fields are refused."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "xiaoming", "password": "correct horse battery"}]}
    )

    username: Username
    password: NewPassword
    session: Kind = "token"


class LogInBody(StrictBody):
    """A username, or a user's id as text, with the password."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "xiaoming", "password": "correct horse battery"}]}
    )

    username: Username
    password: Password
    code: Annotated[
        str | None,
        Field(min_length=1, max_length=MAX_CODE_LENGTH, pattern=NO_NUL, description="动态验证码或恢复码，启用后必填"),
    ] = None
    session: Kind = "token"


class RefreshBody(StrictBody):
    """A refresh token. Without one the cookie counts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"refreshToken": "REFRESH_TOKEN"}]})

    refreshToken: Annotated[
        str | None,
        Field(min_length=1, max_length=MAX_TOKEN_LENGTH, pattern=NO_NUL, description="不填则使用 Cookie"),
    ] = None


class PasswordBody(StrictBody):
    """The old password and the new one."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"oldPassword": "correct horse battery", "newPassword": "staple battery horse"}]
        }
    )

    oldPassword: Password
    newPassword: NewPassword
    session: Kind = "token"


class UserResponse(Schema):
    """The caller's own account, and what the credential may do."""

    userId: int
    username: str | None
    role: str = Field(description="user, admin")
    createTime: str
    scopes: list[str] = Field(description="当前凭证的权限，如 tasks、points；account：管理账户；admin：管理员接口")
    hasPassword: bool
    totpEnabled: bool = Field(description="是否启用动态验证码")


class SessionResponse(Schema):
    """A session. `refreshToken` is null for a session by cookie."""

    accessToken: str = Field(description="放在 Authorization: Bearer 里")
    refreshToken: str | None = Field(description="用于 /user/auth/refresh，每个只能用一次；cookie 方式时为 null")
    expiresIn: int = Field(description="accessToken 的有效秒数")
    user: UserResponse


@router.post("/auth/register", summary="注册并登录")
async def register(
    body: RegisterBody,
    request: Request,
    response: Response,
    context: Annotated[GuestContext, Depends(Guest(limit="register"))],
) -> Envelope[SessionResponse]:
    runtime = context.runtime
    await _check_kind(request, runtime, body.session)
    await context.count("log-in-name", f"register:{username_key(body.username)}")
    points = runtime.settings.signup_points

    async def grant(connection: Connection, user_id: int) -> None:
        if points:
            ref = f"signup:{user_id}"
            await ledger.grant_in_transaction(connection, user_id=user_id, points=points, ref=ref, remark=SIGNUP_REMARK)

    session = await sessions.register(
        runtime.database,
        runtime.settings,
        username=body.username,
        password=body.password,
        client=context.client,
        is_cookie=body.session == "cookie",
        then=grant,
    )
    return await _answer(runtime, response, session)


@router.post("/auth/login", summary="登录")
async def log_in(
    body: LogInBody,
    request: Request,
    response: Response,
    context: Annotated[GuestContext, Depends(Guest(limit="log-in"))],
) -> Envelope[SessionResponse]:
    """Counts a wrong code for the user, because who sends one knows the password."""
    runtime = context.runtime
    await _check_kind(request, runtime, body.session)
    require_own_log_in(runtime.settings)
    await context.count("log-in-name", f"log-in:{username_key(body.username)}")
    user = await sessions.verify_log_in(runtime.database, body.username, body.password, context.client)
    if user.has_second_factor and body.code is not None:
        await context.rate_limiter.check("second-factor", user.id)
    session = await sessions.begin_session(
        runtime.database,
        runtime.settings,
        user,
        body.code,
        context.client,
        is_cookie=body.session == "cookie",
    )
    return await _answer(runtime, response, session)


@router.post("/auth/refresh", summary="用刷新令牌换取新的令牌")
async def refresh(
    body: RefreshBody,
    request: Request,
    response: Response,
    context: Annotated[GuestContext, Depends(Guest(limit="refresh"))],
) -> Envelope[SessionResponse]:
    runtime = context.runtime
    require_own_log_in(runtime.settings)
    token = body.refreshToken or read_cookie(request, runtime.settings)
    found = await find_token(runtime.database, token) if token else None
    if found is None or found.is_cookie == (body.refreshToken is not None):
        raise Unauthenticated
    await context.count("refresh", f"user:{found.user_id}")
    session = await sessions.refresh(runtime.database, runtime.settings, token, found, context.client)
    return await _answer(runtime, response, session)


@router.post("/auth/logout", summary="退出登录")
async def log_out(
    body: RefreshBody,
    request: Request,
    response: Response,
    context: Annotated[GuestContext, Depends(Guest(limit="refresh"))],
) -> Envelope[None]:
    """The answer is the same for a token that is unknown or has ended."""
    runtime = context.runtime
    require_own_log_in(runtime.settings)
    token = body.refreshToken or read_cookie(request, runtime.settings)
    if token:
        await sessions.log_out(runtime.database, token)
    if body.refreshToken is None:
        delete_cookie(response, runtime.settings)
    return Envelope(data=None)


@router.post("/auth/password", summary="修改密码，其他登录全部退出")
async def password(
    body: PasswordBody,
    request: Request,
    response: Response,
    context: Annotated[RequestContext, Depends(Access(scope="account", limit="password"))],
) -> Envelope[SessionResponse]:
    runtime = context.runtime
    await _check_kind(request, runtime, body.session)
    session = await sessions.change_password(
        runtime.database,
        runtime.settings,
        context.user_id,
        old=body.oldPassword,
        new=body.newPassword,
        client=client_of(request),
        is_cookie=body.session == "cookie",
    )
    runtime.pubsub.recheck(context.user_id)
    return await _answer(runtime, response, session)


@router.post("/auth/logout-all", summary="退出全部登录，所有令牌立即失效")
async def log_out_everywhere(
    response: Response,
    context: Annotated[RequestContext, Depends(Access(scope="account", limit="read"))],
) -> Envelope[None]:
    runtime = context.runtime
    await sessions.log_out_everywhere(runtime.database, context.user_id)
    runtime.pubsub.recheck(context.user_id)
    delete_cookie(response, runtime.settings)
    return Envelope(data=None)


@router.get("/info", summary="当前用户和凭证的权限")
async def info(
    context: Annotated[RequestContext, Depends(Access(scope=None, limit="read"))],
) -> Envelope[UserResponse]:
    profile = await sessions.get_profile(context.runtime.database, context.user_id)
    return Envelope(data=_user(context.runtime, profile, context.caller))


async def _check_kind(request: Request, runtime: Runtime, kind: str) -> None:
    if kind == "cookie":
        require_origin(request, runtime.settings)


async def _answer(runtime: Runtime, response: Response, session: Session) -> Envelope[SessionResponse]:
    """The session. A refresh token for a cookie is not in the JSON."""
    if session.is_cookie:
        set_cookie(response, runtime.settings, session.refresh_token)
    response.headers["Cache-Control"] = "no-store"
    profile = await sessions.get_profile(runtime.database, session.user_id)
    is_proven = profile.has_second_factor or runtime.settings.environment == "development"
    caller = Caller(profile.id, profile.role, lacks_second_factor=not is_proven)
    data = SessionResponse(
        accessToken=session.access_token,
        refreshToken=None if session.is_cookie else session.refresh_token,
        expiresIn=session.expires_in,
        user=_user(runtime, profile, caller),
    )
    return Envelope(data=data)


def _user(runtime: Runtime, profile: Profile, caller: Caller) -> UserResponse:
    is_admin = caller.role == "admin" and caller.has_scope("admin") and not caller.lacks_second_factor
    scopes = OWN_SCOPES if caller.key_id is None else tuple(one for one in caller.scopes if one != "admin")
    return UserResponse(
        userId=profile.id,
        username=profile.username,
        role=profile.role,
        createTime=str(format_local(profile.created_at, runtime.settings.zone)),
        scopes=[*scopes, "admin"] if is_admin else [*scopes],
        hasPassword=profile.has_password,
        totpEnabled=profile.has_second_factor,
    )
