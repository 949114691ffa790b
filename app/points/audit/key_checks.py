"""The audit's checks of the budgets of API keys. Each SQL statement finds the rows that violate an invariant."""

_SUMS = (
    "SUM(CASE WHEN t.step <> 'done' THEN 1 ELSE 0 END) AS running,"
    " SUM(CASE WHEN t.status <> 'failed' THEN t.points_cost ELSE 0 END) AS spent"
)
_OF_BUDGETS = f"SELECT k.budget_id, {_SUMS} FROM tasks t JOIN api_keys k ON k.id = t.key_id GROUP BY k.budget_id"  # noqa: S608
_OF_END_USERS = (
    f"SELECT k.budget_id, t.end_user, {_SUMS} FROM tasks t JOIN api_keys k ON k.id = t.key_id"  # noqa: S608
    " WHERE t.end_user IS NOT NULL GROUP BY k.budget_id, t.end_user"
)
_DIFFER = "b.running_tasks <> COALESCE(s.running, 0) OR b.spent_total <> COALESCE(s.spent, 0)"

KEY_CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "I17",
        "a key's budget counts its running tasks, and what its tasks cost without refunds",
        f"SELECT b.*, s.running, s.spent FROM key_budgets b LEFT JOIN ({_OF_BUDGETS}) s"  # noqa: S608
        f" ON s.budget_id = b.id WHERE {_DIFFER}",
    ),
    (
        "I17",
        "the budget of an end user counts the same of the tasks that name them",
        f"SELECT b.*, s.running, s.spent FROM end_user_budgets b LEFT JOIN ({_OF_END_USERS}) s"  # noqa: S608
        f" ON s.budget_id = b.budget_id AND s.end_user = b.end_user WHERE {_DIFFER}",
    ),
    (
        "I17",
        "a task of a key counts in a budget of the same user, and in that of its end user",
        "SELECT t.task_no, t.key_id, t.end_user FROM tasks t LEFT JOIN api_keys k ON k.id = t.key_id"
        " LEFT JOIN key_budgets b ON b.id = k.budget_id"
        " LEFT JOIN end_user_budgets e ON e.budget_id = k.budget_id AND e.end_user = t.end_user"
        " WHERE t.key_id IS NOT NULL AND (b.id IS NULL OR b.user_id <> t.user_id"
        " OR (t.end_user IS NOT NULL AND e.budget_id IS NULL))",
    ),
)
