"""A stream ends at once with the tokens of its user, although nothing is sent on it."""

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.api.push import connections
from app.runtime import Runtime
from app.tasks import stream
from tests.support.log_ins import PASSWORD, sign_up
from tests.support.makers import Maker
from tests.support.streams import Door

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded", "real")]


@pytest.mark.parametrize("end", ["logout-all", "password", "ban"])
async def test_an_idle_stream_ends_with_the_tokens(
    runtime: Runtime, door: Door, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 3600)  # no ping ends it
    session, other = await sign_up(runtime), await sign_up(runtime, "bobby")
    mine = {"Authorization": f"Bearer {session.access_token}"}
    async with (
        door.payload(session.access_token) as socket,
        door.events(**mine) as events,
        door.payload(other.access_token) as stranger,
        httpx.AsyncClient(base_url=door.origin, timeout=60, trust_env=False) as client,
    ):
        if end == "logout-all":
            assert (await client.post("/user/auth/logout-all", headers=mine)).status_code == 200
        elif end == "password":
            body = {"oldPassword": PASSWORD, "newPassword": "another-long-password"}
            assert (await client.post("/user/auth/password", json=body, headers=mine)).status_code == 200
        else:  # as `gateway users ban` does it
            await set_status(runtime.database, COMMAND_LINE, session.user_id, "banned")
            runtime.pubsub.recheck(session.user_id)
        assert await socket.code() == 4401
        assert await events.next_block() == {"event": "end", "data": '{"code":4401}'}
        runtime.pubsub.recheck(other.user_id)
        assert await stranger.next() == {"type": "ping"}, "another user's stream goes on"


async def test_nothing_is_sent_after_a_ban_whose_hint_was_lost(
    make: Maker, runtime: Runtime, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 3600)
    monkeypatch.setattr(connections, "REAUTHENTICATE_SECONDS", 0)
    user = await make.user(points=60)
    async with door.payload(user.token) as socket:
        task_no = await make.task_no(user)
        runtime.pubsub.publish(user.id, task_no)
        assert (await socket.next())["data"]["taskNo"] == task_no
        await set_status(runtime.database, COMMAND_LINE, user.id, "banned")
        async with runtime.database.begin() as connection:
            await connection.exec_driver_sql("UPDATE tasks SET progress = 7")
        runtime.pubsub.publish(user.id, task_no)
        with pytest.raises(ConnectionClosed) as ended:
            await socket.next()
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 4401
