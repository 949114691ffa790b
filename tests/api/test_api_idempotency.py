"""`Idempotency-Key`: however often and from wherever a submit is repeated, it is one task, paid once."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import update

from app.catalog.models import disable_model, set_model
from app.database import CommitUnknown
from app.main import create_app
from app.runtime import Runtime
from app.tables import tasks
from app.tasks.submit import batch
from tests.support.makers import IMAGE_MODEL, TEXT_MODEL, Maker, User
from tests.support.responses import SUBMIT, data, door, refusal
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
BODY = {"modelName": TEXT_MODEL, "prompt": "猫", "params": {"resolution": "2K"}}


async def send_request(api: httpx.AsyncClient, user: User, key: str, body: dict[str, Any] = BODY) -> httpx.Response:
    return await api.post(SUBMIT, json=body, headers=user.headers | {"Idempotency-Key": key})


async def number_of_tasks(make: Maker, user: User) -> int:
    return data(await make.api.get("/user/ai/tasks/list", headers=user.headers))["total"]


async def test_a_repeated_submit_is_the_same_task(make: Maker) -> None:
    user = await make.user(points=100)
    first = await send_request(make.api, user, "order-1")
    again = await send_request(make.api, user, "order-1", dict(reversed(BODY.items())) | {"unknown": "ignored"})
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert data(again) == data(first)
    assert await make.balance(user) == (70, 30)
    assert data(await send_request(make.api, user, "order-2"))["taskNo"] != data(first)["taskNo"]
    assert await make.balance(user) == (40, 60)


async def test_forty_twins_are_one_task(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1000)
    async with door(runtime) as other:
        answers = await asyncio.gather(*(send_request((make.api, other)[n % 2], user, "twins") for n in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({data(answer)["taskNo"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert await make.balance(user) == (970, 30)
    assert await number_of_tasks(make, user) == 1


async def test_the_same_key_with_another_body_is_a_conflict(make: Maker) -> None:
    user = await make.user(points=1000)
    bodies = [BODY, BODY | {"prompt": "狗"}] * 10
    answers = await asyncio.gather(*(send_request(make.api, user, "k", body) for body in bodies))
    taken = {answer.status_code for answer in answers}
    assert taken == {200, 409}
    conflicts = [answer for answer in answers if answer.status_code == 409]
    assert len(conflicts) == 10
    assert refusal(conflicts[0])[1] == "IDEMPOTENCY_CONFLICT"
    assert await number_of_tasks(make, user) == 1
    for change in ({"modelName": IMAGE_MODEL}, {"imageUrl": "https://example.com/a.jpg"}, {"params": {}}):
        assert (await send_request(make.api, user, "k", BODY | change)).status_code == 409


async def test_a_key_belongs_to_its_user(make: Maker) -> None:
    one, other = await make.user(points=30), await make.user(points=30)
    assert (
        data(await send_request(make.api, one, "k"))["taskNo"]
        != data(await send_request(make.api, other, "k"))["taskNo"]
    )


async def test_keys_are_compared_byte_by_byte(make: Maker) -> None:
    user = await make.user(points=90)
    answers = [await send_request(make.api, user, key) for key in ("k", "K", "k.")]
    assert len({data(answer)["taskNo"] for answer in answers}) == 3


async def test_a_refused_submit_leaves_the_key_free(make: Maker) -> None:
    user = await make.user(points=20)
    assert (await send_request(make.api, user, "k")).status_code == 402
    assert (await send_request(make.api, user, "k", BODY | {"prompt": ""})).status_code == 400
    richer = await make.user(points=100)
    assert (await send_request(make.api, richer, "k", BODY | {"params": {"resolution": "9K"}})).status_code == 400
    assert (await send_request(make.api, richer, "k")).status_code == 200


@asynccontextmanager
async def socket_of(make: Maker) -> AsyncIterator[tuple[str, int]]:
    """The REST API behind the real server. A raw socket sends headers as they are, unlike an HTTP client."""
    app = create_app(make.runtime.settings, make.runtime)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_keep_alive=3600))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[:2]
    server.should_exit = True
    await serving


async def send_request_raw(address: tuple[str, int], user: User, line: bytes) -> tuple[int, bool, Any]:
    """Sends a submit with this header line as it is. Returns the status, whether it is a replay, and the data."""
    body = json.dumps(BODY).encode()
    head = (
        f"POST {SUBMIT} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {user.token}\r\nContent-Length: {len(body)}\r\n"
    )
    reader, writer = await asyncio.open_connection(*address)
    writer.write(head.encode() + line + b"\r\n\r\n" + body)
    answer = await reader.read()
    writer.close()
    payload, _, content = answer.partition(b"\r\n\r\n")
    return int(payload.split()[1]), b"idempotency-replayed: true" in payload.lower(), json.loads(content)["data"]


async def test_spaces_around_a_key_are_ignored(make: Maker) -> None:
    user = await make.user(points=100)
    first = data(await send_request(make.api, user, "k"))
    async with socket_of(make) as address:
        for line in (b"k", b"k ", b"k\t ", b"  k", b"\tk\t", b"k" + b" " * 200):
            again = await send_request_raw(address, user, b"Idempotency-Key:" + line)
            assert again == (200, True, first), line
        max_length = b"x" * 128
        for is_known in (False, True):
            assert (await send_request_raw(address, user, b"Idempotency-Key: " + max_length + b" "))[:2] == (
                200,
                is_known,
            )
        for line in (b"", b"  ", b" \t "):
            assert (await send_request_raw(address, user, b"Idempotency-Key:" + line))[0] == 400, line
    assert await make.balance(user) == (40, 60)


@pytest.mark.worlds("embedded")
@pytest.mark.parametrize("key", ["", "x" * 129, "钥匙".encode().decode("latin-1"), "a\tb"])
async def test_an_invalid_key_is_reported(make: Maker, key: str) -> None:
    user = await make.user(points=30)
    headers = [*user.headers.items(), ("Idempotency-Key", key.encode("latin-1"))]
    status, code, message = refusal(await make.api.post(SUBMIT, json=BODY, headers=headers))
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert message.startswith("参数错误: Idempotency-Key ")
    assert await make.balance(user) == (30, 0)


async def test_a_replay_returns_the_current_state_of_the_task(make: Maker, working: None) -> None:
    user = await make.user(points=30)
    task_no = data(await send_request(make.api, user, "k"))["taskNo"]
    await make.ended(user, task_no)
    again = data(await send_request(make.api, user, "k"))
    assert (again["taskNo"], again["status"], again["balance"]) == (task_no, "completed", 0)


async def test_a_replay_ignores_a_new_price_or_a_disabled_model(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    first = data(await send_request(make.api, user, "k"))
    await set_model(runtime.database, TEXT_MODEL, {"points_cost": 999})
    assert data(await send_request(make.api, user, "k")) == first
    await disable_model(runtime.database, TEXT_MODEL)
    assert data(await send_request(make.api, user, "k")) == first


@pytest.mark.parametrize(("minutes", "is_known"), [(-5, True), (5, False)])
async def test_a_key_is_kept_for_24_hours(make: Maker, runtime: Runtime, minutes: int, is_known: bool) -> None:
    user = await make.user(points=60)
    first = data(await send_request(make.api, user, "k"))
    made = datetime.now(UTC) - timedelta(hours=24, minutes=minutes)
    async with runtime.database.begin() as connection:
        await connection.execute(update(tasks).values(created_at=made))
    again = await send_request(make.api, user, "k")
    assert ("idempotency-replayed" in again.headers) == is_known
    assert (data(again)["taskNo"] == first["taskNo"]) == is_known


async def test_after_a_day_the_key_is_free_again(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=60)
    first = data(await send_request(make.api, user, "k"))
    old = "2026-01-01 00:00:00"
    await execute(runtime, "UPDATE tasks SET created_at = :old WHERE task_no = :no", old=old, no=first["taskNo"])
    answers = await asyncio.gather(*(send_request(make.api, user, "k") for _ in range(10)))
    assert {data(answer)["taskNo"] for answer in answers} != {first["taskNo"]}
    assert len({data(answer)["taskNo"] for answer in answers}) == 1
    assert await make.balance(user) == (0, 60)


@pytest.mark.parametrize("has_happened", [True, False])
async def test_a_lost_answer_and_a_retry_are_one_task(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, has_happened: bool
) -> None:
    """The answer to COMMIT is lost and the query after it fails: the caller gets 503 and submits again."""
    real, lost = runtime.database.begin, []

    def begin() -> Any:
        context = real()

        class Lossy:
            async def __aenter__(self) -> Any:
                return await context.__aenter__()

            async def __aexit__(self, kind: Any, error: Any, trace: Any) -> Any:
                if kind is not None or lost:
                    return await context.__aexit__(kind, error, trace)
                lost.append(True)
                if has_happened:
                    await context.__aexit__(None, None, None)
                else:
                    await context.__aexit__(CommitUnknown, CommitUnknown(), None)
                raise CommitUnknown

        return Lossy()

    async def unanswered(*_: Any) -> set[str]:
        raise CommitUnknown

    user = await make.user(points=100)
    with monkeypatch.context() as patched:
        patched.setattr(type(runtime.database), "begin", lambda _: begin())
        patched.setattr(batch, "find_stored", unanswered)
        assert (await send_request(make.api, user, "k")).status_code == 503
    answer = await send_request(make.api, user, "k")
    assert answer.status_code == 200
    assert ("idempotency-replayed" in answer.headers) == has_happened
    assert await number_of_tasks(make, user) == 1
    assert await make.balance(user) == (70, 30)
