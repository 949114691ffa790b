"""`gateway users|keys|points|tasks`: an operator's hands on accounts and points."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.output import Json, fail, parse_time_option, print_record, run_with_database, settings_or_exit
from app.errors import NotFound

if TYPE_CHECKING:
    from app.database import Database

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
    from app.accounts.users import create_user
    from app.points import ledger

    async def work(database: "Database") -> int:
        user_id = await create_user(database, user_id=id, username=username, admin=admin)
        if points:
            ref = f"users-create:{user_id}"
            await ledger.grant(database, user_id=user_id, points=points, ref=ref, remark="开户赠送", is_internal=True)
        return user_id

    print_record({"userId": run_with_database(work)}, json)


@users.command("token")
def users_token(
    user_id: int,
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 365)] = 24,
    json: Json = False,
) -> None:
    """A JWT for a user, where this gateway signs them itself (HS256)."""
    from app.accounts.credentials import sign_token

    settings = settings_or_exit()
    run_with_database(lambda database: _need_user(database, user_id))
    if settings.jwt_algorithm != "HS256":
        fail(f"JWT_ALGORITHM is {settings.jwt_algorithm}: another service signs the tokens")
    print_record({"token": sign_token(settings, user_id, hours=hours)}, json)


@users.command("ban")
def users_ban(user_id: int, json: Json = False) -> None:
    """Refuses the user's credentials from now on; tokens issued so far stay void."""
    from app.accounts.users import set_status

    run_with_database(lambda database: set_status(database, user_id, "banned"))
    print_record({"userId": user_id, "status": "banned"}, json)


@users.command("unban")
def users_unban(user_id: int, json: Json = False) -> None:
    """Lets the user in again, with a new token."""
    from app.accounts.users import set_status

    run_with_database(lambda database: set_status(database, user_id, "active"))
    print_record({"userId": user_id, "status": "active"}, json)


@keys.command("create")
def keys_create(
    user_id: int,
    name: Annotated[str, typer.Option()] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Reaches /admin as well, while its user is an admin")] = False,
    json: Json = False,
) -> None:
    """A new API key; this is the only time it is shown."""
    from app.accounts.api_keys import ADMIN_SCOPE, ALL_SCOPES, create_key

    scopes = (*ALL_SCOPES, ADMIN_SCOPE) if admin else ALL_SCOPES

    async def work(database: "Database") -> str:
        await _need_user(database, user_id)
        return await create_key(database, user_id, name=name, scopes=scopes)

    print_record({"apiKey": run_with_database(work)}, json)


@keys.command("revoke")
def keys_revoke(user_id: int, prefix: str, json: Json = False) -> None:
    """Revokes the user's key that begins with PREFIX (its first ten characters), in every process at once."""
    from app.accounts.api_keys import revoke_key

    print_record({"revoked": run_with_database(lambda database: revoke_key(database, prefix, user_id))}, json)


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
    from app.points import ledger

    lapse = parse_time_option("--expires", expires)

    async def work(database: "Database") -> tuple[bool, int]:
        await _need_user(database, user_id)
        return await ledger.grant(database, user_id=user_id, points=amount, ref=ref, remark=remark, expires=lapse)

    applied, balance = run_with_database(work)
    print_record({"userId": user_id, "balance": balance, "applied": applied}, json)


@points.command("expire")
def points_expire(json: Json = False) -> None:
    """Ends all points whose time is over, as the workers do every hour. Exit 1 where an account's books refused."""
    from app.points.expiry import expire_lots

    result = run_with_database(expire_lots)
    print_record(asdict(result), json)
    if result.failed_users:
        fail(f"the points of {result.failed_users} users were not expired: `gateway audit` shows why")


@tasks.command("show")
def tasks_show(task_no: str, json: Json = False) -> None:
    """The whole row of a task, with its steps and what SEE2AI said."""
    from app.tasks.queries import get_task_for_operator

    row = run_with_database(lambda database: get_task_for_operator(database, task_no))
    steps = row.pop("history")
    print_record(row | ({"history": steps} if json else {}), json)
    for step in () if json else steps:
        print(f"  {step['at']}  {step['step']:<11} {step['note']}")


async def _need_user(database: "Database", user_id: int) -> None:
    from app.accounts.users import user_exists

    if not await user_exists(database, user_id):
        raise NotFound(f"no user {user_id}")
