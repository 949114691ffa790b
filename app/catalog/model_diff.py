"""Compares `points_config` with what the migrations seed: added, missing, changed and invalid rows."""

import asyncio
import functools
import json
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.catalog.models import VALIDATED_COLUMNS, Model, list_models, read_models, validate_model
from app.database import Database, open_database
from app.errors import InvalidParameter
from app.settings import load_settings


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """All differences. `changed` has modelName, column, seeded, now; `invalid` has modelName, reason."""

    added: list[str]
    missing: list[str]
    changed: list[dict[str, Any]]
    invalid: list[dict[str, str]]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.missing or self.changed or self.invalid)

    def lines(self) -> Iterator[str]:
        """The differences as text, one line each."""
        for name in self.added:
            yield f"added    {name}"
        for name in self.missing:
            yield f"missing  {name}"
        for change in self.changed:
            seeded, now = _as_json(change["seeded"]), _as_json(change["now"])
            yield f"changed  {change['modelName']}  {change['column']}: {seeded} → {now}"
        for row in self.invalid:
            yield f"invalid  {row['modelName']}  {row['reason']}"


async def find_diff(database: Database) -> ModelDiff:
    """Compares the rows of the database with this release."""
    seeded = await asyncio.to_thread(_load_seeded_once)
    return diff_models(seeded, *await read_models(database))


def _load_seeded_once() -> list[Model]:
    with _loading:  # Alembic runs once at a time in a process
        return _remember_seeded()


@functools.cache
def _remember_seeded() -> list[Model]:
    """A release never changes what it seeds."""
    return load_seeded()


_loading = threading.Lock()


def load_seeded() -> list[Model]:
    """The rows of a newly migrated database. It must not run in an event loop, because Alembic starts its own."""
    from app.database.schema.migrate import migrate  # Alembic is not needed to start the API

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'seeded.db'}"
        migrate(url)
        return asyncio.run(_list(url))


async def _list(url: str) -> list[Model]:
    database = open_database(load_settings(database_url=url))
    try:
        return await list_models(database, only_enabled=False)
    finally:
        await database.close()


def diff_models(seeded: list[Model], now: list[Model], unreadable: dict[str, str]) -> ModelDiff:
    """Compares columns by their JSON, so that 1, 1.0 and true differ. Unreadable rows are invalid."""
    before, after = ({model.model_name: _columns(model) for model in models} for models in (seeded, now))
    return ModelDiff(
        added=[name for name in after if name not in before],
        missing=[name for name in before if name not in after and name not in unreadable],
        changed=[
            {"modelName": name, "column": column, "seeded": value, "now": after[name][column]}
            for name, columns in before.items()
            if name in after
            for column, value in columns.items()
            if _as_json(value) != _as_json(after[name][column])
        ],
        invalid=find_invalid(now, unreadable),
    )


def find_invalid(models: list[Model], unreadable: dict[str, str]) -> list[dict[str, str]]:
    """The rows that today's validation refuses, as modelName and reason."""
    validated = [(model.model_name, _invalid_reason(model.model_name, _columns(model))) for model in models]
    return [{"modelName": name, "reason": reason} for name, reason in [*unreadable.items(), *validated] if reason]


def _columns(model: Model) -> dict[str, Any]:
    return {name: value for name, value in model.columns.items() if name != "model_name"}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _invalid_reason(name: str, columns: dict[str, Any]) -> str:
    """Why today's validation refuses the row; empty where it accepts it."""
    for column in ("params", "defaults"):
        if not isinstance(columns[column], dict):
            return f"{column} 须为 JSON 对象"
    try:
        validate_model(name, **{column: columns[column] for column in VALIDATED_COLUMNS})
    except InvalidParameter as error:
        return error.message
    return ""
