"""Models a caller may name, as rows of `points_config`: read them, list them, write them by the same rules."""

import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Row, Text, bindparam, insert, select, type_coerce, update

from app.catalog.pricing import validate_rules
from app.database import Connection, Database, retry_on_conflict, utc_now
from app.errors import InvalidParameter, ModelNotFound
from app.tables import points_config
from app.upstreams.action import IMAGE_URL, ActionInput, build_request, merge_params
from app.upstreams.registry import known_actions

log = structlog.get_logger()

MAX_NAME_LENGTH = 100
CHECKED = ("points_cost", "task_type", "action", "params", "defaults", "price_rules")  # beside the name
NORMALIZE_REFERENCES = "normalizeReferences"  # in `params`, for the row alone: callers neither see nor set it


@dataclass(frozen=True, slots=True)
class Model:
    """One row of `points_config`. `now` is the database's clock at the moment it was read."""

    model_name: str
    description: str
    points_cost: int
    task_type: str
    action: str
    params: dict[str, Any]
    defaults: dict[str, Any]
    price_rules: Any
    enabled: bool
    sort: int
    now: datetime

    @property
    def fixed(self) -> dict[str, Any]:
        """What callers cannot change, by the action's own names."""
        return {name: value for name, value in self.params.items() if name != NORMALIZE_REFERENCES}

    @property
    def normalizes_references(self) -> bool:
        """Whether SEE2AI normalizes the reference pictures before it is asked for the real thing."""
        return self.params.get(NORMALIZE_REFERENCES) is True


async def get_model(connection: Connection, model_name: str) -> Model:
    """An enabled model by its exact name; ModelNotFound otherwise, also where its row cannot be read.

    To MySQL `x` and `x ` are equal: not to us.
    """
    row = (await connection.execute(_BY_NAME, {"model_name": model_name})).one_or_none()
    if row is None or row.model_name != model_name or not row.enabled or row.action not in known_actions():
        raise ModelNotFound
    try:
        return _read(row)
    except InvalidParameter as error:
        log.error("model_unreadable", model=model_name, error=error.message)
        raise ModelNotFound from error


async def list_models(database: Database, *, only_enabled: bool = True) -> list[Model]:
    """All models in their display order. A row that cannot be read is left out, loudly."""
    models, unreadable = await read_models(database)
    for name, reason in unreadable.items():
        log.error("model_unreadable", model=name, error=reason)
    known = known_actions()
    return [model for model in models if (model.enabled and model.action in known) or not only_enabled]


async def read_models(database: Database) -> tuple[list[Model], dict[str, str]]:
    """All rows in their display order, but for those that hold what is no JSON: by name, what is wrong with them."""
    async with database.read() as connection:
        rows = (await connection.execute(_ALL)).all()
    models, unreadable = [], {}
    for row in rows:
        try:
            models.append(_read(row))
        except InvalidParameter as error:
            unreadable[row.model_name] = error.message
    return models, unreadable


def _read(row: Row[*tuple[Any, ...]]) -> Model:
    return Model(**{name: _read_column(name, value) for name, value in row._mapping.items()})


def _read_column(name: str, value: Any) -> Any:
    """What the column holds; InvalidParameter where that should be JSON and is none: written past the gateway."""
    if name not in _JSON or value is None:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidParameter(name, "不是 JSON") from None


def aspect_ratio(model: Model) -> str | None:
    """The ratio a row fixes, by name or by its canvas in pixels."""
    named = model.params.get("aspectRatio")
    width, height = model.params.get("canvasW"), model.params.get("canvasH")
    if named or not (width and height):
        return named
    shared = math.gcd(width, height)
    return f"{width // shared}:{height // shared}"


def validate_model(
    model_name: str,
    points_cost: int,
    task_type: str,
    action: str,
    params: dict[str, Any],
    defaults: dict[str, Any],
    price_rules: list[dict[str, Any]] | None = None,
) -> None:
    """The rules of a row, asked when it is written and never at submit. InvalidParameter names the column."""
    if not 0 < len(model_name) <= MAX_NAME_LENGTH or not model_name.isascii() or model_name != model_name.strip():
        raise InvalidParameter("model_name", "须为 1 到 100 个 ASCII 字符")
    if not 0 <= points_cost <= 2**53:
        raise InvalidParameter("points_cost", "不能为负数或过大")
    known = known_actions()
    if action not in known:
        raise InvalidParameter("action", f"未知，可选: {', '.join(known)}")
    spec = known[action]
    if task_type not in spec.params:
        raise InvalidParameter("task_type", f"该 action 支持: {', '.join(sorted(spec.params))}")
    if NORMALIZE_REFERENCES in params and not (
        spec.normalize_profile and isinstance(params[NORMALIZE_REFERENCES], bool)
    ):
        raise InvalidParameter(f"params.{NORMALIZE_REFERENCES}", "须为布尔值，且 action 须使用参考图")
    fixed = {name: value for name, value in params.items() if name != NORMALIZE_REFERENCES}
    merge_params(spec, task_type, {}, {}, fixed)
    folded = merge_params(spec, task_type, fixed, {}, defaults)
    pictures = () if task_type.startswith("text_to_") else ("https://example.com/picture.jpg",)
    try:
        build_request(spec, ActionInput(task_type, "a prompt", pictures, folded))
    except InvalidParameter as error:
        if error.field != IMAGE_URL:  # which and how many pictures is the caller's business
            raise
    validate_rules(price_rules, spec.params[task_type], fixed, points_cost)


@retry_on_conflict
async def set_model(database: Database, model_name: str, changes: dict[str, Any]) -> None:
    """Creates the model or changes some of its columns. Tasks already submitted keep their price."""
    async with database.begin() as connection:
        row = (await connection.execute(_BY_NAME.with_for_update(), {"model_name": model_name})).one_or_none()
        kept = [name for name in _WRITABLE if changes.get(name) is None]
        old = {} if row is None else {name: _read_column(name, getattr(row, name)) for name in kept}
        new = _DEFAULTS | old | {name: value for name, value in changes.items() if value is not None}
        for required in ("points_cost", "task_type", "action"):
            if new[required] is None:
                raise InvalidParameter(required, "不能为空")
        validate_model(model_name, **{name: new[name] for name in CHECKED})
        new["price_rules"] = new["price_rules"] or None  # no rules are NULL, however they were written
        if row is None:
            statement = insert(points_config).values(model_name=model_name, created_at=utc_now(), updated_at=utc_now())
        else:
            named = points_config.c.model_name == model_name
            statement = update(points_config).where(named).values(updated_at=utc_now())  # type: ignore[assignment]
        await connection.execute(statement.values(**new))


async def disable_model(database: Database, model_name: str) -> None:
    """No new tasks on this model; those already submitted end as usual. ModelNotFound where there is none."""
    async with database.begin() as connection:
        named = points_config.c.model_name == model_name
        changed = await connection.execute(
            update(points_config).where(named).values(enabled=False, updated_at=utc_now())
        )
        if not changed.rowcount:
            raise ModelNotFound


_DEFAULTS: dict[str, Any] = {
    "description": "",
    "points_cost": None,
    "task_type": None,
    "action": None,
    "params": {},
    "defaults": {},
    "price_rules": None,
    "enabled": True,
    "sort": 0,
}
_WRITABLE = tuple(_DEFAULTS)
_JSON = frozenset({"params", "defaults", "price_rules"})  # read as the text they are, each for itself
_COLUMNS = [
    type_coerce(points_config.c[name], Text).label(name) if name in _JSON else points_config.c[name]
    for name in ("model_name", *_WRITABLE)
]
_BY_NAME = select(*_COLUMNS, utc_now().label("now")).where(points_config.c.model_name == bindparam("model_name"))
_ALL = select(*_COLUMNS, utc_now().label("now")).order_by(points_config.c.sort, points_config.c.id)
