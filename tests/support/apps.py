"""The REST API in this process, on a test's runtime. Its routes are built once and serve many tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app.main import create_app
from app.runtime import Runtime
from app.telemetry.logs import configure_logs

_idle: list[FastAPI] = []


@asynccontextmanager
async def open_app(runtime: Runtime) -> AsyncIterator[FastAPI]:
    """The started application. It stops at the end of the block."""
    settings = runtime.settings
    is_usual = not settings.cors_allowed  # the only setting that its routes and middleware are built from
    app = _idle.pop() if is_usual and _idle else create_app(settings, runtime)
    configure_logs(settings)
    app.state.shared_runtime = runtime
    async with app.router.lifespan_context(app):
        yield app
    if is_usual:
        _idle.append(app)
