"""The examples of docs/webhooks.md run on a message that a real receiver got."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.api.access.rate_limits import FIXED_RATES, HOUR
from app.jobs import webhook_dispatcher as dispatcher
from app.main import create_app
from tests.support.makers import Maker
from tests.support.webhook_calls import reported_of_a_cancel, secret_of
from tests.support.webhook_receivers import Received, Receiver, couriers

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")


def code(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


@pytest.fixture
async def received(make: Maker, receiver: Receiver) -> tuple[str, Received]:
    """The secret, and the webhook of a task's end as it arrived."""
    user = await make.user(points=100)
    await reported_of_a_cancel(make, user, receiver)
    async with couriers(make.runtime):
        (received,) = await receiver.receives()
    return await secret_of(make, user), received


@pytest.mark.anyio
async def test_the_python_works(received: tuple[str, Received]) -> None:
    secret, one = received
    room: dict = {}
    exec(code("python"), room)
    assert room["read_event"](secret, one.headers, one.body) == one.json
    with pytest.raises(Exception, match="No matching signature"):
        room["read_event"](secret, one.headers, one.body + b" ")


@pytest.mark.anyio
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not here")
async def test_the_javascript_works(received: tuple[str, Received]) -> None:
    secret, one = received

    def run(headers: dict[str, str], body: str) -> "subprocess.CompletedProcess[str]":
        given = ", ".join(json.dumps(value) for value in (secret, headers, body))
        script = f"{code('js')}\nconsole.log(JSON.stringify(readEvent({given})));"
        return subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60, check=False)

    body = one.body.decode()
    good = run(one.headers, body)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout) == one.json
    assert "not signed" in run(one.headers, body.replace("failed", "passed")).stderr
    assert "too old" in run(one.headers | {"webhook-timestamp": "1761463850"}, body).stderr


def test_the_numbers_are_those_of_the_code() -> None:
    assert dispatcher.RETRY_DELAYS == (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800)
    limits = re.search(
        r"up to (\d+) webhooks at once, at most (\d+) to one host, (\d+) for one user, and (\d+) for one user to", PAGE
    )
    slow = re.search(
        r"more than (\d+) s, the limits are (\d+) for that host, (\d+) for that user, and (\d+) for each", PAGE
    )
    rates = re.search(r"replay (\d+) deliveries in an hour.*change webhooks (\d+) times in an hour", PAGE, re.DOTALL)
    assert limits is not None
    assert slow is not None
    assert rates is not None
    assert [int(number) for number in (*limits.groups(), *slow.groups(), *rates.groups())] == [
        dispatcher.MAX_CONCURRENCY,
        dispatcher.MAX_PER_HOST,
        dispatcher.MAX_PER_USER,
        dispatcher.MAX_PER_USER_ON_HOST,
        dispatcher.SLOW_SECONDS,
        dispatcher.MAX_PER_SLOW_HOST,
        dispatcher.MAX_PER_SLOW_USER,
        dispatcher.MAX_PER_USER_ON_SLOW_HOST,
        FIXED_RATES["webhook-replay"].maximum,
        FIXED_RATES["webhook-change"].maximum,
    ]
    assert {FIXED_RATES[limit].seconds for limit in ("webhook-replay", "webhook-change")} == {HOUR}


@pytest.mark.worlds("embedded")
@pytest.mark.anyio
async def test_every_route_is_reported(make: Maker) -> None:
    paths = create_app(make.runtime.settings, make.runtime).openapi()["paths"]
    payload = PAGE.partition("\n## Routes\n")[2].partition("\n## ")[0].replace("{id}", "{}")
    payload = payload.replace("`…/delete`", "/user/webhooks/endpoints/{}/delete`")
    for path in paths:
        if path.startswith("/user/webhooks"):
            assert re.sub(r"\{\w+\}", "{}", path) + "`" in payload, path
