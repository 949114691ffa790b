"""API keys with caps, submits with them, and their counters, for tests."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from app.accounts.keys.caps import Caps
from app.accounts.keys.user_keys import NewKey, create_key
from app.runtime import Runtime
from app.tables import end_user_budgets, key_budgets
from app.tasks.submit import submit_task
from app.tasks.validation import Submission
from tests.support.makers import TEXT_MODEL, User

COST = 30
"""Of one task of TEXT_MODEL."""


@dataclass(frozen=True)
class Key:
    """A key of one test. `headers` carry it."""

    id: int
    budget_id: int
    text: str

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.text}


async def key_of(runtime: Runtime, user: User, *, end_users: Caps | None = None, **caps: int) -> Key:
    """A new key of the user with these caps, and these for each end user."""
    new = NewKey(caps=Caps(**caps), end_user_caps=end_users or Caps())
    text, row = await create_key(runtime.database, user.id, new)
    return Key(row.id, row.budget_id, text)


async def submit_by(runtime: Runtime, user: User, key: Key | None, prompt: str = "一只猫", **fields: Any) -> Any:
    """The stored row. Raises what the submit raises."""
    model = fields.pop("model", TEXT_MODEL)
    submission = Submission(model, prompt, key=fields.pop("idempotency", None), **fields)
    return (await submit_task(runtime, user.id, submission, key_id=None if key is None else key.id)).row


async def counters(runtime: Runtime, key: Key, end_user: str | None = None) -> tuple[int, int, int, int]:
    """(today, this month, total, running) of the key or of the end user."""
    table = key_budgets if end_user is None else end_user_budgets
    query = select(table.c.spent_today, table.c.spent_this_month, table.c.spent_total, table.c.running_tasks)
    if end_user is None:
        query = query.where(table.c.id == key.budget_id)
    else:
        query = query.where(table.c.budget_id == key.budget_id, table.c.end_user == end_user)
    async with runtime.database.read() as connection:
        row = (await connection.execute(query)).one()
    return row[0], row[1], row[2], row[3]
