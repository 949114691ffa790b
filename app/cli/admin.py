"""`gateway users|keys|points|tasks`: an operator's hands on accounts and points."""

from dataclasses import asdict
from typing import Annotated

import typer

from app.accounts.credentials import sign_token
from app.accounts.keys import ADMIN_SCOPE, ALL_SCOPES, create_key, revoke_key
from app.accounts.users import create_user, set_status, user_exists
from app.cli.console import Json, answer, finish_badly, moment, run_with_runtime
from app.errors import NotFound
from app.points import ledger
from app.points.expiry import expire_lots
from app.runtime import Runtime
from app.tasks.find import get_task_for_operator

users = typer.Typer(no_args_is_help=True, help="Create users, sign tokens, ban.")
keys = typer.Typer(no_args_is_help=True, help="API keys: shown once, revoked at once.")
points = typer.Typer(no_args_is_help=True, help="Grant points by reference, end those that have lapsed.")
tasks = typer.Typer(no_args_is_help=True, help="Look into a task.")


def add_to(app: typer.Typer) -> None:
    for name, group in {"users": users, "keys": keys, "points": points, "tasks": tasks}.items():
        app.add_typer(group, name=name)


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
            ref = f"users-create:{user_id}"
            await ledger.grant(
                runtime.sessions, user_id=user_id, points=points, ref=ref, remark="开户赠送", is_own=True
            )
        return user_id

    answer({"userId": run_with_runtime(work)}, json)


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

    answer({"token": run_with_runtime(work)}, json)


@users.command("ban")
def users_ban(user_id: int, json: Json = False) -> None:
    """Refuses the user's credentials from now on; tokens issued so far stay void."""
    run_with_runtime(lambda runtime: set_status(runtime.sessions, user_id, "banned"))
    answer({"userId": user_id, "status": "banned"}, json)


@users.command("unban")
def users_unban(user_id: int, json: Json = False) -> None:
    """Lets the user in again, with a new token."""
    run_with_runtime(lambda runtime: set_status(runtime.sessions, user_id, "active"))
    answer({"userId": user_id, "status": "active"}, json)


@keys.command("create")
def keys_create(
    user_id: int,
    name: Annotated[str, typer.Option()] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Reaches /admin as well, while its user is an admin")] = False,
    json: Json = False,
) -> None:
    """A new API key; this is the only time it is shown."""
    scopes = (*ALL_SCOPES, ADMIN_SCOPE) if admin else ALL_SCOPES

    async def work(runtime: Runtime) -> str:
        await _need_user(runtime, user_id)
        return await create_key(runtime.sessions, user_id, name=name, scopes=scopes)

    answer({"apiKey": run_with_runtime(work)}, json)


@keys.command("revoke")
def keys_revoke(user_id: int, prefix: str, json: Json = False) -> None:
    """Revokes the user's key that begins with PREFIX (its first ten characters), in every process at once."""
    answer({"revoked": run_with_runtime(lambda runtime: revoke_key(runtime.sessions, prefix, user_id))}, json)


@points.command("grant")
def points_grant(
    user_id: int,
    amount: Annotated[int, typer.Argument(metavar="POINTS", min=1)],
    ref: Annotated[str, typer.Option(help="The top-up's own number; the same one is applied once")],
    expires: Annotated[str | None, typer.Option(metavar="ISO", help="When the points lapse; default: never")] = None,
    remark: Annotated[str, typer.Option()] = "",
    json: Json = False,
) -> None:
    """Tops a user up, once per reference."""
    lapse = moment("--expires", expires)

    async def work(runtime: Runtime) -> tuple[bool, int]:
        await _need_user(runtime, user_id)
        return await ledger.grant(
            runtime.sessions, user_id=user_id, points=amount, ref=ref, remark=remark, expires=lapse
        )

    applied, balance = run_with_runtime(work)
    answer({"userId": user_id, "balance": balance, "applied": applied}, json)


@points.command("expire")
def points_expire(json: Json = False) -> None:
    """Ends all points whose time is over, as the workers do every hour. Exit 1 where an account's books refused."""
    swept = run_with_runtime(lambda runtime: expire_lots(runtime.sessions))
    answer(asdict(swept), json)
    if swept.stuck:
        finish_badly(f"{swept.stuck} accounts refused: `gateway audit` tells why")


@tasks.command("show")
def tasks_show(task_no: str, json: Json = False) -> None:
    """The whole row of a task, with its steps and what SEE2AI said."""
    row = run_with_runtime(lambda runtime: get_task_for_operator(runtime.sessions, task_no))
    steps = row.pop("steps")
    answer(row | ({"steps": steps} if json else {}), json)
    for step in () if json else steps:
        print(f"  {step['at']}  {step['step']:<11} {step['note']}")


async def _need_user(runtime: Runtime, user_id: int) -> None:
    if not await user_exists(runtime.sessions, user_id):
        raise NotFound(f"no user {user_id}")
