"""Every request is counted: docs/api.md says as what, each route says the same, and nothing grows without Redis."""

import asyncio
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from redis.exceptions import RedisError

from app.api.access import rate_limits
from app.api.access.rate_limits import FIXED_RATES, HOUR, MINUTE, Rate, RateLimiter, rate_of
from app.api.routes import health
from app.errors import RateLimited
from app.main import create_app
from app.settings import Settings
from tests.support.makers import Maker
from tests.support.responses import BALANCE, data, refusal
from tests.support.webhook_calls import HOOK, post

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
WITHOUT_CREDENTIAL = {"GET /healthz", "GET /readyz", "GET /files/{key}"}


def listed_limits() -> dict[str, str]:
    """By request: what the page says that it counts as."""
    section = PAGE.partition("\n## Limits of one user\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| .* \| (.*) \|$", section, re.MULTILINE)
    pairs = [(one, limit) for limit, requests in rows for one in re.findall(r"`([A-Z]+ /[^`]+)`", requests)]
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


async def test_every_route_counts_as_the_page_says(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []

    async def check(_limiter: RateLimiter, limit: str, _user_id: int) -> None:
        counted.append(limit)
        raise RateLimited

    monkeypatch.setattr(RateLimiter, "check", check)
    user, found = await make.user(admin=True), dict[str, str]()
    documented = create_app(make.runtime.settings, make.runtime).openapi()["paths"]
    requests = [(method.upper(), path) for path, item in documented.items() for method in item]
    for method, path in [*requests, ("GET", "/user/ai/tasks/events")]:
        answer = await make.api.request(method, re.sub(r"\{\w+\}", "1", path), headers=user.headers)
        assert (answer.status_code == 429, len(counted)) in {(True, 1), (False, 0)}, path
        found |= {f"{method} {path}": limit for limit in counted}
        counted.clear()
    uncounted = {f"{method} {path}" for method, path in requests} - found.keys()
    assert uncounted == WITHOUT_CREDENTIAL, "a route without a bound"
    assert all(f"`{request}`" in PAGE for request in uncounted)
    listed = listed_limits()
    assert listed.pop("WS /user/ai/tasks/ws") == "read"  # it is counted after its first message
    assert listed == found


def test_the_page_has_the_rates_of_the_code() -> None:
    settings, seconds = Settings(_env_file=None), {"minute": MINUTE, "hour": HOUR}
    rows = re.findall(r"^\| `([a-z-]+)` \| (?:`[A-Z_]+` \()?(\d+)\)? in an? (minute|hour) \|", PAGE, re.MULTILINE)
    rates = {limit: Rate(int(maximum), seconds[window]) for limit, maximum, window in rows}
    assert rates == {limit: rate_of(limit, settings) for limit in rates}
    assert rates.keys() == set(listed_limits().values()) >= FIXED_RATES.keys()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`seconds` is the time, a whole hour at first."""
    clock = SimpleNamespace(seconds=1e5 * HOUR)
    monkeypatch.setattr(
        rate_limits, "time", SimpleNamespace(time=lambda: clock.seconds, monotonic=lambda: clock.seconds)
    )
    return clock


async def test_changes_of_webhooks_are_counted_by_the_hour(
    make: Maker, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FIXED_RATES, "webhook-change", Rate(3, HOUR))
    user = await make.user()
    made = data(await post(make, user, "endpoints", url=HOOK))
    move = f"endpoints/{made['id']}"
    answers = []
    for number in range(3):
        clock.seconds += MINUTE
        answers.append(await post(make, user, move, url=f"{HOOK}/{number}"))
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert refusal(answers[-1])[1] == "RATE_LIMITED"
    assert int(answers[-1].headers["retry-after"]) == HOUR - 3 * MINUTE
    assert (await post(make, await make.user(), "endpoints", url=HOOK)).status_code == 200
    assert (await make.api.get(BALANCE, headers=user.headers)).status_code == 200
    clock.seconds += HOUR
    assert (await post(make, user, move, url=f"{HOOK}/4")).status_code == 200


class RedisAway:
    """Every command fails."""

    def pipeline(self, **_: Any) -> Any:
        raise RedisError("away")


async def test_without_redis_each_process_counts_alone_and_remembers_a_bounded_number(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_COUNTERS", 50)
    limiter = RateLimiter(RedisAway(), Settings(_env_file=None))  # type: ignore[arg-type]
    for number in range(1, 13):
        try:
            await limiter.check("redeem", 1)
            assert number <= 10
        except RateLimited:
            assert number > 10
    for user_id in range(2, 30):
        await limiter.check("redeem", user_id)
    clock.seconds += MINUTE
    for user_id in range(30, 300):
        await limiter.check("redeem", user_id)
        assert len(limiter._counts) <= 50


async def test_many_questions_whether_it_is_ready_are_one_check(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, may_answer = 0, asyncio.Event()

    async def ping(_database: Any) -> None:
        nonlocal checks
        checks += 1
        await may_answer.wait()

    monkeypatch.setattr(health, "ping", ping)
    asking = [asyncio.create_task(api.get("/readyz")) for _ in range(30)]
    began = time.monotonic()
    while not checks or time.monotonic() - began < 0.1:
        await asyncio.sleep(0.01)
    asking[0].cancel()
    may_answer.set()
    assert {answer.status_code for answer in await asyncio.gather(*asking[1:])} == {200}
    assert checks == 1
    assert (await api.get("/readyz")).status_code == 200
    assert checks == 2
