"""The database schema: every table, index, CHECK and UNIQUE. It holds no queries and no behaviour.

The schema works on MySQL 8.0.16, MariaDB 10.11 and SQLite. `migrations/` creates the same schema, and `alembic check`
compares the two. All times are UTC with milliseconds. Points are whole numbers.
"""

from app.tables.accounts.admin import admin_actions
from app.tables.accounts.keys import api_keys, end_user_budgets, key_budgets
from app.tables.accounts.users import recovery_codes, refresh_tokens, users
from app.tables.coordination import circuit_breakers, model_durations, scheduled_jobs
from app.tables.models import points_config
from app.tables.points import points_accounts, points_ledger, points_lot_uses, points_lots, redeem_codes
from app.tables.tasks import ERASED_UPDATE_TIME, tasks
from app.tables.types import ID, LONG_TEXT, MYSQL, POINTS, PROMPT, Json, UtcTime, binary_string, metadata, write_json
from app.tables.uploads import file_deletions, uploads
from app.tables.webhooks import webhook_deliveries, webhook_endpoints, webhook_secrets

__all__ = [
    "ERASED_UPDATE_TIME",
    "ID",
    "LONG_TEXT",
    "MYSQL",
    "POINTS",
    "PROMPT",
    "Json",
    "UtcTime",
    "admin_actions",
    "api_keys",
    "binary_string",
    "circuit_breakers",
    "end_user_budgets",
    "file_deletions",
    "key_budgets",
    "metadata",
    "model_durations",
    "points_accounts",
    "points_config",
    "points_ledger",
    "points_lot_uses",
    "points_lots",
    "recovery_codes",
    "redeem_codes",
    "refresh_tokens",
    "scheduled_jobs",
    "tasks",
    "uploads",
    "users",
    "webhook_deliveries",
    "webhook_endpoints",
    "webhook_secrets",
    "write_json",
]
