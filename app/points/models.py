"""Models a caller may name, as rows of `points_config`: read them, list them, write them by the same rules."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update

from app.database import Session, Sessions, repeat_on_conflict, utc_now
from app.errors import InvalidParameter, ModelNotFound
from app.see2ai.actions import ACTIONS, Action
from app.see2ai.actions.action import fold_params
from app.tables import points_config

LONGEST_NAME = 100


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

    def spec(self) -> Action:
        return ACTIONS[self.action]


async def get_model(session: Session, model_name: str) -> Model:
    """An enabled model by its exact name; ModelNotFound otherwise. To MySQL `x` and `x ` are equal: not to us."""
    row = (await session.execute(_BY_NAME, {"model_name": model_name})).one_or_none()
    if row is None or row.model_name != model_name or not row.enabled or row.action not in ACTIONS:
        raise ModelNotFound
    return _model(row)


async def list_models(sessions: Sessions, *, only_enabled: bool = True) -> list[Model]:
    """All models in their display order."""
    async with sessions.read() as session:
        rows = await session.execute(_ALL)
        return [_model(row) for row in rows if (row.enabled and row.action in ACTIONS) or not only_enabled]


def _model(row: Row[*tuple[Any, ...]]) -> Model:
    return Model(**row._mapping)


def check_model(
    model_name: str,
    points_cost: int,
    task_type: str,
    action: str,
    params: dict[str, Any],
    defaults: dict[str, Any],
) -> None:
    """The rules of a row, asked when it is written and never at submit. InvalidParameter names the column."""
    if not 0 < len(model_name) <= LONGEST_NAME or not model_name.isascii() or model_name != model_name.strip():
        raise InvalidParameter("model_name", "须为 1 到 100 个 ASCII 字符")
    if not 0 <= points_cost <= 2**53:
        raise InvalidParameter("points_cost", "不能为负数或过大")
    if action not in ACTIONS:
        raise InvalidParameter("action", f"未知，可选: {', '.join(ACTIONS)}")
    if task_type not in ACTIONS[action].task_types:
        raise InvalidParameter("task_type", f"该 action 支持: {', '.join(sorted(ACTIONS[action].task_types))}")
    fold_params(ACTIONS[action], {}, {}, params)
    fold_params(ACTIONS[action], {}, params, defaults)


@repeat_on_conflict
async def set_model(sessions: Sessions, model_name: str, changes: dict[str, Any]) -> None:
    """Creates the model or changes some of its columns. Tasks already submitted keep their price."""
    async with sessions.begin() as session:
        row = (await session.execute(_BY_NAME.with_for_update(), {"model_name": model_name})).one_or_none()
        old = {} if row is None else {name: getattr(row, name) for name in _WRITABLE}
        new = _BLANK | old | {name: value for name, value in changes.items() if value is not None}
        for required in ("points_cost", "task_type", "action"):
            if new[required] is None:
                raise InvalidParameter(required, "不能为空")
        check_model(model_name, new["points_cost"], new["task_type"], new["action"], new["params"], new["defaults"])
        if row is None:
            statement = insert(points_config).values(model_name=model_name, created_at=utc_now(), updated_at=utc_now())
        else:
            named = points_config.c.model_name == model_name
            statement = update(points_config).where(named).values(updated_at=utc_now())  # type: ignore[assignment]
        await session.execute(statement.values(**new))


async def disable_model(sessions: Sessions, model_name: str) -> None:
    """No new tasks on this model; those already submitted end as usual. ModelNotFound where there is none."""
    async with sessions.begin() as session:
        named = points_config.c.model_name == model_name
        changed = await session.execute(update(points_config).where(named).values(enabled=False, updated_at=utc_now()))
        if not changed.rowcount:
            raise ModelNotFound


_BLANK: dict[str, Any] = {
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
_WRITABLE = tuple(_BLANK)
_COLUMNS = [points_config.c[name] for name in ("model_name", *_WRITABLE)]
_BY_NAME = select(*_COLUMNS, utc_now().label("now")).where(points_config.c.model_name == bindparam("model_name"))
_ALL = select(*_COLUMNS, utc_now().label("now")).order_by(points_config.c.sort, points_config.c.id)
