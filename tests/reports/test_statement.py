"""The statement: opening balance, entries, closing balance. It adds up, and holds no connection for its reader."""

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from app.errors import Unavailable
from app.points import ledger
from app.reports import statement as statement_module
from app.reports.statement import HEADER, open_statement, statement_csv
from app.runtime import Runtime
from app.tables import points_accounts, points_ledger
from app.tasks.cancel import cancel_task
from tests.support.ended_tasks import complete, fail, start
from tests.support.lots import in_hours, later, lot
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
RECORDS = "/user/points/consumption/records"


async def lines_of(make: Maker, user: User, **query: Any) -> list[dict[str, str]]:
    answer = await make.api.get(RECORDS, params={"format": "csv"} | query, headers=user.headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.content.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))


def check_sums(lines: list[dict[str, str]]) -> tuple[int, int]:
    """(opening, closing), after checking that each line adds up to the next one."""
    opening, *entries, closing = lines
    assert (opening["kind"], closing["kind"]) == ("opening", "closing")
    balance = int(opening["balanceAfter"])
    for line in entries:
        balance += int(line["points"])
        assert int(line["balanceAfter"]) == balance
    assert int(closing["balanceAfter"]) == balance
    return int(opening["balanceAfter"]), balance


async def test_after_a_storm_it_adds_up_to_the_balance(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement_module, "PIECE_ROWS", 7)
    users = [await make.user(points=600) for _ in range(2)]
    for user in users:
        await lot(runtime.database, user.id, 45, 1, f"lot:{user.id}")

    async def act(user: User, number: int) -> None:
        answer = await make.submit(user, f"{number}")
        if answer.status_code == 200 and number % 3 == 0:
            await cancel_task(runtime, user.id, answer.json()["data"]["taskNo"])
        expires = in_hours(1 if number % 2 else 100)
        values = {"points": number + 1, "ref": f"{user.id}:{number}", "remark": "=1+1"}
        await ledger.grant(runtime.database, user_id=user.id, **values, expires=expires)

    await asyncio.gather(*[act(user, number) for user in users for number in range(12)])
    started = (await start(runtime)).values()
    for user in users:
        for place, task in enumerate(one for one in started if one.user_id == user.id):
            await (complete(runtime, task) if place % 2 else fail(runtime, task))
    await later(runtime.database, 2)
    for user in users:
        before = data(await make.api.get("/user/points/consumption/balance", headers=user.headers))["balance"]
        lines = await lines_of(make, user)
        assert check_sums(lines) == (0, before)
        assert (await make.balance(user))[0] == before
        kinds = {line["kind"] for line in lines}
        assert kinds == {"opening", "grant", "deduct", "settle", "refund", "expire", "closing"}
        assert {line["remark"] for line in lines if line["kind"] == "grant"} == {"", "'=1+1"}
        async with runtime.database.read() as connection:
            mine = select(func.count()).where(points_ledger.c.user_id == user.id)
            assert await connection.scalar(mine) == len(lines) - 2
        assert [int(line["id"]) for line in lines[1:-1]] == sorted(int(line["id"]) for line in lines[1:-1])


async def add_grants(runtime: Runtime, user: User, times: list[datetime]) -> None:
    """One grant at each time: of one point, then of two, and so on."""
    total = 0
    async with runtime.database.begin() as connection:
        for seq, time in enumerate(times, 1):
            total += seq
            row = {"user_id": user.id, "seq": seq, "kind": "grant", "points": seq, "held": 0, "balance_after": total}
            await connection.execute(insert(points_ledger).values(**row, ref=f"t{seq}", created_at=time))
        account = {"user_id": user.id, "available": total, "granted": total, "seq": len(times)}
        await connection.execute(insert(points_accounts).values(**account, updated_at=times[-1]))


async def test_a_period_begins_with_the_balance_before_it(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    await add_grants(runtime, user, [datetime(2026, 11, number, 4, tzinfo=UTC) for number in range(1, 6)])
    whole = await lines_of(make, user, **{"from": "2026-11-01", "to": "2026-11-30"})
    assert check_sums(whole) == (0, 15)
    part = await lines_of(make, user, **{"from": "2026-11-02", "to": "2026-11-04"})
    assert check_sums(part) == (1, 10)
    assert (part[0]["createTime"], part[-1]["createTime"]) == ("2026-11-02T00:00:00", "2026-11-05T00:00:00")
    none = await lines_of(make, user, **{"from": "2026-10-01", "to": "2026-10-02"})
    assert check_sums(none) == (0, 0)
    after = await lines_of(make, user, **{"from": "2026-11-20", "to": "2026-11-20"})
    assert check_sums(after) == (15, 15)
    listed = data(
        await make.api.get(RECORDS, params={"from": "2026-11-02", "to": "2026-11-04T12:00:00"}, headers=user.headers)
    )
    assert [record["points"] for record in listed["records"]] == [4, 3, 2]
    assert listed["total"] == 3
    query = {"from": "2026-11-04", "kind": "grant", "size": 1}
    listed = data(await make.api.get(RECORDS, params=query, headers=user.headers))
    assert ([record["points"] for record in listed["records"]], listed["total"]) == ([5], 2)


async def test_a_filter_leaves_out_entries_and_the_balances(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(points=100), await make.user(points=100)
    first, second = await make.task_no(user), await make.task_no(user)
    assert [line["kind"] for line in await lines_of(make, user, kind="deduct")] == ["deduct", "deduct"]
    lines = await lines_of(make, user, taskNo=second)
    assert [(line["kind"], line["points"], line["taskNo"]) for line in lines] == [("deduct", "-30", second)]
    assert await lines_of(make, other, taskNo=first) == []
    assert check_sums(await lines_of(make, await make.user())) == (0, 0)


async def test_between_two_pieces_no_connection_is_held_and_what_is_new_waits(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement_module, "PIECE_ROWS", 2)
    user = await make.user()
    for number in range(6):
        await ledger.grant(runtime.database, user_id=user.id, points=1, ref=f"p{number}")
    month = datetime.now(UTC) - timedelta(days=30)
    statement = await open_statement(runtime.database, user.id, month, None)
    pieces = []
    async for piece in statement_csv(runtime.database, statement, runtime.settings.zone):
        pieces.append(piece.decode("utf-8-sig"))
        assert runtime.database.readers.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await ledger.grant(runtime.database, user_id=user.id, points=100, ref=f"new{len(pieces)}")
    assert len(pieces) == 5  # the head, three pieces, and the closing balance
    lines = list(csv.DictReader(io.StringIO("".join(pieces), newline="")))
    assert tuple(lines[0]) == HEADER
    assert check_sums(lines) == (0, 6)


@pytest.mark.worlds("embedded")
async def test_an_error_cuts_the_statement_off_visibly(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement_module, "RETRY_SECONDS", 0.0)
    user = await make.user(points=5)
    month = datetime.now(UTC) - timedelta(days=30)
    statement = await open_statement(runtime.database, user.id, month, None)
    failures = 2

    def away(*_: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Unavailable
        return real(user.id)

    real = runtime.database.read_list
    monkeypatch.setattr(runtime.database, "read_list", away)
    pieces = [one async for one in statement_csv(runtime.database, statement, runtime.settings.zone)]
    assert b"closing" in pieces[-1], "a short outage is waited for"
    failures = 100
    received = statement_csv(runtime.database, statement, runtime.settings.zone)
    assert b"opening" in await anext(received)
    with pytest.raises(Unavailable):
        await anext(received)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "2025-01-01", "to": "2026-01-02"}, "from"),
        ({"from": "2026-01-02", "to": "2026-01-01"}, "from"),
        ({"from": "1970-01-01"}, "from"),
        ({"to": "9999-12-31T23:59:59Z"}, "to"),
        ({"from": "x"}, "from"),
        ({"format": "pdf"}, "format"),
    ],
)
@pytest.mark.worlds("embedded")
async def test_a_wrong_period_is_refused(make: Maker, query: dict[str, str], field: str) -> None:
    user = await make.user()
    answer = await make.api.get(RECORDS, params={"format": "csv"} | query, headers=user.headers)
    status, code, message = refusal(answer)
    assert (status, code) == (400, "INVALID_PARAMETER")
    assert field in message


@pytest.mark.worlds("embedded")
async def test_a_year_is_not_too_long(make: Maker) -> None:
    user = await make.user(points=1)
    assert check_sums(await lines_of(make, user, **{"from": "2024-01-01", "to": "2024-12-31"})) == (0, 0)
