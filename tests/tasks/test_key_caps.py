"""The caps of API keys and of their end users hold, however the submits come, and an end gives back what it must."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, update

from app.accounts.keys.caps import Caps
from app.accounts.keys.user_keys import change_key, rotate_key
from app.catalog.models import set_model
from app.engine.claim import TaskFilter, claim_due
from app.engine.finish import finish_task
from app.engine.transitions import Complete, Fail
from app.errors import KeyBudgetExceeded, TaskFailure, TooManyTasks
from app.points.audit.checks import audit
from app.runtime import Runtime, open_runtime
from app.tables import api_keys, key_budgets
from app.tasks.cancel import cancel_task
from app.tasks.submit import submit as submit_module
from tests.support.keys import COST, Key, counters, key_of, submit_by
from tests.support.lots import lot
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds(usually=REAL)]

RESULT = [{"key": "results/x/0.png", "type": "image/png", "width": 1, "height": 1, "bytes": 1}]
STEPS = TaskFilter(("prepare", "submit"))


@pytest.fixture
def singles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each submit that had a transaction of its own."""
    seen: list[int] = []
    real = submit_module.store_single

    async def store_single(*args: Any) -> Any:
        seen.append(1)
        return await real(*args)

    monkeypatch.setattr(submit_module, "store_single", store_single)
    return seen


async def at_once(runtime: Runtime, user: User, key: Key, number: int, **fields: Any) -> Counter[type]:
    """The kinds of answers to so many submits of the same moment."""
    submits = [submit_by(runtime, user, key, f"猫 {place}", **fields) for place in range(number)]
    return Counter(type(one) for one in await asyncio.gather(*submits, return_exceptions=True))


async def finish_one(runtime: Runtime, end: Complete | Fail) -> None:
    (task,) = await claim_due(runtime.database, STEPS, 1, 30)
    assert await finish_task(runtime, task, end, [])


@contextmanager
def statements_of(runtime: Runtime) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(*arguments: Any) -> None:
        if not any(table in arguments[2] for table in ("circuit_breakers", "model_durations")):
            seen.append(arguments[2])  # a process reads these two tables by the clock

    engines = [runtime.database.writers.sync_engine, runtime.database.readers.sync_engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield seen
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)


# ------------------------------------------------------------------ a hundred at once


@pytest.mark.parametrize("cap", ["daily", "monthly", "total"])
async def test_a_hundred_at_once_on_a_cap_for_ten_make_exactly_ten(
    make: Maker, runtime: Runtime, singles: list[int], cap: str
) -> None:
    user = await make.user(points=10_000)
    key = await key_of(runtime, user, **{cap: 10 * COST})
    assert await at_once(runtime, user, key, 100) == {dict: 10, KeyBudgetExceeded: 90}
    assert singles == [], "they shared transactions"
    assert await counters(runtime, key) == (300, 300, 300, 10)
    assert await make.balance(user) == (9_700, 300)
    assert await audit(runtime.database) == []


async def test_the_same_where_each_has_a_transaction_of_its_own(
    make: Maker, runtime: Runtime, singles: list[int]
) -> None:
    user = await make.user()
    await lot(runtime.database, user.id, 10_000, 24, "lot")
    key = await key_of(runtime, user, daily=10 * COST, max_tasks=50)
    assert await at_once(runtime, user, key, 100) == {dict: 10, KeyBudgetExceeded: 90}
    assert len(singles) == 100
    assert await counters(runtime, key) == (300, 300, 300, 10)
    assert await make.balance(user) == (9_700, 300)
    assert await audit(runtime.database) == []


async def test_the_same_on_two_processes(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10_000)
    key = await key_of(runtime, user, total=10 * COST)
    async with open_runtime(runtime.settings) as other:
        both = await asyncio.gather(at_once(runtime, user, key, 30), at_once(other, user, key, 30))
    assert both[0] + both[1] == {dict: 10, KeyBudgetExceeded: 50}
    assert await counters(runtime, key) == (300, 300, 300, 10)


async def test_refunds_in_between_free_the_cap_and_no_more(make: Maker, runtime: Runtime) -> None:
    """Each cancelled task makes room for one more, so at any time at most ten are charged."""
    user = await make.user(points=10_000)
    key = await key_of(runtime, user, daily=10 * COST)
    accepted = 0

    async def submit_and_cancel(number: int) -> None:
        nonlocal accepted
        try:
            row = await submit_by(runtime, user, key, f"猫 {number}")
        except KeyBudgetExceeded:
            return
        accepted += 1
        if number % 2:
            await cancel_task(runtime, user.id, row["task_no"])

    await asyncio.gather(*[submit_and_cancel(number) for number in range(60)])
    for number in range(60, 90):
        await submit_and_cancel(number)
    today, _, total, running = await counters(runtime, key)
    assert (today, total, running) == (300, 300, 10)
    assert accepted > 10
    assert await make.balance(user) == (9_700, 300)
    assert await audit(runtime.database) == []


# ------------------------------------------------------------------ each cap


async def test_a_refusal_names_the_cap_and_charges_nothing(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    for cap, name in (("daily", "每日额度 50"), ("monthly", "每月额度 50"), ("total", "总额度 50")):
        key = await key_of(runtime, user, **{cap: 50})
        await submit_by(runtime, user, key)
        before = await make.balance(user)
        with pytest.raises(KeyBudgetExceeded, match=f"积分不足: 超出密钥的{name}，已用 30，本次需要 30"):
            await submit_by(runtime, user, key)
        assert await make.balance(user) == before
        assert await counters(runtime, key) == (30, 30, 30, 1)


async def test_running_tasks_are_bounded_and_an_end_makes_room(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    key = await key_of(runtime, user, max_tasks=2)
    assert await at_once(runtime, user, key, 5) == {dict: 2, TooManyTasks: 3}
    with pytest.raises(TooManyTasks, match="密钥进行中的任务过多，最多 2 个"):
        await submit_by(runtime, user, key)
    await finish_one(runtime, Complete(RESULT))
    assert await counters(runtime, key) == (60, 60, 60, 1)
    await submit_by(runtime, user, key)
    await finish_one(runtime, Fail(TaskFailure.UPSTREAM_FAILED))
    assert await counters(runtime, key) == (60, 60, 60, 1)
    assert await audit(runtime.database) == []


async def test_free_tasks_count_only_as_running(make: Maker, runtime: Runtime, singles: list[int]) -> None:
    await set_model(runtime.database, IMAGE_MODEL, {"points_cost": 0, "task_type": "text_to_image"})
    user = await make.user()
    key = await key_of(runtime, user, daily=0, max_tasks=3)
    rows = [await submit_by(runtime, user, key, model=IMAGE_MODEL) for _ in range(3)]
    assert singles == [1], "the first one makes the account"
    assert await counters(runtime, key) == (0, 0, 0, 3)
    with pytest.raises(TooManyTasks):
        await submit_by(runtime, user, key, model=IMAGE_MODEL)
    await cancel_task(runtime, user.id, rows[0]["task_no"])
    await finish_one(runtime, Complete(RESULT))
    assert await counters(runtime, key) == (0, 0, 0, 1)
    assert await audit(runtime.database) == []


async def test_a_repeat_with_an_idempotency_key_counts_once(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    key = await key_of(runtime, user, total=COST)
    rows = await asyncio.gather(*[submit_by(runtime, user, key, idempotency="k") for _ in range(20)])
    assert len({row["task_no"] for row in rows}) == 1
    assert await counters(runtime, key) == (30, 30, 30, 1)


async def test_a_lower_cap_holds_for_the_next_submit_and_refunds_still_work(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    key = await key_of(runtime, user)
    rows = [await submit_by(runtime, user, key) for _ in range(3)]
    await change_key(runtime.database, user.id, key.id, {}, {"daily_cap": COST})
    with pytest.raises(KeyBudgetExceeded):
        await submit_by(runtime, user, key)
    for row in rows:
        await cancel_task(runtime, user.id, row["task_no"])
    assert await counters(runtime, key) == (0, 0, 0, 0)
    await submit_by(runtime, user, key)


async def test_a_change_of_caps_beside_submits_makes_no_deadlock(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10_000)
    key = await key_of(runtime, user, total=10 * COST)
    changes = [change_key(runtime.database, user.id, key.id, {"name": f"{n}"}, {"max_tasks": n}) for n in range(50, 60)]
    answers, *_ = await asyncio.gather(at_once(runtime, user, key, 40), *changes)
    assert answers == {dict: 10, KeyBudgetExceeded: 30}


# ------------------------------------------------------------------ days and months


async def test_the_day_and_the_month_roll_over_and_the_total_does_not(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    key = await key_of(runtime, user, daily=COST, monthly=2 * COST, total=3 * COST)
    await submit_by(runtime, user, key)
    with pytest.raises(KeyBudgetExceeded, match="每日"):
        await submit_by(runtime, user, key)
    today = (await execute(runtime, "SELECT MAX(day) FROM key_budgets")).scalar_one()
    await move_day(runtime, f"{today[:7]}-00")  # before any day of this month
    await submit_by(runtime, user, key)
    assert await counters(runtime, key) == (30, 60, 60, 2)
    await move_day(runtime, f"{today[:7]}-00")
    with pytest.raises(KeyBudgetExceeded, match="每月"):
        await submit_by(runtime, user, key)
    await move_day(runtime, "2020-01-31")
    await submit_by(runtime, user, key)
    assert await counters(runtime, key) == (30, 30, 90, 3)
    await move_day(runtime, "2020-01-31")
    with pytest.raises(KeyBudgetExceeded, match="总"):
        await submit_by(runtime, user, key)
    assert await audit(runtime.database) == []


async def move_day(runtime: Runtime, day: str) -> None:
    """As if the newest charge had been made on this day."""
    async with runtime.database.begin() as connection:
        await connection.execute(update(key_budgets).values(day=day))


@pytest.mark.parametrize(
    ("created", "left"),
    [("today", (0, 0, 0, 0)), ("this month", (30, 0, 0, 0)), ("2020-01-15 12:00:00.000", (30, 30, 0, 0))],
)
@pytest.mark.parametrize("how", ["cancel", "finish"])
async def test_a_refund_gives_back_the_day_and_month_of_its_charge_only(
    make: Maker, runtime: Runtime, created: str, left: tuple[int, ...], how: str
) -> None:
    """The task is moved to an earlier day; the counters stay those of today."""
    user = await make.user(points=1_000)
    key = await key_of(runtime, user)
    row = await submit_by(runtime, user, key)
    if created == "this month":
        await move_day(runtime, f"{row['created_at'].astimezone(runtime.settings.zone):%Y-%m}-99")
    elif created != "today":
        await execute(runtime, f"UPDATE tasks SET created_at = '{created}'")
    if how == "cancel":
        await cancel_task(runtime, user.id, row["task_no"])
    else:
        await finish_one(runtime, Fail(TaskFailure.TIMED_OUT))
    assert await counters(runtime, key) == left


# ------------------------------------------------------------------ who shares a budget


async def test_rotated_keys_share_one_cap(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10_000)
    old = await key_of(runtime, user, daily=10 * COST)
    text, row, _ = await rotate_key(runtime.database, user.id, old.id, 24)
    new = Key(row.id, row.budget_id, text)
    both = await asyncio.gather(at_once(runtime, user, old, 30), at_once(runtime, user, new, 30))
    assert both[0] + both[1] == {dict: 10, KeyBudgetExceeded: 50}
    assert await counters(runtime, new) == await counters(runtime, old) == (300, 300, 300, 10)


async def test_two_keys_of_a_user_and_its_jwt_have_caps_of_their_own(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10_000)
    keys = [await key_of(runtime, user, daily=2 * COST) for _ in range(2)]
    for key in keys:
        assert await at_once(runtime, user, key, 5) == {dict: 2, KeyBudgetExceeded: 3}
    for _ in range(5):
        await submit_by(runtime, user, None)
    assert [await counters(runtime, key) for key in keys] == [(60, 60, 60, 2)] * 2


async def test_each_end_user_has_the_caps_of_the_key(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=10_000)
    key = await key_of(runtime, user, end_users=Caps(daily=2 * COST, max_tasks=5), daily=5 * COST)
    other = await key_of(runtime, user)
    names = ["alice"] * 10 + ["Alice"] * 10 + ["小明"] * 10
    submits = [submit_by(runtime, user, key, f"猫 {place}", end_user=name) for place, name in enumerate(names)]
    submits += [submit_by(runtime, user, other, end_user="alice")]
    answers = [type(one) for one in await asyncio.gather(*submits, return_exceptions=True)]
    assert [answers[start : start + 10].count(dict) for start in (0, 10, 20)] == [2, 2, 1], "the key's own cap is five"
    assert answers[30] is dict
    assert await counters(runtime, key, "alice") == (60, 60, 60, 2)
    assert await counters(runtime, other, "alice") == (30, 30, 30, 1)
    assert await counters(runtime, key) == (150, 150, 150, 5)
    await change_key(runtime.database, user.id, key.id, {}, {"daily_cap": None})
    with pytest.raises(KeyBudgetExceeded, match="终端用户的每日额度 60"):
        await submit_by(runtime, user, key, end_user="alice")
    assert await audit(runtime.database) == []


async def test_an_end_gives_back_to_the_end_user_too(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    key = await key_of(runtime, user, end_users=Caps(total=COST, max_tasks=1))
    row = await submit_by(runtime, user, key, end_user="alice")
    await cancel_task(runtime, user.id, row["task_no"])
    assert await counters(runtime, key, "alice") == (0, 0, 0, 0)
    await submit_by(runtime, user, key, end_user="alice")
    await finish_one(runtime, Complete(RESULT))
    assert await counters(runtime, key, "alice") == (30, 30, 30, 0)
    assert await audit(runtime.database) == []


# ------------------------------------------------------------------ keys of before, and who needs no budget


async def test_a_key_of_before_gets_its_budget_at_its_first_submit(
    make: Maker, runtime: Runtime, singles: list[int]
) -> None:
    user = await make.user(points=10_000)
    key = await key_of(runtime, user)
    async with runtime.database.begin() as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == key.id).values(budget_id=None))
    assert await at_once(runtime, user, key, 10) == {dict: 10}
    assert singles, "the budget is made in a transaction of its own"
    async with runtime.database.read() as connection:
        budgets = (await connection.execute(api_keys.select().where(api_keys.c.id == key.id))).one().budget_id
    assert await counters(runtime, Key(key.id, budgets, "")) == (300, 300, 300, 10)
    assert await audit(runtime.database) == []


async def test_a_submit_without_a_key_asks_nothing_about_budgets(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=1_000)
    key = await key_of(runtime, user)
    found = []
    for used, fields in ((None, {}), (None, {"end_user": "alice"}), (key, {}), (key, {"end_user": "alice"})):
        with statements_of(runtime) as statements:
            row = await submit_by(runtime, user, used, **fields)
        with statements_of(runtime) as at_end:
            await cancel_task(runtime, user.id, row["task_no"])
        found.append((len(statements), len([one for one in statements if "budgets" in one]), len(at_end)))
    jwt, _, by_key, by_end_user = found
    assert found[0] == found[1]
    assert jwt[1] == 0
    assert (by_key[0] - jwt[0], by_key[1], by_key[2] - jwt[2]) == (2, 2, 2), "one SELECT and one UPDATE more each"
    assert (by_end_user[0] - jwt[0], by_end_user[2] - jwt[2]) == (4, 3)


async def test_a_batch_of_many_keys_writes_its_budgets_in_one_statement(make: Maker, runtime: Runtime) -> None:
    users = [await make.user(points=100) for _ in range(20)]
    keys = [await key_of(runtime, user) for user in users]
    with statements_of(runtime) as statements:
        await asyncio.gather(
            *[
                submit_by(runtime, user, key, end_user=f"u{place % 3}")
                for place, (user, key) in enumerate(zip(users, keys, strict=True))
            ]
        )
    assert len([one for one in statements if "budgets" in one]) == 4
    assert [await counters(runtime, key) for key in keys] == [(30, 30, 30, 1)] * 20
    assert await audit(runtime.database) == []


async def test_an_end_is_not_refused_by_a_wrong_counter(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=100)
    key = await key_of(runtime, user)
    row = await submit_by(runtime, user, key)
    await execute(runtime, "UPDATE key_budgets SET spent_today = 0, spent_this_month = 0, spent_total = 0")
    await execute(runtime, "UPDATE key_budgets SET running_tasks = 0")
    assert {one.invariant for one in await audit(runtime.database)} == {"I17"}
    await cancel_task(runtime, user.id, row["task_no"])
    assert await make.balance(user) == (100, 0)
    assert await counters(runtime, key) == (0, 0, 0, 0)
