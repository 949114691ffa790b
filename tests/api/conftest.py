"""What tests of the REST door share."""

import io
import sys

import pytest


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """All that is logged to standard error by a door opened after this; ask for it before `api` and `make`."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream
