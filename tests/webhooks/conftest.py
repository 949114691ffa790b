"""Webhook receivers on separate ports. The gateway may call them."""

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
    """A pause between attempts that never ends within the test, however slow the machine is."""
    monkeypatch.setattr(dispatcher, "RETRY_DELAYS", (3600.0,))


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts."""
    monkeypatch.setattr(dispatcher, "RETRY_DELAYS", (0.05,))
