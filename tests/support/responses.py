"""Checks that every answer of the REST API has the same form."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from app.runtime import Runtime
from app.settings import Settings
from tests.support.apps import open_app

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SUBMIT = "/user/ai/tasks/submit"
LIST = "/user/ai/tasks/list"
BALANCE = "/user/points/consumption/balance"
MODELS = "/user/ai/models"


def envelope(answer: httpx.Response) -> dict[str, Any]:
    """Checks that the answer is our envelope, of a success or an error. Returns its body."""
    assert answer.headers["x-content-type-options"] == "nosniff", answer.url
    assert answer.headers["content-type"] == "application/json", answer.text
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])
    body: dict[str, Any] = answer.json()
    assert body["code"] == answer.status_code
    if answer.status_code == 200:
        assert set(body) == {"code", "message", "data"}
        assert body["message"] == "success"
        return body
    assert set(body) == {"code", "message", "data", "errorCode", "requestId"}
    assert body["data"] is None
    assert body["requestId"] == answer.headers["x-request-id"]
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", body["errorCode"])
    assert CHINESE.search(body["message"]), body
    return body


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    """(status, errorCode, message) of an error in the envelope."""
    body = envelope(answer)
    assert answer.status_code != 200, body
    return answer.status_code, body["errorCode"], body["message"]


def data(answer: httpx.Response) -> Any:
    """The data of a success in the envelope."""
    assert answer.status_code == 200, answer.text
    return envelope(answer)["data"]


@asynccontextmanager
async def door(runtime: Runtime, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A second REST API on the same runtime, with some settings changed."""
    changed = replace(runtime, settings=Settings(_env_file=None, **(runtime.settings.model_dump() | changes)))
    async with open_app(changed) as app:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test", timeout=30) as client:
            yield client
