"""Turns every error into the envelope, with a Chinese message and no internal details."""

import errno
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.api.schemas import error_body
from app.errors import GatewayError, Internal, InvalidParameter, MethodNotAllowed, NotFound, Unavailable

log = structlog.get_logger()

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})
"""Too many open files, a full disk, no memory: nothing that the caller or our code has done wrong."""
BY_STATUS: dict[int, type[GatewayError]] = {404: NotFound, 405: MethodNotAllowed}


def install_error_handlers(app: FastAPI) -> None:
    """For what FastAPI answers itself. Errors of a `DirectRoute` reach `RequestMiddleware`, which calls `on_error`."""
    for error_type in (GatewayError, RequestValidationError, HTTPException):
        app.add_exception_handler(error_type, on_error)
    app.add_exception_handler(Exception, on_unhandled)


async def on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, GatewayError):
        is_fault = type(error).status >= Internal.status and error.status != Unavailable.status
        return await on_unhandled(request, error) if is_fault else error_response(request, error)
    if isinstance(error, RequestValidationError):
        return error_response(request, InvalidParameter(*describe_validation_error(error.errors()[0])))
    if isinstance(error, HTTPException) and error.status_code in BY_STATUS:
        return error_response(request, BY_STATUS[error.status_code](), headers=dict(error.headers or {}))
    return await on_unhandled(request, error)


async def on_unhandled(request: Request, error: Exception) -> Response:
    if isinstance(error, OSError) and error.errno in EXHAUSTED:
        log.error("machine_exhausted", path=request.url.path, error=str(error))
        return error_response(request, Unavailable())
    log.error("request_failed", path=request.url.path, exc_info=error)
    return error_response(request, Internal())


def error_response(request: Request, error: GatewayError, headers: dict[str, str] | None = None) -> Response:
    """The error in the envelope, with `Retry-After` or `WWW-Authenticate` where they apply."""
    headers = headers or {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = "Bearer"
    request_id = request.scope.get("request_id", "")
    return error_body(error.status, error.error_code, error.message, request_id, headers)


def describe_validation_error(error: dict[str, Any]) -> tuple[str, str]:
    """The caller's field name and a Chinese message for one of pydantic's errors."""
    # Only the first name is the caller's. After it pydantic lists the union branches that it tried.
    field = str(error["loc"][1])[:100] if len(error["loc"]) > 1 else "请求体"
    problem = MESSAGES.get(error["type"], "类型或取值错误")
    context = error.get("ctx", {})
    if "expected" in context:
        context = context | {"expected": str(context["expected"]).replace(" or ", ", ")}
    return field, problem.format(**context)


MESSAGES = {
    "missing": "不能为空",
    "model_attributes_type": "须为 JSON 对象",
    "dict_type": "须为 JSON 对象",
    "string_type": "须为字符串",
    "string_unicode": "包含无效字符",
    "string_pattern_mismatch": "包含无效字符",
    "string_too_short": "不能为空",
    "string_too_long": "不能超过 {max_length} 个字符",
    "int_parsing": "须为整数",
    "int_type": "须为整数",
    "int_from_float": "须为整数",
    "int_parsing_size": "须为整数",
    "greater_than_equal": "不能小于 {ge}",
    "less_than_equal": "不能大于 {le}",
    "literal_error": "取值无效，可选: {expected}",
}
