"""`/readyz` and SEE2AI: never more than a warning, no waiting, one request a minute, and no details."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.api.routes import health
from app.runtime import open_runtime
from app.settings import Settings
from app.telemetry import metrics
from app.upstreams.see2ai import account as tenants
from tests.support.raw_connections import GONE
from tests.support.responses import data, door
from tests.support.sandbox_server import Server

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
DEAD = "http://127.0.0.1:1"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for SEE2AI's answer, however slow the machine is."""
    monkeypatch.setattr(health, "SEE2AI_SECONDS", 30)


@asynccontextmanager
async def gateway(settings: Settings, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A runtime of its own, so SEE2AI has not been asked by it yet."""
    changed = Settings(_env_file=None, **(settings.model_dump() | changes))
    async with open_runtime(changed) as runtime, door(runtime) as api:
        yield api


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[str, list[float]]]:
    """An upstream that accepts connections and never answers, and the times of the requests."""
    requested: list[float] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(*GONE):  # the client may have gone by then
            await reader.readuntil(b"\r\n\r\n")
            requested.append(time.monotonic())
            await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requested
    server.close()


def requests(upstream: Server) -> int:
    return len([entry for entry in upstream.journal() if entry["path"] == "/api/v1/me"])


async def ready(api: httpx.AsyncClient) -> str:
    payload = data(await api.get("/readyz"))
    assert (payload["status"], payload["database"], payload["redis"]) == ("ok", "ok", "ok")
    assert set(payload) == {"status", "database", "redis", "see2ai", "circuit"}
    return str(payload["see2ai"])


async def test_see2ai_is_requested_once_a_minute(
    settings: Settings, upstream: Server, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(settings) as api:
        answers = await asyncio.gather(*(ready(api) for _ in range(20)))
        assert answers == ["ok"] * 20
        assert requests(upstream) == 1
        upstream.control({"balance": "empty"})
        assert await ready(api) == "ok"
        monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.0)
        assert await ready(api) == "warning: insufficient balance"
        assert requests(upstream) == 2


async def test_a_problem_is_reported_in_general_words(settings: Settings, upstream: Server, patient: None) -> None:
    async with gateway(settings, see2ai_api_key="sk-wrong") as api:
        answer = await api.get("/readyz")
        assert data(answer)["see2ai"] == "warning: key rejected"
        assert not {"sk-wrong", "Invalid", "SANDBOX"} & set(answer.text.replace('"', " ").split())
    async with gateway(settings, see2ai_base_url=DEAD) as api:
        assert await ready(api) == "warning: unreachable"
    async with gateway(settings, see2ai_api_key="") as api:
        before = requests(upstream)
        assert await ready(api) == "warning: no key"
        assert requests(upstream) == before


async def test_a_silent_see2ai_delays_no_answer(settings: Settings) -> None:
    async with silent() as (origin, requested):
        async with gateway(settings, see2ai_base_url=origin) as api:
            took = []
            for _ in range(3):
                began = time.monotonic()
                assert await ready(api) == "warning: no answer yet"
                took.append(time.monotonic() - began)
            assert min(took) < 1
            assert len(requested) == 1
            began = time.monotonic()
        assert time.monotonic() - began < 15  # closing does not wait for the answer either


async def test_the_metrics_follow(settings: Settings, upstream: Server, patient: None) -> None:
    async with gateway(settings) as api:
        await ready(api)
    assert metrics.SEE2AI_REACHABLE._value.get() == 1
    assert metrics.SEE2AI_BALANCE._value.get() > 0
    async with gateway(settings, see2ai_base_url=DEAD) as api:
        await ready(api)
    assert metrics.SEE2AI_REACHABLE._value.get() == 0
    assert metrics.SEE2AI_BALANCE._value.get() != metrics.SEE2AI_BALANCE._value.get()


async def test_with_metrics_served_it_polls_by_itself(
    settings: Settings, upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "FRESH_SECONDS", 0.1)
    async with gateway(settings, metrics_port=9):  # any number; only `gateway serve` listens on it
        end = time.monotonic() + 60
        while requests(upstream) < 3 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert requests(upstream) >= 3
    await asyncio.sleep(0.3)  # the answer on its way has arrived
    seen = requests(upstream)
    await asyncio.sleep(0.3)
    assert requests(upstream) == seen


async def test_a_database_without_the_schema_is_not_ready(settings: Settings, empty_database_url: str) -> None:
    async with gateway(settings, database_url=empty_database_url) as api:
        assert (await api.get("/readyz")).status_code == 503
        assert (await api.get("/healthz")).status_code == 200
