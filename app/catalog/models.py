"""Models: reads and writes the rows of `points_config`. A row that is not valid is no model."""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import Row, Text, bindparam, insert, select, type_coerce, update

from app.catalog.price_rules import MAX_POINTS, PriceRule, parse_rules
from app.catalog.pricing import validate_rules
from app.database import Connection, Database, retry_on_conflict, utc_now
from app.errors import InvalidParameter, ModelNotFound
from app.tables import points_config
from app.upstreams.action import IMAGE_URL, ActionInput, build_request, merge_params
from app.upstreams.registry import known_actions

log = structlog.get_logger()

MAX_NAME_LENGTH = 100
VALIDATED_COLUMNS = ("points_cost", "task_type", "action", "params", "defaults", "price_rules")
NORMALIZE_REFERENCES = "normalizeReferences"  # only in the row's `params`; callers neither see nor set it


@dataclass(frozen=True, slots=True)
class Model:
    """One row of `points_config`. `rules` is the parsed `price_rules`; `now` is the database's clock at the read."""

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
    rules: tuple[PriceRule, ...]

    @property
    def columns(self) -> dict[str, Any]:
        """The row's `model_name` and the columns that `set_model` writes."""
        return {name: getattr(self, name) for name in ("model_name", *_WRITABLE)}

    @property
    def fixed(self) -> dict[str, Any]:
        """The params that callers cannot change, by the action's names."""
        return {name: value for name, value in self.params.items() if name != NORMALIZE_REFERENCES}

    @property
    def normalizes_references(self) -> bool:
        """Whether SEE2AI normalizes the reference images before the main job."""
        return self.params.get(NORMALIZE_REFERENCES) is True


async def get_model(connection: Connection, model_name: str) -> Model:
    """An enabled model by its exact name. Raises ModelNotFound, also if its row is not valid."""
    model = (await get_models(connection, {model_name})).get(model_name)
    if model is None:
        raise ModelNotFound
    return model


async def get_models(connection: Connection, model_names: Collection[str]) -> dict[str, Model]:
    """The enabled models with these names. One that does not exist, or whose row is not valid, is left out."""
    models = {}
    ascii_names = sorted(name for name in model_names if name.isascii())
    for row in await connection.execute(_BY_NAMES, {"model_names": ascii_names}):
        # The names are compared again, because MySQL ignores trailing blanks.
        if row.model_name not in model_names or not _is_offered(row):
            continue
        try:
            models[row.model_name] = _load(row)
        except InvalidParameter as error:
            log.error("model_invalid", model=row.model_name, error=error.message)
    return models


async def list_models(database: Database, *, only_enabled: bool = True) -> list[Model]:
    """The models in display order. Rows that are not valid are logged and left out."""
    models, invalid = await read_models(database)
    for name, reason in invalid.items():
        log.error("model_invalid", model=name, error=reason)
    return [model for model in models if _is_offered(model) or not only_enabled]


async def read_models(database: Database) -> tuple[list[Model], dict[str, str]]:
    """The models in display order, and the problem of each row that is not valid, by its name."""
    async with database.read() as connection:
        rows = (await connection.execute(_ALL)).all()
    models, invalid = [], {}
    for row in rows:
        try:
            models.append(_load(row))
        except InvalidParameter as error:
            invalid[row.model_name] = error.message
    return models, invalid


def _is_offered(row: Row[*tuple[Any, ...]] | Model) -> bool:
    """Whether the model is enabled, and this release has its action and task type."""
    action = known_actions().get(row.action)
    return bool(row.enabled and action and row.task_type in action.params)


def _load(row: Row[*tuple[Any, ...]]) -> Model:
    """The model of a row. Raises InvalidParameter for a row that was written without `set_model` and is not valid."""
    columns = {name: _load_column(name, value) for name, value in row._mapping.items()}
    return Model(**columns, rules=tuple(parse_rules(columns["price_rules"])))


def _load_column(name: str, value: Any) -> Any:
    """The column's value, parsed if it is JSON. Raises InvalidParameter for a wrong form."""
    if name not in _JSON or value is None:
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        raise InvalidParameter(name, "不是 JSON") from None
    if name != "price_rules" and not isinstance(parsed, dict):
        raise InvalidParameter(name, "须为 JSON 对象")
    return parsed


def aspect_ratio(model: Model) -> str | None:
    """The aspect ratio that a row fixes, by name or by its canvas in pixels."""
    ratio = model.params.get("aspectRatio")
    width, height = model.params.get("canvasW"), model.params.get("canvasH")
    if ratio or not (width and height):
        return ratio
    divisor = math.gcd(width, height)
    return f"{width // divisor}:{height // divisor}"


def validate_model(
    model_name: str,
    points_cost: int,
    task_type: str,
    action: str,
    params: dict[str, Any],
    defaults: dict[str, Any],
    price_rules: list[dict[str, Any]] | None = None,
) -> None:
    """Validates a row that is being written. InvalidParameter names the column."""
    if not 0 < len(model_name) <= MAX_NAME_LENGTH or not model_name.isascii() or model_name != model_name.strip():
        raise InvalidParameter("model_name", "须为 1 到 100 个 ASCII 字符")
    if not 0 <= points_cost <= MAX_POINTS:
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
    merged = merge_params(spec, task_type, fixed, {}, defaults)
    images = () if task_type.startswith("text_to_") else ("https://example.com/picture.jpg",)
    try:
        build_request(spec, ActionInput(task_type, "a prompt", images, merged))
    except InvalidParameter as error:
        if error.field != IMAGE_URL:  # the caller chooses the images
            raise
    validate_rules(price_rules, spec.params[task_type], fixed, points_cost)


@retry_on_conflict
async def set_model(database: Database, model_name: str, changes: dict[str, Any]) -> None:
    """Creates the model, or changes the columns in `changes` that are not None. Submitted tasks keep their price."""
    async with database.begin() as connection:
        await write_model(connection, model_name, changes)


async def write_model(
    connection: Connection, model_name: str, changes: dict[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The same in the caller's transaction. Returns the columns before, which are None for a new model, and after.

    A column whose JSON is broken is None in the columns before.
    """
    row = (await connection.execute(_BY_NAME.with_for_update(), {"model_name": model_name})).one_or_none()
    new = _merge(model_name, row, changes)
    if row is None:
        statement = insert(points_config).values(model_name=model_name, created_at=utc_now(), updated_at=utc_now())
    else:
        is_model = points_config.c.model_name == model_name
        statement = update(points_config).where(is_model).values(updated_at=utc_now())  # type: ignore[assignment]
    await connection.execute(statement.values(**new))
    return None if row is None else {name: _readable(name, getattr(row, name)) for name in _WRITABLE}, new


async def preview_model(connection: Connection, model_name: str, changes: dict[str, Any]) -> Model:
    """The model as `write_model` would leave it, enabled or not. Nothing is stored. Raises like `write_model`."""
    row = (await connection.execute(_BY_NAME, {"model_name": model_name})).one_or_none()
    new = _merge(model_name, row, changes)
    now = (await connection.execute(select(utc_now()))).scalar_one() if row is None else row.now
    return Model(model_name=model_name, **new, now=now, rules=tuple(parse_rules(new["price_rules"])))


def _merge(model_name: str, row: Row[*tuple[Any, ...]] | None, changes: dict[str, Any]) -> dict[str, Any]:
    """The columns of the row with the changes. Raises InvalidParameter for a result that is not valid."""
    unchanged = [name for name in _WRITABLE if changes.get(name) is None]
    old = {} if row is None else {name: _load_column(name, getattr(row, name)) for name in unchanged}
    new = _DEFAULTS | old | {name: value for name, value in changes.items() if value is not None}
    for required in ("points_cost", "task_type", "action"):
        if new[required] is None:
            raise InvalidParameter(required, "不能为空")
    validate_model(model_name, **{name: new[name] for name in VALIDATED_COLUMNS})
    new["price_rules"] = new["price_rules"] or None  # an empty list is stored as NULL
    return new


def _readable(name: str, value: Any) -> Any:
    try:
        return _load_column(name, value)
    except InvalidParameter:
        return None


@retry_on_conflict
async def disable_model(database: Database, model_name: str) -> None:
    """Disables the model for new tasks. Raises ModelNotFound."""
    async with database.begin() as connection:
        await write_disabled(connection, model_name)


async def write_disabled(connection: Connection, model_name: str) -> bool:
    """The same in the caller's transaction. Returns whether the model was enabled. The row need not be valid."""
    row = (await connection.execute(_BY_NAME.with_for_update(), {"model_name": model_name})).one_or_none()
    if row is None or row.model_name != model_name:  # MySQL ignores trailing blanks
        raise ModelNotFound
    is_model = points_config.c.model_name == model_name
    await connection.execute(update(points_config).where(is_model).values(enabled=False, updated_at=utc_now()))
    return bool(row.enabled)


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
_JSON = frozenset({"params", "defaults", "price_rules"})  # read as text, so that broken JSON fails only its own row
_COLUMNS = [
    type_coerce(points_config.c[name], Text).label(name) if name in _JSON else points_config.c[name]
    for name in ("model_name", *_WRITABLE)
]
_BY_NAME = select(*_COLUMNS, utc_now().label("now")).where(points_config.c.model_name == bindparam("model_name"))
_BY_NAMES = select(*_COLUMNS, utc_now().label("now")).where(
    points_config.c.model_name.in_(bindparam("model_names", expanding=True))
)
_ALL = select(*_COLUMNS, utc_now().label("now")).order_by(points_config.c.sort, points_config.c.id)
