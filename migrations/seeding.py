"""How migrations seed models: upsert, reprice, disable. Works online and with `--sql`, where it prints statements.

Every row passes `check_model`, the same rules the command line asks, when the migration is *run*: a typo stops the
deployment, not a submit.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from app.database import insert_or_change, utc_now
from app.points.models import check_model
from app.tables import points_config


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
        checked = ("model_name", "points_cost", "task_type", "action", "params", "defaults")
        check_model(**{name: full[name] for name in checked})
        stamped = {**full, "created_at": utc_now(), "updated_at": utc_now()}
        dialect = op.get_context().dialect.name
        op.execute(insert_or_change(dialect, points_config, "model_name", stamped, kept=frozenset({"created_at"})))


def reprice_model(model_name: str, points_cost: int) -> None:
    """A new price from now on; tasks already submitted carry their own."""
    if points_cost < 0:
        raise ValueError(f"{model_name}: points_cost must not be negative")
    _change(model_name, points_cost=points_cost)


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
