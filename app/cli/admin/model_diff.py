"""How `points_config` differs from what the migrations seed: rows added, missing, changed, and no longer valid."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.catalog.models import VALIDATED_COLUMNS, Model, list_models, validate_model
from app.cli.migrate import migrate
from app.database import open_database
from app.errors import InvalidParameter
from app.settings import load_settings


@dataclass(frozen=True, slots=True)
class ModelDiff:
    """All differences. `changed` holds modelName, column, seeded, now; `invalid` modelName, reason."""

    added: list[str]
    missing: list[str]
    changed: list[dict[str, Any]]
    invalid: list[dict[str, str]]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.missing or self.changed or self.invalid)

    def lines(self) -> Iterator[str]:
        """One difference a line, for people."""
        for name in self.added:
            yield f"added    {name}"
        for name in self.missing:
            yield f"missing  {name}"
        for one in self.changed:
            seeded, now = _as_json(one["seeded"]), _as_json(one["now"])
            yield f"changed  {one['modelName']}  {one['column']}: {seeded} → {now}"
        for one in self.invalid:
            yield f"invalid  {one['modelName']}  {one['reason']}"


def load_seeded() -> list[Model]:
    """The rows of a new database. Not to be called in a running loop: Alembic runs one of its own."""
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
    """By model name, each column as the JSON it is: 1, 1.0 and true are not the same. What is unreadable is invalid."""
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
    """Each row that could not be written today, as modelName and reason."""
    judged = [(model.model_name, _fault(model.model_name, _columns(model))) for model in models]
    return [{"modelName": name, "reason": reason} for name, reason in [*unreadable.items(), *judged] if reason]


def _columns(model: Model) -> dict[str, Any]:
    return {name: value for name, value in asdict(model).items() if name not in {"model_name", "now"}}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _fault(name: str, columns: dict[str, Any]) -> str:
    """Why the row could not be written today; empty where it could."""
    for column in ("params", "defaults"):
        if not isinstance(columns[column], dict):
            return f"{column} 须为 JSON 对象"
    try:
        validate_model(name, **{column: columns[column] for column in VALIDATED_COLUMNS})
    except InvalidParameter as error:
        return error.message
    return ""
