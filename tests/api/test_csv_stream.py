"""A statement whose reader stops: it waits without a connection to the database, and goes on where it stopped."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from app.reports import statement
from app.runtime import Runtime
from app.tables import points_accounts, points_ledger
from tests.support.makers import Maker, User
from tests.support.streams import Door
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
ENTRIES = 40_000
PATH = "/user/points/consumption/records?format=csv"


async def add_entries(runtime: Runtime, user: User) -> None:
    now = datetime.now(UTC) - timedelta(hours=1)
    common = {"user_id": user.id, "kind": "grant", "points": 1, "held": 0, "remark": "月度充值" * 20, "created_at": now}
    rows = [common | {"seq": seq, "balance_after": seq, "ref": f"e{seq}"} for seq in range(1, ENTRIES + 1)]
    account = {"user_id": user.id, "available": ENTRIES, "granted": ENTRIES, "seq": ENTRIES, "updated_at": now}
    async with runtime.database.begin() as connection:
        await connection.execute(insert(points_ledger), rows)
        await connection.execute(insert(points_accounts).values(**account))


async def test_a_reader_who_stops_holds_no_connection_and_misses_nothing(
    make: Maker, runtime: Runtime, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make.user()
    await add_entries(runtime, user)
    pieces, real = 0, statement._read_piece

    async def counted(*arguments: Any) -> Any:
        nonlocal pieces
        pieces += 1
        return await real(*arguments)

    monkeypatch.setattr(statement, "_read_piece", counted)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", door.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    request = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {user.token}\r\n\r\n"
    writer.write(request.encode())
    assert b" 200 " in await asyncio.wait_for(reader.readline(), 30)
    seen = -1

    async def has_stopped() -> bool:
        nonlocal seen
        before, seen = seen, pieces
        await asyncio.sleep(0.2)
        return before == pieces > 0

    await until("the gateway waits for its reader", has_stopped)
    assert pieces < ENTRIES // statement.PIECE_ROWS, "it does not read ahead"
    assert runtime.database.readers.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    text = await asyncio.wait_for(reader.read(), 60)
    assert text.count(b'"grant"') == ENTRIES
    assert f'"closing","",{ENTRIES}'.encode() in text
    assert text.endswith(b"0\r\n\r\n"), "the answer is complete"
    assert pieces == ENTRIES // statement.PIECE_ROWS
    writer.close()
