"""Receivers on ports of their own, which the gateway may call."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from app.jobs import webhook_dispatcher as dispatcher
from app.settings import Settings
from tests.support.ports import free_port
from tests.support.webhook_receivers import Receiver, receiving


@pytest.fixture
def ports() -> list[int]:
    return [free_port() for _ in range(4)]


@pytest.fixture
def settings(settings: Settings, ports: list[int]) -> Settings:
    allowed = ",".join([settings.egress_allow, *[f"127.0.0.1:{port}" for port in ports]])
    return Settings(_env_file=None, **(settings.model_dump() | {"egress_allow": allowed}))


@pytest.fixture
async def receivers(ports: list[int], anyio_backend: str) -> AsyncIterator[list[Receiver]]:
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(receiving(port)) for port in ports]


@pytest.fixture
def receiver(receivers: list[Receiver]) -> Receiver:
    return receivers[0]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long a pause between attempts that none ends within the test, however slow the machine."""
    monkeypatch.setattr(dispatcher, "RETRY_DELAYS", (3600.0,))


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts shrunk to a test's patience."""
    monkeypatch.setattr(dispatcher, "RETRY_DELAYS", (0.05,))
