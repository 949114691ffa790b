"""What tests of the REST door share."""

import io
from types import SimpleNamespace

import pytest

from app import logs


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """All that is logged to standard error by a door opened after this; ask for it before `api` and `make`.

    Not `capfd`: its stream is closed after the test, while the process' loggers still hold it.
    """
    stream = io.StringIO()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    return stream
