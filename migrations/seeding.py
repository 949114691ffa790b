"""How migrations change the catalog: upsert, reprice, disable. With `--sql` the statements are printed.

A migration must do the same next year, so nothing here knows the actions and price rules of today. Wrong rows are found
in the result, by tests/migrations/test_catalog.py and by `gateway models check`.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, sqlite

from migrations.types import JSON, UTC_TIME

KEEP: Any = object()
REQUIRED = ("model_name", "description", "points_cost", "task_type", "action")
DEFAULTS: dict[str, Any] = {"params": {}, "defaults": {}, "price_rules": None, "enabled": True, "sort": 0}
COLUMNS = (*REQUIRED, *DEFAULTS)
points_config = sa.table(
    "points_config",
    sa.column("model_name", sa.String),
    sa.column("description", sa.String),
    sa.column("points_cost", sa.BigInteger),
    sa.column("task_type", sa.String),
    sa.column("action", sa.String),
    sa.column("params", JSON),
    sa.column("defaults", JSON),
    sa.column("price_rules", JSON),
    sa.column("enabled", sa.Boolean),
    sa.column("sort", sa.Integer),
    sa.column("created_at", UTC_TIME),
    sa.column("updated_at", UTC_TIME),
)


def upsert_models(rows: list[dict[str, Any]]) -> None:
    """Inserts models and overwrites existing ones. Columns that a row leaves out take their defaults."""
    for row in rows:
        unknown, missing = sorted(set(row) - set(COLUMNS)), sorted(set(REQUIRED) - set(row))
        if unknown or missing:
            raise ValueError(f"{row.get('model_name')}: unknown columns {unknown}, missing columns {missing}")
        values = _as_stored(DEFAULTS | row)
        _execute(_upsert({name: values[name] for name in COLUMNS}))


def reprice_model(model_name: str, points_cost: int = KEEP, price_rules: list[dict[str, Any]] | None = KEEP) -> None:
    """Sets a new price. Submitted tasks keep theirs. `price_rules=None` removes the rules."""
    changes = {"points_cost": points_cost, "price_rules": price_rules}
    _update(model_name, **{name: value for name, value in changes.items() if value is not KEEP})


def disable_model(model_name: str) -> None:
    _update(model_name, enabled=False)


def enable_model(model_name: str) -> None:
    _update(model_name, enabled=True)


def delete_models(model_names: list[str]) -> None:
    """For `downgrade` only. Disable a model that was ever used."""
    op.execute(sa.delete(points_config).where(points_config.c.model_name.in_(model_names)))


def _execute(upsert: sa.Insert) -> None:
    """Prints the statement on three lines with `--sql`, so that a DBA finds the row."""
    context = op.get_context()
    if not context.as_sql:
        op.execute(upsert)
        return
    sql = str(upsert.compile(dialect=context.dialect, compile_kwargs={"literal_binds": True}))
    columns, _, rest = sql.partition(" VALUES ")
    row, _, update = rest.rpartition(" ON ")
    context.impl.static_output(f"{columns}\nVALUES {row}\nON {update};")


def _upsert(values: dict[str, Any]) -> sa.Insert:
    """The UPDATE part refers to the inserted values, so that each value stands in the statement once."""
    changed = ["updated_at", *(name for name in values if name != "model_name")]
    values = values | {"created_at": _now(), "updated_at": _now()}
    if _is_sqlite():
        insert = sqlite.insert(points_config).values(**values)
        return insert.on_conflict_do_update(
            index_elements=["model_name"], set_={name: insert.excluded[name] for name in changed}
        )
    insert_ = mysql.insert(points_config).values(**values)
    return insert_.on_duplicate_key_update({name: insert_.inserted[name] for name in changed})


def _update(model_name: str, **changes: Any) -> None:
    if not changes:
        raise ValueError(f"{model_name}: nothing to change")
    named = points_config.c.model_name == model_name
    op.execute(sa.update(points_config).where(named).values(**_as_stored(changes), updated_at=_now()))


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
    """Returns JSON columns as text. Empty price rules become NULL."""
    stored = dict(values)
    for name in {"params", "defaults"} & set(stored):
        stored[name] = _as_json(stored[name])
    if "price_rules" in stored:
        stored["price_rules"] = _as_json(stored["price_rules"]) if stored["price_rules"] else None
    return stored


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _now() -> sa.TextClause:
    """The database's clock, in UTC with milliseconds."""
    return sa.text("(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')" if _is_sqlite() else "UTC_TIMESTAMP(3)")


def _is_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"
