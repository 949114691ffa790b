"""What webhook tests do through the API, and the deliveries that they read."""

import asyncio
from typing import Any

from aiohttp import web

from app.webhooks.outbox import Delivery
from tests.support.makers import Maker, User
from tests.support.responses import data
from tests.support.waiting import until
from tests.support.webhook_receivers import Receiver, couriers, outbox

HOOK = "https://receiver.example.com/hook"
DAY = 86_400


async def cancel(make: Maker, user: User, task_no: str) -> Any:
    return await make.api.post(f"/user/ai/tasks/{task_no}/cancel", headers=user.headers)


async def endpoint(make: Maker, user: User, url: str = HOOK, **fields: Any) -> dict[str, Any]:
    made = await make.api.post("/user/webhooks/endpoints", json={"url": url, **fields}, headers=user.headers)
    return dict(data(made))


async def secret_of(make: Maker, user: User) -> str:
    return str(data(await make.api.get("/user/webhooks/secret", headers=user.headers))["secret"])


async def reported_of_a_cancel(make: Maker, user: User, *receivers: Receiver) -> list[str]:
    """One cancelled task for each receiver, with its callbackUrl."""
    numbers = [await make.task_no(user, callbackUrl=receiver.url) for receiver in receivers]
    for number in numbers:
        data(await cancel(make, user, number))
    return numbers


def delivery(attempts: int, seconds_left: float = 86_400, host: str = "h") -> Delivery:
    return Delivery(1, host, 1, 1, 0, 1, attempts, seconds_left)


async def drip(request: web.Request) -> web.StreamResponse:
    """Sends the head of a response one byte at a time."""
    assert request.transport is not None
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 3600:
        request.transport.write(bytes([byte]))  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
    return web.Response()


async def post(make: Maker, user: User, path: str, **body: Any) -> Any:
    return await make.api.post(f"/user/webhooks/{path}", json=body, headers=user.headers)


async def listed(make: Maker, user: User) -> list[dict[str, Any]]:
    return list(data(await make.api.get("/user/webhooks/endpoints", headers=user.headers)))


async def records(make: Maker, user: User, query: str = "") -> dict[str, Any]:
    return dict(data(await make.api.get(f"/user/webhooks/deliveries?{query}", headers=user.headers)))


async def end_a_task(make: Maker, user: User) -> str:
    task_no = await make.task_no(user)
    data(await cancel(make, user, task_no))
    return task_no


async def failing(make: Maker, user: User, receiver: Receiver, number: int) -> None:
    """One failed delivery of a task's end. It needs `patient`, so that no waiting delivery is due again."""
    await end_a_task(make, user)
    async with couriers(make.runtime):
        await receiver.receives(number)

        async def payload() -> bool:
            return all(row["outcome"] and not row["lease_until"] for row in await outbox(make.runtime))

        await until("recorded", payload)
