"""Each check of the audit finds its kind of damage. The tests damage the rows by SQL.

The databases allow every damage: they have our tables without CHECKs, unique indexes and triggers.
"""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import MetaData, PrimaryKeyConstraint, text
from sqlalchemy.ext.asyncio import create_async_engine

from app.catalog.models import set_model
from app.points import ledger
from app.points.audit.checks import CHECKS, audit
from app.points.audit.key_checks import KEY_CHECKS
from app.points.audit.lot_checks import CODE_CHECKS, LOT_CHECKS
from app.points.redeem_codes import create_codes, redeem_code
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tables import metadata
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from tests.support.keys import key_of
from tests.support.lots import later, lot, remaining
from tests.support.makers import TEXT_MODEL, User
from tests.support.worlds import REAL, execute

pytestmark = [pytest.mark.anyio, pytest.mark.both_worlds]

FREE_MODEL = "sc_free"
OVERDUE = ("I9", "every task ends within its deadline and a grace period")
ENDED = "step = 'done', next_run_at = NULL, completed_at = created_at"
ENTRY = "INSERT INTO points_ledger (user_id, seq, kind, points, held, balance_after, task_id, phase, ref, created_at)"
MOMENT = "'2026-01-01 00:00:00.000'"

Damages = dict[tuple[str, str], list[str]]

DAMAGE: Damages = {
    ("I1", "granted = available + held + spent + expired"): [
        "UPDATE points_accounts SET granted = granted + 1",
    ],
    ("I1", "an account equals the sum of its ledger entries"): [
        "UPDATE points_accounts SET available = available + 1, granted = granted + 1",
        "UPDATE points_accounts SET available = available - 1, held = held + 1",
        "UPDATE points_accounts SET available = available - 1, spent = spent + 1",
        "UPDATE points_accounts SET available = available - 1, expired = expired + 1",
        "UPDATE points_accounts SET seq = seq + 1",
        "UPDATE points_ledger SET points = points + 1 WHERE kind = 'grant'",
        "UPDATE points_ledger SET kind = 'adjust' WHERE kind = 'deduct'",
        "DELETE FROM points_ledger WHERE kind = 'grant'",
        "DELETE FROM points_ledger",
    ],
    ("I1", "every ledger entry belongs to an account"): [
        "DELETE FROM points_accounts",
    ],
    ("I1", "entries are numbered without a gap, and each holds the balance after it"): [
        "UPDATE points_ledger SET balance_after = balance_after + 1 WHERE kind = 'deduct'",
        "UPDATE points_ledger SET seq = 3 WHERE kind = 'deduct'",
    ],
    ("I2", "no amount of an account is negative"): [
        f"UPDATE points_accounts SET {name} = -1" for name in ("available", "held", "granted", "spent", "expired")
    ],
    ("I3", "a task with a price has exactly one deduction"): [
        "DELETE FROM points_ledger WHERE kind = 'deduct'",
        "UPDATE points_ledger SET task_id = 999 WHERE kind = 'deduct'",
        "UPDATE tasks SET points_cost = 5 WHERE points_cost = 0",
        f"{ENTRY} SELECT 1, 3, kind, points, held, 40, task_id, phase, 'x', created_at FROM points_ledger"
        " WHERE kind = 'deduct'",
    ],
    ("I3", "a deduction, settle or refund equals the price of its task, which is not free"): [
        "UPDATE points_ledger SET held = 29, points = -29 WHERE kind = 'deduct'",
        "UPDATE tasks SET points_cost = 29 WHERE points_cost = 30",
        "UPDATE tasks SET points_cost = 0",
        *(
            f"{ENTRY} SELECT 1, 3, {entry}, id, 'close', NULL, created_at FROM tasks WHERE points_cost = 0"
            for entry in ("'refund', 30, -30, 100", "'settle', 0, -30, 70", "'deduct', -30, 30, 40")
        ),
    ],
    ("I3", "the task of a ledger entry exists and has the same user"): [
        "UPDATE points_ledger SET task_id = 999 WHERE kind = 'deduct'",
        "UPDATE tasks SET user_id = 77",
        "DELETE FROM tasks",
    ],
    ("I4", "an ended task has exactly one settle or refund; a running task has none"): [
        f"UPDATE tasks SET status = 'failed', error_code = 'X', {ENDED}",
        f"{ENTRY} SELECT 1, 3, 'settle', 0, -30, 70, task_id, 'close', NULL, created_at FROM points_ledger"
        " WHERE kind = 'deduct'",
    ],
    ("I5", "a completed task is settled and has results; a failed task is refunded and has none"): [
        f"UPDATE tasks SET status = 'completed', {ENDED}",
        f"UPDATE tasks SET status = 'completed', results = '[]', {ENDED}",
        f"UPDATE tasks SET status = 'failed', {ENDED}",
        f"UPDATE tasks SET status = 'failed', error_code = 'X', results = '[1]', {ENDED}",
    ],
    ("I5", "status, step and completed_at agree"): [
        "UPDATE tasks SET status = 'failed', error_code = 'X'",
        "UPDATE tasks SET step = 'done'",
        "UPDATE tasks SET completed_at = created_at",
    ],
    ("I7", "no two tasks of a user have the same idempotency key"): [
        "UPDATE tasks SET idempotency_key = 'k'",
    ],
    ("I8", "no two tasks have the same SEE2AI job"): [
        "UPDATE tasks SET upstream_task_id = 'x'",
    ],
    ("I9", "a running task has a next_run_at"): [
        "UPDATE tasks SET next_run_at = NULL",
    ],
    OVERDUE: [
        f"UPDATE tasks SET deadline_at = {MOMENT}",
    ],
    ("I13", "every grant and adjustment has a reference, and no two entries have the same"): [
        f"{ENTRY} VALUES (1, 3, 'grant', 100, 0, 170, NULL, NULL, 'g', {MOMENT})",
        f"{ENTRY} VALUES (2, 1, 'grant', 100, 0, 100, NULL, NULL, 'g', {MOMENT})",
        f"{ENTRY} VALUES (1, 3, 'adjust', 1000, 0, 1070, NULL, NULL, NULL, {MOMENT})",
        "UPDATE points_ledger SET ref = NULL",
    ],
}
"""Damage to `books`: one grant of 100 with the reference `g`, a live task of 30, and a free one."""

LOT_DAMAGE: Damages = {
    ("I12", "a lot holds no negative amount and not more than was granted"): [
        "UPDATE points_lots SET granted = 0 WHERE ref = 'l'",
        "UPDATE points_lots SET remaining = -1 WHERE ref = 'l'",
        "UPDATE points_lots SET expired = -1 WHERE ref = 'l'",
        "UPDATE points_lots SET remaining = granted + 1 WHERE ref = 'l'",
        "UPDATE points_lots SET expired = granted - remaining + 1 WHERE ref = 'l'",
    ],
    ("I12", "the points in a user's lots are part of the available points"): [
        "UPDATE points_lots SET remaining = 1000, granted = granted + 1000 - remaining WHERE ref = 'l'",
        "UPDATE points_lots SET user_id = 2 WHERE ref = 'l'",
    ],
    ("I12", "a lot's granted points remain, have expired, are used by tasks or were moved to replacement lots"): [
        "UPDATE points_lots SET granted = granted + 1 WHERE ref = 'l'",
        "UPDATE points_lots SET remaining = remaining - 1 WHERE ref = 'l'",
        "UPDATE points_lots SET remaining = remaining + 1 WHERE ref = 'l'",
        "UPDATE points_lots SET granted = 31, remaining = 31 WHERE origin_lot_id IS NOT NULL",
        "DELETE FROM points_lots WHERE origin_lot_id IS NOT NULL",
        "UPDATE points_lot_uses SET points = points - 1",
        "DELETE FROM points_lot_uses",
    ],
    ("I12", "next_expiry of an account is the earliest expiry of its lots with points"): [
        "UPDATE points_accounts SET next_expiry = NULL",
        "UPDATE points_accounts SET next_expiry = '2030-01-01 00:00:00.000'",
        "UPDATE points_lots SET expires_at = '2030-01-01 00:00:00.000'",
        "DELETE FROM points_lots WHERE remaining > 0",
    ],
    ("I12", "a lot comes from a grant of its points, or from an expired lot of the same user"): [
        "UPDATE points_lots SET ref = 'g' WHERE ref = 'l'",
        "UPDATE points_lots SET ref = 'nothing' WHERE ref = 'l'",
        "UPDATE points_lots SET ref = 'expire:1' WHERE ref = 'l'",
        "UPDATE points_lots SET ref = NULL WHERE ref = 'l'",
        "UPDATE points_lots SET origin_lot_id = 1 WHERE ref = 'l'",
        "UPDATE points_lots SET user_id = 2 WHERE ref = 'expired'",
        "UPDATE points_lots SET origin_lot_id = 99 WHERE origin_lot_id IS NOT NULL",
        "UPDATE points_lots SET expired = 0, expires_at = '2090-01-01 00:00:00.000' WHERE ref = 'expired'",
    ],
    ("I12", "the expired points of a lot equal its single expiry entry"): [
        "UPDATE points_lots SET expired = expired + 1, remaining = remaining - 1 WHERE ref = 'l'",
        "UPDATE points_ledger SET points = points - 1 WHERE kind = 'expire'",
        "DELETE FROM points_ledger WHERE kind = 'expire'",
        "UPDATE points_ledger SET user_id = 2 WHERE kind = 'expire'",
        f"{ENTRY} SELECT 1, 9, kind, 0, 0, 0, NULL, NULL, 'expire:01', created_at FROM points_ledger"
        " WHERE kind = 'expire'",
    ],
    ("I12", "the lot of an expiry entry exists"): [
        "UPDATE points_ledger SET ref = 'expire:99' WHERE kind = 'expire'",
        "UPDATE points_ledger SET ref = 'expire:x' WHERE kind = 'expire'",
        "DELETE FROM points_lots WHERE ref = 'expired'",
    ],
    ("I12", "an expiry entry names a lot and deducts points"): [
        f"{ENTRY} VALUES (1, 9, 'expire', -30, 0, 40, NULL, NULL, NULL, {MOMENT})",
        f"{ENTRY} VALUES (1, 9, 'expire', -30, 0, 40, NULL, NULL, 'lapse', {MOMENT})",
        f"{ENTRY} VALUES (1, 9, 'expire', -30, 0, 40, NULL, NULL, 'EXPIRE:1', {MOMENT})",
        "UPDATE points_ledger SET points = 20 WHERE kind = 'expire'",
    ],
    ("I12", "a task uses not more points of lots than its price"): [
        "UPDATE points_lot_uses SET points = points + 1",
        "UPDATE points_lot_uses SET task_id = 99 WHERE task_id = 4",
        "UPDATE points_lot_uses SET task_id = 2 WHERE task_id = 4",
    ],
    ("I12", "the lot that a task used exists and has the same user"): [
        "UPDATE points_lot_uses SET lot_id = 99",
        "UPDATE points_lot_uses SET points = 0",
        "UPDATE tasks SET user_id = 77",
        "DELETE FROM points_lots WHERE ref = 'l'",
    ],
}
"""Damage to `lots`: an expired lot with a grace lot of its refund, and a lot of 90 of which a task holds a part."""

ADJUST_DAMAGE: Damages = {
    ("I12", "an adjustment uses lots of its own user, and not more points than it takes"): [
        "UPDATE points_lot_uses SET points = 31 WHERE task_id < 0",
        "UPDATE points_lot_uses SET task_id = 0 WHERE task_id < 0",
        "UPDATE points_lot_uses SET task_id = -99 WHERE task_id < 0",
        "UPDATE points_lot_uses SET task_id = -1 WHERE task_id < 0",
        "UPDATE points_ledger SET user_id = 2 WHERE kind = 'adjust'",
        "UPDATE points_lots SET user_id = 2 WHERE ref = 'l'",
        "DELETE FROM points_ledger WHERE kind = 'adjust'",
    ],
}
"""Damage to `adjusted`: a grant of 100, a live task of 30, and a correction that takes 30 of a lot of 90."""

CODE_DAMAGE: Damages = {
    ("I13", "a redeemed code has exactly one grant, of its points and to its user; any other code has none"): [
        "DELETE FROM points_ledger WHERE ref = 'code:1'",
        "UPDATE points_ledger SET ref = 'code:2' WHERE ref = 'code:1'",
        "UPDATE points_ledger SET points = 49 WHERE ref = 'code:1'",
        "UPDATE points_ledger SET ref = 'code:01' WHERE ref = 'g'",
        "UPDATE redeem_codes SET redeemed_by = 2 WHERE id = 1",
        "UPDATE redeem_codes SET redeemed_by = NULL, redeemed_at = NULL WHERE id = 1",
        "UPDATE redeem_codes SET redeemed_by = 1, redeemed_at = created_at WHERE id = 2",
        "UPDATE redeem_codes SET points = 51 WHERE id = 1",
    ],
    ("I13", "the code of a grant by code exists"): [
        "UPDATE points_ledger SET ref = 'code:99' WHERE ref = 'code:1'",
        "UPDATE points_ledger SET ref = 'code:x' WHERE ref = 'code:1'",
        "DELETE FROM redeem_codes WHERE id = 1",
    ],
    (
        "I13",
        "a redeemed code with lot_days has a lot, and one without has none",
    ): [
        "DELETE FROM points_lots",
        "UPDATE redeem_codes SET lot_days = NULL",
    ],
}
"""Damage to `codes`: two codes of 50 that live for 30 days; the first is redeemed."""

KEY_DAMAGE: Damages = {
    ("I17", "a key's budget counts its running tasks, and what its tasks cost without refunds"): [
        "UPDATE key_budgets SET running_tasks = running_tasks + 1",
        "UPDATE key_budgets SET spent_total = spent_total - 1 WHERE spent_total > 0",
        "UPDATE key_budgets SET spent_total = 30 WHERE spent_total = 0",
        "UPDATE tasks SET key_id = NULL WHERE end_user IS NULL",
        f"UPDATE tasks SET status = 'completed', {ENDED} WHERE end_user IS NULL",
        f"UPDATE tasks SET status = 'failed', {ENDED} WHERE end_user IS NULL",
        "UPDATE tasks SET points_cost = 29 WHERE end_user IS NULL",
        "UPDATE api_keys SET budget_id = 2",
    ],
    ("I17", "the budget of an end user counts the same of the tasks that name them"): [
        "UPDATE end_user_budgets SET running_tasks = 0",
        "UPDATE end_user_budgets SET spent_total = spent_total + 30",
        "UPDATE tasks SET end_user = NULL",
        f"UPDATE tasks SET status = 'failed', {ENDED} WHERE end_user IS NOT NULL",
    ],
    ("I17", "a task of a key counts in a budget of the same user, and in that of its end user"): [
        "DELETE FROM api_keys",
        "DELETE FROM key_budgets",
        "DELETE FROM end_user_budgets",
        "UPDATE api_keys SET budget_id = NULL",
        "UPDATE key_budgets SET user_id = 2",
        "UPDATE tasks SET end_user = 'bob' WHERE end_user = 'alice'",
    ],
}
"""Damage to `capped`: a live task by a key, another one for the end user alice, and a key that nobody used."""


@pytest.fixture(scope="module")
async def unconstrained(
    module_database_url: str, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Runtime]:
    """A runtime on tables without constraints. Nothing audits it at the end."""
    bare = MetaData()
    for table in metadata.sorted_tables:
        copy = table.to_metadata(bare)
        copy.constraints = {one for one in copy.constraints if isinstance(one, PrimaryKeyConstraint)}
        copy.indexes.clear()
    engine = create_async_engine(module_database_url)
    async with engine.begin() as connection:
        await connection.run_sync(bare.create_all)
    await engine.dispose()
    own = {"redis_url": "memory://", "storage_url": tmp_path_factory.mktemp("files").as_uri(), "see2ai_api_key": "sk-x"}
    async with open_runtime(Settings(_env_file=None, database_url=module_database_url, **own)) as runtime:
        runtime.database._is_verified = True  # else it would refuse to write here
        row = {"description": "", "task_type": "text_to_image", "action": "see2ai_image_generation_fast_v1"}
        for model, cost in ((TEXT_MODEL, 30), (FREE_MODEL, 0)):
            await set_model(runtime.database, model, row | {"params": {"aspectRatio": "1:1"}, "points_cost": cost})
        yield runtime


@pytest.fixture
async def books(unconstrained: Runtime) -> Runtime:
    """One grant of 100, one live task of 30, and a live task that is free."""
    empty = "DELETE FROM" if unconstrained.settings.is_sqlite else "TRUNCATE"  # TRUNCATE also resets the ids
    async with unconstrained.database.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name != "points_config":
                await connection.execute(text(f"{empty} {table.name}"))
    await ledger.grant(unconstrained.database, user_id=1, points=100, ref="g")
    for model in (TEXT_MODEL, FREE_MODEL):
        await submit_task(unconstrained, 1, Submission(model, "一只猫"))
    return unconstrained


@pytest.fixture
async def lots(books: Runtime) -> Runtime:
    """An expired lot with a grace lot of its refund, and a lot of 90 of which a task holds a part."""
    await lot(books.database, 1, 50, 1, "expired")
    row = (await submit_task(books, 1, Submission(TEXT_MODEL, "一只狗"))).row
    await later(books.database, 2)
    await execute(books, f"UPDATE tasks SET status = 'failed', error_code = 'X', {ENDED} WHERE id = {row['id']}")
    async with books.database.begin() as connection:
        await ledger.refund(connection, user_id=1, task_id=row["id"], cost=30, remark="", grace_days=7)
    await lot(books.database, 1, 90, 24, "l")
    await submit_task(books, 1, Submission(TEXT_MODEL, "一只鸟"))
    assert await remaining(books.database) == [0, 30, 60]
    return books


@pytest.fixture
async def adjusted(books: Runtime) -> Runtime:
    """A lot of 90, and a correction that takes 30 of it."""
    await lot(books.database, 1, 90, 24, "l")
    async with books.database.begin() as connection:
        await ledger.adjust(connection, user_id=1, points=-30, ref="a", remark="")
    assert await remaining(books.database) == [60]
    return books


@pytest.fixture
async def codes(books: Runtime) -> Runtime:
    """Two codes of 50, one of them redeemed."""
    made = await create_codes(books.database, count=2, points=50, batch="b", lot_days=30)
    await redeem_code(books.database, 1, made[0])
    return books


@pytest.fixture
async def capped(books: Runtime) -> Runtime:
    """A live task by a key, another one for the end user alice, and a key that nobody used."""
    key, _ = [await key_of(books, User(1, {}, {}, "", "")) for _ in range(2)]
    for end_user in (None, "alice"):
        await submit_task(books, 1, Submission(TEXT_MODEL, "一只猫", end_user=end_user), key_id=key.id)
    return books


usually_real = pytest.mark.both_worlds(usually=REAL)  # hundreds of tests; the audit runs on SQLite after each test


def for_each_damage(damages: Damages) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("seen_by", "damage"), [(check, damage) for check, some in damages.items() for damage in some]
    )


async def assert_damage_is_found(books: Runtime, damage: str, seen_by: tuple[str, str]) -> None:
    """The audit is clean before the damage. After it, the matching check reports it."""
    assert await audit(books.database) == []
    assert (await execute(books, damage)).rowcount
    assert seen_by in {(violation.invariant, violation.meaning) for violation in await audit(books.database)}


@usually_real
@for_each_damage(DAMAGE)
async def test_damage_is_found(books: Runtime, damage: str, seen_by: tuple[str, str]) -> None:
    await assert_damage_is_found(books, damage, seen_by)


@usually_real
@for_each_damage(LOT_DAMAGE)
async def test_damage_to_lots_is_found(lots: Runtime, damage: str, seen_by: tuple[str, str]) -> None:
    await assert_damage_is_found(lots, damage, seen_by)


@usually_real
@for_each_damage(ADJUST_DAMAGE)
async def test_damage_to_corrections_is_found(adjusted: Runtime, damage: str, seen_by: tuple[str, str]) -> None:
    await assert_damage_is_found(adjusted, damage, seen_by)


@usually_real
@for_each_damage(CODE_DAMAGE)
async def test_damage_to_codes_is_found(codes: Runtime, damage: str, seen_by: tuple[str, str]) -> None:
    await assert_damage_is_found(codes, damage, seen_by)


@usually_real
@for_each_damage(KEY_DAMAGE)
async def test_damage_to_budgets_is_found(capped: Runtime, damage: str, seen_by: tuple[str, str]) -> None:
    await assert_damage_is_found(capped, damage, seen_by)


def test_every_check_has_its_damage() -> None:
    checks = [(invariant, meaning) for invariant, meaning, _ in (*CHECKS, *LOT_CHECKS, *CODE_CHECKS, *KEY_CHECKS)]
    planted = [*DAMAGE, *LOT_DAMAGE, *ADJUST_DAMAGE, *CODE_DAMAGE, *KEY_DAMAGE]
    assert sorted([*checks, OVERDUE]) == sorted(planted)


@pytest.mark.parametrize("ref", ["CODE:1", "Code:1", "EXPIRE:1", "Expire:x"])
async def test_references_that_only_look_like_ours_are_accepted(codes: Runtime, ref: str) -> None:
    assert (await ledger.grant(codes.database, user_id=1, points=10, ref=ref))[0]
    assert await audit(codes.database) == []
