"""Every table, index, CHECK and UNIQUE: the floor plan of the database. It holds no query and no rule of behaviour.

Written once for MySQL (8.0.16+, MariaDB 10.11) and SQLite; `migrations/` builds the same, and `alembic check`
holds the two against each other. All times are UTC with milliseconds. Points are whole numbers.
"""

from app.tables.columns import ID, LONG_TEXT, MYSQL, POINTS, PROMPT, Json, UtcTime, exact, metadata
from app.tables.people import api_keys, users
from app.tables.points import points_accounts, points_codes, points_ledger, points_lot_uses, points_lots
from app.tables.prices import points_config
from app.tables.upkeep import chores, model_durations, provider_state
from app.tables.webhooks import webhook_deliveries, webhook_endpoints, webhook_secrets
from app.tables.work import tasks

__all__ = [
    "ID",
    "LONG_TEXT",
    "MYSQL",
    "POINTS",
    "PROMPT",
    "Json",
    "UtcTime",
    "api_keys",
    "chores",
    "exact",
    "metadata",
    "model_durations",
    "points_accounts",
    "points_codes",
    "points_config",
    "points_ledger",
    "points_lot_uses",
    "points_lots",
    "provider_state",
    "tasks",
    "users",
    "webhook_deliveries",
    "webhook_endpoints",
    "webhook_secrets",
]
