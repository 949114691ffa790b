"""The API process: `uvicorn app.main:create_app --factory`, or `gateway serve`."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app.api import files, health, points, tasks
from app.api.errors import install_error_handlers
from app.api.limits import Limits
from app.api.middleware import BodyLimit, Net, RequestId
from app.api.wire import ErrorData
from app.logs import set_up_logs
from app.runtime import Runtime, open_runtime
from app.settings import DEVELOPMENT_JWT_SECRET, Settings, load_settings

log = structlog.get_logger()

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
LARGEST_BODY_BYTES = 1_000_000
ERRORS = (400, 401, 402, 403, 404, 413, 415, 429, 500, 503)


def create_app(settings: Settings | None = None, runtime: Runtime | None = None) -> FastAPI:
    """The application. A `runtime` given stays the giver's to close (`gateway up` shares one with its worker)."""
    settings = settings or load_settings()
    set_up_logs(settings)
    is_default = settings.jwt_algorithm == "HS256" and DEVELOPMENT_JWT_SECRET in settings.jwt_secrets
    if is_default and settings.host not in LOOPBACK:
        log.warning("development_jwt_secret", host=settings.host, meaning="anybody who reaches this can be anybody")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if runtime is not None:
            _lay_out(app, runtime)
            yield
            return
        async with open_runtime(settings) as opened:
            _lay_out(app, opened)
            _spare_the_collector()
            yield

    app = FastAPI(
        title="1818ai 积分网关",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would be an answer without the envelope
        # `default` keeps FastAPI from promising its own 422, which never comes.
        responses={code: {"model": ErrorData} for code in (*ERRORS, "default")},
    )
    for room in (tasks, points, health, files):
        app.include_router(room.router)
    install_error_handlers(app)
    app.add_middleware(Net)
    app.add_middleware(BodyLimit, most_bytes=LARGEST_BODY_BYTES)
    if settings.cors_allowed:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allowed,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-API-Key", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After", "Idempotency-Replayed"],
            max_age=600,
        )
    app.add_middleware(RequestId)
    return app


def _spare_the_collector() -> None:
    """What was loaded at start stays to the end: the collector need not walk it every few hundred requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _lay_out(app: FastAPI, runtime: Runtime) -> None:
    app.state.runtime = runtime
    app.state.limits = Limits(runtime.redis)
