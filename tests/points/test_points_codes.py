"""Redeem codes: each is used once, also in parallel and however it was typed; refusals do not help guessing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.accounts.api_keys import create_key
from app.database import CommitUnknown, Connection, Database
from app.database import connections as sessions_module
from app.errors import CodeNotRedeemable, GatewayError, InvalidParameter, NotFound
from app.points.balance import get_balance, list_records
from app.points.redeem_codes import ALPHABET, create_codes, digest_code, list_codes, new_code, redeem_code, void_batch
from app.runtime import Runtime
from app.tables import redeem_codes
from tests.support.lots import in_hours, remaining
from tests.support.makers import Maker, User
from tests.support.responses import data, refusal
from tests.support.worlds import execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]
REDEEM = "/user/points/redeem"


async def one_code(database: Database, **options: Any) -> str:
    return (await create_codes(database, **({"count": 1, "points": 50, "batch": "b"} | options)))[0]


async def redeem(make: Maker, user: User, code: Any, **more: Any) -> httpx.Response:
    return await make.api.post(REDEEM, json={"code": code, **more}, headers=user.headers)


async def test_a_code_is_worth_its_points_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=7)
    code = await one_code(runtime.database)
    assert data(await redeem(make, user, code)) == {"points": 50, "balance": 57, "expireTime": None}
    assert await make.balance(user) == (57, 0)
    other = await make.user()
    assert refusal(await redeem(make, other, code)) == (400, "CODE_NOT_REDEEMABLE", "兑换码已被使用")
    assert await make.balance(other) == (0, 0)
    rows, _ = await list_records(runtime.database, user.id, kind=None, task_no=None, page=1, size=1)
    assert (rows[0]["kind"], rows[0]["points"], rows[0]["remark"]) == ("grant", 50, f"兑换码 {code[:5]}")


async def test_its_points_may_expire_after_some_days(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    payload = data(await redeem(make, user, await one_code(runtime.database, lot_days=30)))
    expires = (await get_balance(runtime.database, user.id)).expires
    assert expires is not None
    assert abs(expires - in_hours(30 * 24)) < timedelta(minutes=1)
    assert payload["expireTime"] == expires.astimezone(runtime.settings.zone).isoformat(timespec="seconds")[:19]
    assert await remaining(runtime.database) == [50]


async def test_forty_at_once_use_it_once(make: Maker, runtime: Runtime) -> None:
    users = [await make.user() for _ in range(10)]
    code = await one_code(runtime.database)

    async def one(user: User) -> int:
        try:
            return await redeem_code(runtime.database, user.id, code)
        except CodeNotRedeemable:
            return 0

    won = await asyncio.gather(*[one(users[number % 10]) for number in range(40)])
    assert sorted(won) == [0] * 36 + [50] * 4, "one user has the code, and each repeat says so"
    assert sorted([(await make.balance(user))[0] for user in users]) == [0] * 9 + [50]


async def test_a_repeat_by_its_user_has_the_same_answer(make: Maker, runtime: Runtime) -> None:
    """One code gives permanent points, one points for some days. Both codes have expired at the repeat."""
    user, other = await make.user(points=7), await make.user()
    made = [await one_code(runtime.database, lot_days=days, expires=in_hours(1)) for days in (None, 30)]
    for code in made:
        first = await redeem(make, user, code)
        await execute(runtime, "UPDATE redeem_codes SET expires_at = created_at WHERE redeemed_by IS NOT NULL")
        for typed in (code, code.lower().replace("-", "")):
            assert data(await redeem(make, user, typed)) == data(first)
        assert refusal(await redeem(make, other, code))[2] == "兑换码已被使用"
    _, total = await list_records(runtime.database, user.id, kind="grant", task_no=None, page=1, size=9)
    assert total == 3
    assert await make.balance(user) == (107, 0)
    assert await make.balance(other) == (0, 0)


@pytest.mark.parametrize("users", [1, 20])
async def test_twenty_at_once_by_one_user_or_by_twenty(make: Maker, runtime: Runtime, users: int) -> None:
    requesting = [await make.user() for _ in range(users)]
    code = await one_code(runtime.database, lot_days=3)
    work = [redeem_code(runtime.database, requesting[number % users].id, code) for number in range(20)]
    said = await asyncio.gather(*work, return_exceptions=True)
    won = [one for one in said if one == 50]
    assert len(won) == (20 if users == 1 else 1)
    assert {str(one) for one in said if one != 50} <= {"兑换码已被使用"}
    assert sorted([(await make.balance(user))[0] for user in requesting]) == [0] * (users - 1) + [50]
    assert await remaining(runtime.database) == [50]


@pytest.mark.parametrize("happened", [True, False])
async def test_after_an_unanswered_commit_the_row_is_read_at_once(
    make: Maker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, happened: bool
) -> None:
    user, code = await make.user(), await one_code(runtime.database)
    real = sessions_module._commit

    async def unanswered(connection: Connection) -> None:
        if happened:
            await real(connection)
        raise CommitUnknown

    with monkeypatch.context() as patched:
        patched.setattr(sessions_module, "_commit", unanswered)
        answer = await redeem(make, user, code)
    if happened:
        assert data(answer) == {"points": 50, "balance": 50, "expireTime": None}
    else:
        assert refusal(answer)[:2] == (503, "UNAVAILABLE")
        assert await make.balance(user) == (0, 0)
    assert data(await redeem(make, user, code)) == {"points": 50, "balance": 50, "expireTime": None}


async def test_many_codes_of_one_user_at_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    made = await create_codes(runtime.database, count=20, points=5, batch="b", lot_days=3)
    await asyncio.gather(*[redeem_code(runtime.database, user.id, code) for code in made * 2], return_exceptions=True)
    assert await make.balance(user) == (100, 0)


async def test_parallel_voiding_and_redeeming_agree(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    made = await create_codes(runtime.database, count=20, points=5, batch="b")
    work = [redeem_code(runtime.database, user.id, code) for code in made]
    *won, voided = await asyncio.gather(*work, void_batch(runtime.database, "b"), return_exceptions=True)
    redeemed = sum(one == 5 for one in won)
    assert redeemed + voided == 20
    assert await make.balance(user) == (5 * redeemed, 0)


async def test_a_voided_batch_keeps_its_time(runtime: Runtime) -> None:
    await create_codes(runtime.database, count=3, points=5, batch="b")
    assert await void_batch(runtime.database, "b") == 3
    await execute(runtime, "UPDATE redeem_codes SET voided_at = '2026-01-01 00:00:00.000000'")
    assert await void_batch(runtime.database, "b") == 0
    async with runtime.database.read() as connection:
        assert set(await connection.scalars(select(redeem_codes.c.voided_at))) == {datetime(2026, 1, 1, tzinfo=UTC)}


@pytest.mark.parametrize("case", ["unknown", "void", "used", "expired"])
async def test_each_cause_has_its_text_and_guesses_get_none(make: Maker, runtime: Runtime, case: str) -> None:
    user, other = await make.user(), await make.user()
    code = await one_code(runtime.database)
    if case == "unknown":
        code = new_code()
    elif case == "void":
        assert await void_batch(runtime.database, "b") == 1
    elif case == "used":
        await redeem_code(runtime.database, other.id, code)
        assert await void_batch(runtime.database, "b") == 0, "what was redeemed stays redeemed"
    else:
        code = await one_code(runtime.database, expires=in_hours(1))
        await execute(runtime, "UPDATE redeem_codes SET expires_at = created_at WHERE expires_at IS NOT NULL")
    text = {"unknown": "兑换码无效", "void": "兑换码无效", "used": "兑换码已被使用", "expired": "兑换码已过期"}[case]
    assert refusal(await redeem(make, user, code)) == (400, "CODE_NOT_REDEEMABLE", text)
    assert await make.balance(user) == (0, 0)


@pytest.mark.parametrize("code", ["", "x" * 101, 5, None, True, ["a"]])
@pytest.mark.worlds("embedded")
async def test_a_code_that_is_no_text_is_refused(make: Maker, code: Any) -> None:
    assert refusal(await redeem(make, await make.user(), code))[:2] == (400, "INVALID_PARAMETER")


@pytest.mark.worlds("embedded")
async def test_an_unknown_field_is_refused(make: Maker, runtime: Runtime) -> None:
    user, code = await make.user(), await one_code(runtime.database)
    assert refusal(await redeem(make, user, code, points=500))[:2] == (400, "INVALID_PARAMETER")
    assert data(await redeem(make, user, code))["balance"] == 50


async def test_ten_tries_a_minute(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(), await make.user()
    answers = [await redeem(make, user, new_code()) for _ in range(22)]  # a new minute may begin during the test
    limited = [answer for answer in answers if answer.status_code == 429]
    assert limited
    assert int(limited[0].headers["Retry-After"]) <= 60
    assert 10 <= sum(answer.status_code == 400 for answer in answers) <= 20
    assert (await redeem(make, other, new_code())).status_code == 400
    assert await make.balance(user) == (0, 0)


async def test_who_may_redeem(make: Maker, runtime: Runtime) -> None:
    user, code = await make.user(), await one_code(runtime.database)
    assert refusal(await make.api.post(REDEEM, json={"code": code}))[:2] == (401, "UNAUTHENTICATED")
    narrow = {"X-API-Key": await create_key(runtime.database, user.id, scopes=("tasks",))}
    assert refusal(await make.api.post(REDEEM, json={"code": code}, headers=narrow))[:2] == (403, "FORBIDDEN")
    new = user.key_headers  # it has every scope that users give their keys, and none of them redeems
    assert refusal(await make.api.post(REDEEM, json={"code": code}, headers=new))[:2] == (403, "FORBIDDEN")
    former = {"X-API-Key": await create_key(runtime.database, user.id, scopes=("points",))}
    for headers in (former, user.headers):
        assert data(await make.api.post(REDEEM, json={"code": code}, headers=headers))["points"] == 50


# ------------------------------------------------------------------ the codes themselves


def test_a_code_has_its_bits_and_no_ambiguous_letter() -> None:
    made = {new_code() for _ in range(500)}
    assert len(made) == 500
    for code in made:
        groups = code.split("-")
        assert [len(group) for group in groups] == [5] * 5
        assert set("".join(groups)) <= set(ALPHABET)
    assert len(ALPHABET) == 32  # 25 characters of 5 bits, 20 of them never shown again
    assert not set("ILOU") & set(ALPHABET)


@pytest.mark.parametrize(
    "typed",
    [
        "abcde-01234-fghjk-mnpqr-stvwx",
        "ABCDE01234FGHJKMNPQRSTVWXYZ"[:-2],
        "  abcde 01234\tfghjk mnpqr stvwx\n",
        "ABCDE—O1234—FGHJK—MNPQR—STVWX",
        "abcde-oi234-fghjk-mnpqr-stvwx",
        "abcde-OL234-fghjk-mnpqr-stvwx",
        "ＡＢＣＤＥ－０１２３４－ＦＧＨＪＫ－ＭＮＰＱＲ－ＳＴＶＷＸ",
    ],
)
def test_a_code_is_found_however_it_was_typed(typed: str) -> None:
    assert digest_code(typed) == digest_code("ABCDE-01234-FGHJK-MNPQR-STVWX") is not None


@pytest.mark.parametrize(
    "typed", ["", "ABCDE", "ABCDE-01234-FGHJK-MNPQR-STVW", "ABCDE-01234-FGHJK-MNPQR-STVWU", "五" * 25]
)
def test_an_impossible_code_is_none(typed: str) -> None:
    assert digest_code(typed) is None


async def test_no_code_is_stored_in_plain_text(runtime: Runtime) -> None:
    code = await one_code(runtime.database, batch="secret")
    async with runtime.database.read() as connection:
        row = (await connection.execute(select(redeem_codes))).one()
    plain = code.replace("-", "")
    assert not any(shape in str(tuple(row)) for shape in (code, plain, code[6:11]))
    assert row.prefix == code[:5]


async def test_the_list_shows_the_state_of_each_code(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    for batch, options in (("a", {}), ("b", {"expires": in_hours(1)}), ("c", {"lot_days": 7}), ("d", {})):
        made = await one_code(runtime.database, batch=batch, **options)
        if batch == "c":
            await redeem_code(runtime.database, user.id, made)
    await execute(runtime, "UPDATE redeem_codes SET expires_at = created_at WHERE batch = 'b'")
    await void_batch(runtime.database, "d")
    listed, _ = await list_codes(runtime.database, limit=9)
    rows = {row["batch"]: row for row in listed}
    assert {batch: row["status"] for batch, row in rows.items()} == {
        **{"a": "unused", "b": "expired", "c": "redeemed", "d": "void"},
    }
    assert (rows["c"]["redeemed_by"], rows["c"]["lot_days"]) == (user.id, 7)
    listed, total = await list_codes(runtime.database, "a", limit=9)
    assert ([row["batch"] for row in listed], total) == (["a"], 1)
    listed, total = await list_codes(runtime.database, limit=3)
    assert ([row["batch"] for row in listed], total) == (["d", "c", "b"], 4), "the newest first"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"count": 0}, InvalidParameter),
        ({"count": 10_001}, InvalidParameter),
        ({"points": 0}, InvalidParameter),
        ({"expires": in_hours(-1)}, InvalidParameter),
        ({"expires": datetime(9999, 6, 1, tzinfo=UTC)}, InvalidParameter),
        ({"points": 2**53 + 1}, InvalidParameter),
        ({"batch": ""}, InvalidParameter),
        ({"batch": " x"}, InvalidParameter),
        ({"lot_days": 0}, InvalidParameter),
        ({"lot_days": 100_000}, InvalidParameter),
    ],
)
@pytest.mark.worlds("embedded")
async def test_invalid_codes_are_refused(runtime: Runtime, options: dict[str, Any], error: type[GatewayError]) -> None:
    with pytest.raises(error):
        await one_code(runtime.database, **options)
    assert await list_codes(runtime.database, limit=1) == ([], 0)
    with pytest.raises(NotFound):
        await void_batch(runtime.database, "b")


async def test_an_account_at_its_maximum_leaves_the_code_usable(make: Maker, runtime: Runtime) -> None:
    rich, poor = await make.user(points=2**53), await make.user()
    code = await one_code(runtime.database)
    assert refusal(await redeem(make, rich, code))[:2] == (400, "INVALID_PARAMETER")
    assert data(await redeem(make, poor, code))["balance"] == 50
