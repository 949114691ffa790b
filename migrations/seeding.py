"""How migrations seed models: upsert, reprice, disable. Works online and with `--sql`, where it prints statements.

Every row passes `validate_model`, the same rules the command line asks, when the migration is *run*: a typo stops the
deployment, not a submit.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from app.catalog.models import VALIDATED_COLUMNS, validate_model
from app.catalog.price_rules import MAX_POINTS
from app.catalog.pricing import validate_rules
from app.database import upsert, utc_now
from app.tables import points_config
from app.upstreams.see2ai.actions import ACTIONS

KEPT: Any = object()


def upsert_models(rows: list[dict[str, Any]]) -> None:
    """Inserts models, or overwrites those of the same `model_name`. Missing columns take their defaults."""
    for row in rows:
        full: dict[str, Any] = {
            "params": {},
            "defaults": {},
            "price_rules": None,
            "enabled": True,
            "sort": 0,
            **row,
        }
        validate_model(**{name: full[name] for name in ("model_name", *VALIDATED_COLUMNS)})
        full["price_rules"] = full["price_rules"] or None
        stamped = {**full, "created_at": utc_now(), "updated_at": utc_now()}
        dialect = op.get_context().dialect.name
        op.execute(upsert(dialect, points_config, "model_name", stamped, preserve=frozenset({"created_at"})))


def reprice_model(
    model_name: str,
    points_cost: int | None = None,
    price_rules: Any = KEPT,
    *,
    action: str | None = None,
    task_type: str | None = None,
) -> None:
    """A new price from now on; tasks already submitted carry their own. `price_rules=None` ends the rules there were.

    New rules are checked without the row, because `--sql` has no database to read it from: say its `action` and
    `task_type`, and name every value of a param, also where the row fixes it.
    """
    if points_cost is not None and not 0 <= points_cost <= MAX_POINTS:
        raise ValueError(f"{model_name}: points_cost must not be negative or beyond {MAX_POINTS}")
    changed: dict[str, Any] = {} if points_cost is None else {"points_cost": points_cost}
    if price_rules is not KEPT:
        if price_rules:
            if action not in ACTIONS or task_type not in ACTIONS[action].params:
                raise ValueError(f"{model_name}: price_rules need the row's action and task_type")
            validate_rules(price_rules, ACTIONS[action].params[task_type], {}, points_cost or 0)
        changed["price_rules"] = price_rules or None
    if not changed:
        raise ValueError(f"{model_name}: neither points_cost nor price_rules")
    _change(model_name, **changed)


def disable_model(model_name: str) -> None:
    _change(model_name, enabled=False)


def enable_model(model_name: str) -> None:
    _change(model_name, enabled=True)


def delete_models(model_names: list[str]) -> None:
    """For `downgrade` only: a model that was ever used is better disabled."""
    op.execute(sa.delete(points_config).where(points_config.c.model_name.in_(model_names)))


def _change(model_name: str, **columns: Any) -> None:
    op.execute(
        sa.update(points_config).where(points_config.c.model_name == model_name).values(**columns, updated_at=utc_now())
    )
