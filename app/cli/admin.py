"""`gateway users|keys|points|models|tasks`: an operator's hands on accounts, points and models."""

import asyncio
import json as json_module
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from app.accounts.credentials import sign_token
from app.accounts.keys import create_key, revoke_key
from app.accounts.users import create_user, set_status, user_exists
from app.cli.console import Json, answer, answer_rows, finish_badly, open_for_command
from app.errors import NotFound
from app.points import ledger
from app.points.models import disable_model, list_models, set_model
from app.runtime import Runtime
from app.tasks.find import get_task_for_operator

users = typer.Typer(no_args_is_help=True, help="Create users, sign tokens, ban.")
keys = typer.Typer(no_args_is_help=True, help="API keys: shown once, revoked at once.")
points = typer.Typer(no_args_is_help=True, help="Grant points by reference.")
models = typer.Typer(no_args_is_help=True, help="Models and prices.")
tasks = typer.Typer(no_args_is_help=True, help="Look into a task.")


def add_to(app: typer.Typer) -> None:
    for name, group in {"users": users, "keys": keys, "points": points, "models": models, "tasks": tasks}.items():
        app.add_typer(group, name=name)


def _run(work: Callable[[Runtime], Awaitable[Any]]) -> Any:
    async def with_runtime() -> Any:
        async with open_for_command() as runtime:
            return await work(runtime)

    return asyncio.run(with_runtime())


@users.command("create")
def users_create(
    id: Annotated[int | None, typer.Option(min=1, help="Import this id as it is")] = None,  # noqa: A002
    username: Annotated[str | None, typer.Option()] = None,
    points: Annotated[int, typer.Option(min=0, help="Points to begin with")] = 0,
    admin: Annotated[bool, typer.Option("--admin")] = False,
    json: Json = False,
) -> None:
    """A new user."""

    async def work(runtime: Runtime) -> int:
        user_id = await create_user(runtime.sessions, user_id=id, username=username, admin=admin)
        if points:
            await ledger.grant(
                runtime.sessions, user_id=user_id, points=points, ref=f"users-create:{user_id}", remark="开户赠送"
            )
        return user_id

    answer({"userId": _run(work)}, json)


@users.command("token")
def users_token(
    user_id: int,
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 365)] = 24,
    json: Json = False,
) -> None:
    """A JWT for a user, where this gateway signs them itself (HS256)."""

    async def work(runtime: Runtime) -> str:
        await _need_user(runtime, user_id)
        if runtime.settings.jwt_algorithm != "HS256":
            finish_badly(f"JWT_ALGORITHM is {runtime.settings.jwt_algorithm}: another service signs the tokens")
        return sign_token(runtime.settings, user_id, hours=hours)

    answer({"token": _run(work)}, json)


@users.command("ban")
def users_ban(user_id: int, json: Json = False) -> None:
    """Refuses the user's credentials from now on; tokens issued so far stay void."""
    _run(lambda runtime: set_status(runtime.sessions, user_id, "banned"))
    answer({"userId": user_id, "status": "banned"}, json)


@users.command("unban")
def users_unban(user_id: int, json: Json = False) -> None:
    """Lets the user in again, with a new token."""
    _run(lambda runtime: set_status(runtime.sessions, user_id, "active"))
    answer({"userId": user_id, "status": "active"}, json)


@keys.command("create")
def keys_create(user_id: int, name: Annotated[str, typer.Option()] = "", json: Json = False) -> None:
    """A new API key; this is the only time it is shown."""

    async def work(runtime: Runtime) -> str:
        await _need_user(runtime, user_id)
        return await create_key(runtime.sessions, user_id, name=name)

    answer({"apiKey": _run(work)}, json)


@keys.command("revoke")
def keys_revoke(user_id: int, prefix: str, json: Json = False) -> None:
    """Revokes the user's key that begins with PREFIX (its first ten characters), in every process at once."""
    answer({"revoked": _run(lambda runtime: revoke_key(runtime.sessions, prefix, user_id))}, json)


@points.command("grant")
def points_grant(
    user_id: int,
    amount: Annotated[int, typer.Argument(metavar="POINTS", min=1)],
    ref: Annotated[str, typer.Option(help="The top-up's own number; the same one is applied once")],
    remark: Annotated[str, typer.Option()] = "",
    json: Json = False,
) -> None:
    """Tops a user up, once per reference."""

    async def work(runtime: Runtime) -> tuple[bool, int]:
        await _need_user(runtime, user_id)
        return await ledger.grant(runtime.sessions, user_id=user_id, points=amount, ref=ref, remark=remark)

    applied, balance = _run(work)
    answer({"userId": user_id, "balance": balance, "applied": applied}, json)


@models.command("list")
def models_list(json: Json = False) -> None:
    """All rows of points_config, also the disabled ones."""

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        found = await list_models(runtime.sessions, only_enabled=False)
        return [{name: value for name, value in asdict(model).items() if name != "now"} for model in found]

    rows = _run(work)
    shown = ("model_name", "points_cost", "task_type", "params", "enabled")
    answer_rows(rows if json else [{name: row[name] for name in shown} for row in rows], json)


@models.command("set")
def models_set(
    name: str,
    points_cost: Annotated[int | None, typer.Option(min=0)] = None,
    task_type: Annotated[str | None, typer.Option()] = None,
    action: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str | None, typer.Option()] = None,
    params: Annotated[str | None, typer.Option(help='JSON, e.g. {"aspectRatio": "1:1"}')] = None,
    defaults: Annotated[str | None, typer.Option(help="JSON")] = None,
    sort: Annotated[int | None, typer.Option()] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable")] = None,
    json: Json = False,
) -> None:
    """Creates a model or changes some of its columns; tasks already submitted keep their price."""
    changes = {
        "points_cost": points_cost,
        "task_type": task_type,
        "action": action,
        "description": description,
        "params": _object("--params", params),
        "defaults": _object("--defaults", defaults),
        "sort": sort,
        "enabled": enabled,
    }
    _run(lambda runtime: set_model(runtime.sessions, name, changes))
    answer({"modelName": name, **{key: value for key, value in changes.items() if value is not None}}, json)


@models.command("disable")
def models_disable(name: str, json: Json = False) -> None:
    """No new tasks on this model; those already submitted end as usual."""
    _run(lambda runtime: disable_model(runtime.sessions, name))
    answer({"modelName": name, "enabled": False}, json)


@tasks.command("show")
def tasks_show(task_no: str, json: Json = False) -> None:
    """The whole row of a task, with its steps and what SEE2AI said."""
    row = _run(lambda runtime: get_task_for_operator(runtime.sessions, task_no))
    steps = row.pop("steps")
    answer(row | ({"steps": steps} if json else {}), json)
    for step in () if json else steps:
        print(f"  {step['at']}  {step['step']:<11} {step['note']}")


async def _need_user(runtime: Runtime, user_id: int) -> None:
    if not await user_exists(runtime.sessions, user_id):
        raise NotFound(f"no user {user_id}")


def _object(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json_module.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter("must be a JSON object", param_hint=option)
    return value
