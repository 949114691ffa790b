"""The refresh token as a cookie, which scripts cannot read. A browser sends it by itself, so each page is checked."""

from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response

from app.accounts.log_in.refresh_tokens import LIFETIME_SECONDS
from app.errors import Forbidden
from app.setting_values.text import find_origin
from app.settings import Settings

COOKIE = "gateway_refresh"
PATH = "/user/auth"
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def read_cookie(request: Request, settings: Settings) -> str:
    """The refresh token of the cookie, or an empty text. Raises Forbidden for a page of another origin."""
    token = request.cookies.get(COOKIE, "")
    if token:
        require_origin(request, settings)
    return token


def require_origin(request: Request, settings: Settings) -> None:
    """Raises Forbidden unless the page is ours, or its origin is in CORS_ORIGINS. Each browser sends `Origin`."""
    origin = request.headers.get("origin", "")
    if not _is_allowed(origin, request.headers.get("host", ""), settings):
        raise Forbidden("来源不被允许")


def set_cookie(response: Response, settings: Settings, token: str) -> None:
    response.set_cookie(COOKIE, token, max_age=LIFETIME_SECONDS, **_attributes(settings))


def delete_cookie(response: Response, settings: Settings) -> None:
    response.delete_cookie(COOKIE, **_attributes(settings))


def _attributes(settings: Settings) -> dict[str, Any]:
    url = urlsplit(settings.own_url)
    is_local = settings.environment == "development" and url.scheme == "http" and url.hostname in LOCAL_HOSTS
    return {"path": PATH, "httponly": True, "secure": not is_local, "samesite": "strict"}


def _is_allowed(origin: str, host: str, settings: Settings) -> bool:
    """`*` and `null` are no origins that may use a cookie. Without PUBLIC_URL our own origin is that of the request."""
    if not origin.startswith(("http://", "https://")):
        return False
    if origin in settings.cors_allowed or origin == find_origin(settings.own_url):
        return True
    try:
        return not settings.public_url and host != "" and urlsplit(origin).netloc == host
    except ValueError:  # "http://["
        return False
