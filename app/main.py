"""The API application: `gateway serve`, or `uvicorn app.main:create_app --factory`."""

import asyncio
import gc
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from app import read_version
from app.api.access.rate_limits import RateLimiter
from app.api.bodies import MAX_BODY_BYTES, MAX_SMALL_BODY_BYTES
from app.api.errors import install_error_handlers
from app.api.middleware import RequestMiddleware
from app.api.push import sse, websocket
from app.api.push.connections import ConnectionLimiter
from app.api.routes import files, health, points, tasks, uploads, webhooks
from app.api.routes.account import auth, erasure, second_factor, usage
from app.api.routes.account import keys as account_keys
from app.api.routes.admin import actions as admin_actions
from app.api.routes.admin import models as admin_models
from app.api.routes.admin import points as admin_points
from app.api.routes.admin import statistics as admin_statistics
from app.api.routes.admin import tasks as admin_tasks
from app.api.routes.admin import upstreams as admin_upstreams
from app.api.routes.admin import users as admin_users
from app.api.routing import DirectRoute, DirectRouting
from app.api.schemas import ErrorResponse, mark_long_integers
from app.api.server.options import limit_server
from app.api.server.refusals import on_loop_error
from app.known_secrets import DEVELOPMENT_JWT_SECRET
from app.runtime import Runtime, open_runtime
from app.settings import Settings, load_settings
from app.telemetry.logs import configure_logs

log = structlog.get_logger()

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
ACCOUNT_ROUTES = (auth, second_factor, account_keys, usage, erasure)
ADMIN_ROUTES = (admin_statistics, admin_points, admin_users, admin_models, admin_actions, admin_tasks, admin_upstreams)
ROUTES = (sse, websocket, tasks, points, uploads, webhooks, *ACCOUNT_ROUTES, *ADMIN_ROUTES, health, files)
"""`sse` precedes `tasks`, whose /tasks/{task_no} also matches /tasks/events."""
ERRORS = (400, 401, 402, 403, 404, 408, 409, 413, 415, 429, 431, 500, 503)


class Application(FastAPI):
    """FastAPI that bounds the connections of its server, and whose document says which integers are long."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            limit_server(receive)
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            mark_long_integers(super().openapi())
        return super().openapi()


def create_app(settings: Settings | None = None, runtime: Runtime | None = None) -> FastAPI:
    """The application. The caller closes a `runtime` that it passes; `gateway up` shares one with its worker."""
    settings = settings or load_settings()
    configure_logs(settings)
    is_default = settings.jwt_algorithm == "HS256" and DEVELOPMENT_JWT_SECRET in settings.jwt_secrets
    if is_default and settings.host not in LOOPBACK:
        log.warning("development_jwt_secret", host=settings.host, meaning="anybody can sign tokens")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(on_loop_error)
        shared: Runtime | None = app.state.shared_runtime
        if shared is not None:
            _attach_state(app, shared)
            yield
            return
        async with open_runtime(settings) as opened:
            _attach_state(app, opened)
            _freeze_gc()
            with _forward_shutdown_signal(opened.pubsub.close_subscriptions):
                yield

    app = Application(
        title="1818ai 积分网关",
        version=read_version(),
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it looks for OpenTelemetry at each request
        redirect_slashes=False,  # a redirect would lack the envelope
        # `default` keeps FastAPI's own 422, which never occurs, out of the document.
        responses={code: {"model": ErrorResponse} for code in (*ERRORS, "default")},
    )
    app.state.shared_runtime = runtime
    for module in ROUTES:
        app.include_router(module.router)
    install_error_handlers(app)
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Adds what runs before FastAPI's routing, the innermost first."""
    routes = [route for module in ROUTES for route in module.router.routes if isinstance(route, DirectRoute)]
    app.add_middleware(DirectRouting, routes=routes)
    cors = {
        "allow_origins": settings.cors_allowed,
        "allow_methods": ["GET", "POST", "DELETE"],
        # Front ends add headers of their own (tracing, X-Requested-With). None of them gives a right: the only
        # credential that a browser sends by itself is the cookie of /user/auth, which checks the origin.
        "allow_headers": ["*"],
        "allow_credentials": "*" not in settings.cors_allowed,
        "expose_headers": ["X-Request-Id", "Retry-After", "Idempotency-Replayed"],
        "max_age": 600,
    }
    app.add_middleware(
        RequestMiddleware,
        body_limit=MAX_SMALL_BODY_BYTES,
        body_limits=dict.fromkeys(tasks.SUBMIT_PATHS, (MAX_BODY_BYTES, None)) | uploads.BODY_LIMIT,
        cors=cors if settings.cors_allowed else None,
    )


@contextmanager
def _forward_shutdown_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Calls `callback` on SIGTERM and SIGINT, then uvicorn's own handler.

    Uvicorn waits for all responses before it ends the lifespan. A stream has no end, so it must learn of the signal.
    """
    loop, replaced = asyncio.get_running_loop(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler):
                replaced[number] = handler

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        replaced[signal.Signals(number)](number, frame)

    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _freeze_gc() -> None:
    """Exempts the loaded modules from garbage collection, which would scan them again and again.

    Imports leave little garbage. A collection before would cost more than it frees.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _attach_state(app: FastAPI, runtime: Runtime) -> None:
    app.state.runtime = runtime
    app.state.rate_limiter = RateLimiter(runtime.redis, runtime.settings)
    app.state.connection_limiter = ConnectionLimiter()
    app.state.upload_places = uploads.UploadPlaces()
