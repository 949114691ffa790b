"""The REST API in this process, on a test's runtime. Its routes are built once and serve many tests.

The gateway does not validate what it answers. Here each envelope must be what its documented model encodes, byte for
byte; one that is not becomes a 500.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

from fastapi import FastAPI, Response

from app.api.routing import DirectRoute
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
        with patch.object(DirectRoute, "encode", _encode_checked):
            yield app
    if is_usual:
        _idle.append(app)


_encode = DirectRoute.encode


def _encode_checked(route: DirectRoute, result: Any) -> Response:
    answer = _encode(route, result)
    if answer is not result:
        model = route.response_field
        assert model is not None, route.path
        value, errors = model.validate(json.loads(bytes(answer.body)))
        assert errors == [], (route.path, errors)
        assert model.serialize_json(value) == answer.body, route.path
    return answer
