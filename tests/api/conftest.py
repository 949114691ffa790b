"""Fixtures of the tests of the REST API."""

import io
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from app.runtime import Runtime
from app.telemetry import logs
from tests.support.streams import Door, open_door


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The log on standard error of each API that is opened after this. Request it before `api` and `make`.

    Not `capfd`: its stream is closed after the test, while the loggers of the process still hold it.
    """
    stream = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
async def door(runtime: Runtime) -> AsyncIterator[Door]:
    """The API on a socket, for endless responses: `api` reads every response to its end."""
    async with open_door(runtime) as opened:
        yield opened
