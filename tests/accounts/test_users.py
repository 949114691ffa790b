"""New users get ids of our own range, also when many are made at the same moment or odd ids were imported."""

import asyncio

import pytest

from app.accounts import users
from app.accounts.credentials import MAX_USER_ID
from app.accounts.users import MAX_OWN_ID, create_user
from app.errors import InvalidParameter
from app.runtime import Runtime, open_runtime
from app.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]


async def test_twenty_at_once_all_get_an_id(runtime: Runtime) -> None:
    made = [create_user(runtime.database, username=f"user-{number}") for number in range(20)]
    assert len(set(await asyncio.gather(*made))) == 20


async def test_twenty_in_processes_of_their_own_all_get_an_id(runtime: Runtime, settings: Settings) -> None:
    """Each with pools of its own, as processes have them."""

    async def make_one() -> int:
        async with open_runtime(settings) as own:
            return await create_user(own.database)

    assert len(set(await asyncio.gather(*[make_one() for _ in range(20)]))) == 20


async def test_of_equal_names_at_once_one_is_taken(runtime: Runtime) -> None:
    made = [create_user(runtime.database, username="same") for _ in range(5)]
    results = await asyncio.gather(*made, return_exceptions=True)
    assert [type(result) for result in results].count(int) == 1
    refused = [str(result) for result in results if isinstance(result, InvalidParameter)]
    assert refused == ["参数错误: username 已存在"] * 4


@pytest.mark.parametrize(
    "imported", [9007199254740990, 2**53 - 1, 2**31 - 1, 17563793187762127, MAX_OWN_ID - 1, MAX_OWN_ID, MAX_USER_ID]
)
async def test_an_imported_id_leaves_ids_for_others(runtime: Runtime, imported: int) -> None:
    assert await create_user(runtime.database, user_id=imported) == imported
    ids = [await create_user(runtime.database) for _ in range(5)]
    ids += await asyncio.gather(*[create_user(runtime.database) for _ in range(5)])
    assert len(set(ids)) == 10
    assert all(0 < one <= MAX_OWN_ID for one in ids)
    with pytest.raises(InvalidParameter, match="id 已存在"):
        await create_user(runtime.database, user_id=imported)


async def test_a_draw_that_always_collides_ends(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = await create_user(runtime.database)

    async def same(*_: object) -> int:
        return taken

    monkeypatch.setattr(users, "_draw_id", same)
    with pytest.raises(users.Unavailable):
        await create_user(runtime.database)
