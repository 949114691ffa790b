"""Browser pages of other origins: which may call, and with which headers."""

import httpx
import pytest

from app.errors import SettingsError
from app.runtime import Runtime
from app.settings import Settings, load_settings
from tests.support.makers import Maker
from tests.support.responses import BALANCE, door
from tests.support.streams import EVENTS

pytestmark = pytest.mark.worlds("embedded")

SENT = (
    "authorization",
    "authorization,last-event-id",
    "content-type,idempotency-key,x-api-key,x-request-id",
    "x-requested-with,traceparent,tracestate,baggage,sentry-trace",
    "cache-control,x-some-front-end",
)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://app.example.com/", "https://app.example.com"),
        (" https://a.example , HTTPS://App.Example.com:443 ,", "https://app.example.com"),
        ("http://LOCALHOST:3000/", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://例子.com", "https://xn--fsqu00a.com"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("null", "null"),
    ],
)
async def test_an_origin_works_as_people_write_it(make: Maker, runtime: Runtime, written: str, origin: str) -> None:
    user = await make.user()
    async with door(runtime, cors_origins=written) as api:
        for headers in SENT:
            answer = await preflight(api, origin, headers)
            assert answer.status_code == 200, answer.text
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["access-control-allow-headers"] == headers
        answer = await api.get(BALANCE, headers=user.headers | {"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        for foreign in ("https://evil.example", origin + ".evil.example", origin + "/"):
            assert (await preflight(api, foreign, "authorization")).status_code == 400


async def preflight(api: httpx.AsyncClient, origin: str, headers: str) -> httpx.Response:
    requested = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": headers}
    return await api.options(EVENTS, headers={"Origin": origin} | requested)


@pytest.mark.parametrize(
    "written",
    [
        "app.example.com",
        "localhost:3000",
        "https://app.example.com/index.html",
        "https://app.example.com?x=1",
        "https://*.example.com",
        "https://a.example https://b.example",
        '["https://a.example"]',
        "https://user@a.example",
        "https://a.example:port",
        "https://[",
        "https://",
    ],
)
def test_what_is_no_origin_is_refused_by_name(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    with pytest.raises(SettingsError) as refused:
        load_settings(cors_origins=f"https://good.example,{written}")
    problem = f"CORS_ORIGINS: {written!r} is not an origin; write https://host or https://host:port"
    assert str(refused.value) == problem
