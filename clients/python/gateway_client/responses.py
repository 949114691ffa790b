"""Reads the envelope of the gateway's responses."""

from typing import Any

import httpx


class GatewayError(Exception):
    """Any failure. `code` is the HTTP status, or 0 where there was no response or the timeout expired."""

    def __init__(
        self, message: str, *, code: int = 0, error_code: str, request_id: str = "", retry_after: float | None = None
    ) -> None:
        self.message, self.code, self.error_code = message, code, error_code
        self.request_id, self.retry_after = request_id, retry_after
        super().__init__(f"{error_code}: {message}")


def read_response(response: httpx.Response) -> Any:
    """The response's `data`. Raises GatewayError for everything but a success."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}  # a proxy before the gateway answered
    if response.is_success and body.get("code") == httpx.codes.OK:
        return body["data"]
    retry_after = response.headers.get("Retry-After", "")
    raise GatewayError(
        body.get("message") or response.text[:200] or response.reason_phrase,
        code=response.status_code,
        error_code=body.get("errorCode") or f"HTTP_{response.status_code}",
        request_id=body.get("requestId") or response.headers.get("X-Request-Id", ""),
        retry_after=float(retry_after) if retry_after.isdecimal() else None,
    )
