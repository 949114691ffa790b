"""What tests of the REST door share."""

import io
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from app.runtime import Runtime
from app.telemetry import logs
from tests.support.streams import Door, open_door


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """All that is logged to standard error by a door opened after this; ask for it before `api` and `make`.

    Not `capfd`: its stream is closed after the test, while the process' loggers still hold it.
    """
    stream = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
async def door(runtime: Runtime) -> AsyncIterator[Door]:
    """The door with a socket, for what has no end: `api` reads every answer whole."""
    async with open_door(runtime) as opened:
        yield opened
