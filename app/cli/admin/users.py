"""`gateway users|keys|points|tasks`: administers users, API keys and points, and shows a task."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.output import Json, Reason, fail, parse_time_option, print_record, run_with_database, settings_or_exit
from app.errors import NotFound

if TYPE_CHECKING:
    from app.database import Database

PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input")]
users = typer.Typer(no_args_is_help=True, help="Create users, set passwords, sign tokens, ban.")
keys = typer.Typer(no_args_is_help=True, help="API keys: create and revoke.")
points = typer.Typer(no_args_is_help=True, help="Grant, correct and expire points.")
tasks = typer.Typer(no_args_is_help=True, help="Show a task.")


def add_to(app: typer.Typer) -> None:
    for name, group in {"users": users, "keys": keys, "points": points, "tasks": tasks}.items():
        app.add_typer(group, name=name)


@users.command("create")
def users_create(
    id: Annotated[int | None, typer.Option(min=1, help="The id, for an imported user")] = None,  # noqa: A002
    username: Annotated[str | None, typer.Option()] = None,
    points: Annotated[int, typer.Option(min=0, help="Initial points")] = 0,
    admin: Annotated[bool, typer.Option("--admin")] = False,
    password_stdin: PasswordStdin = False,
    totp: Annotated[
        bool, typer.Option("--totp", help="Enrol a second factor, as an admin in production is in any case")
    ] = False,
    json: Json = False,
) -> None:
    """Creates a user."""
    from app.accounts.log_in.passwords import check_password
    from app.admin.actions import COMMAND_LINE
    from app.admin.log_in import set_password
    from app.admin.users import create_user

    settings = settings_or_exit()
    password = _read_password() if password_stdin else None
    if password is not None:
        check_password("password", password, username)
    must_enrol = admin and settings.environment == "production" and settings.jwt_algorithm == "HS256"

    async def work(database: "Database") -> dict[str, Any]:
        role = "admin" if admin else "user"
        created = await create_user(database, COMMAND_LINE, user_id=id, username=username, role=role, points=points)
        user_id = int(created.target)
        if password is not None:
            await set_password(database, COMMAND_LINE, user_id, password)
        return {"userId": user_id} | (await _enrol(database, user_id) if totp or must_enrol else {})

    print_record(run_with_database(work), json)


@users.command("password")
def users_password(user_id: int, password_stdin: PasswordStdin = False, json: Json = False) -> None:
    """Sets a user's password and ends all log-ins of the user. It asks for the password without --password-stdin."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.log_in import set_password

    password = _read_password() if password_stdin else typer.prompt("Password", hide_input=True, err=True)
    run_with_database(lambda database: set_password(database, COMMAND_LINE, user_id, password))
    _end_streams(user_id)
    print_record({"userId": user_id}, json)


@users.command("totp")
def users_totp(user_id: int, json: Json = False) -> None:
    """Enrols a second factor in place of any other. The link and the recovery codes are shown only now."""
    print_record(run_with_database(lambda database: _enrol(database, user_id)), json)


@users.command("token")
def users_token(
    user_id: int,
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 365)] = 24,
    json: Json = False,
) -> None:
    """Signs a JWT for a user, where this gateway signs tokens itself (HS256)."""
    from app.accounts.credentials import sign_token
    from app.accounts.users import get_token_version

    settings = settings_or_exit()
    version = run_with_database(lambda database: get_token_version(database, user_id))
    if settings.jwt_algorithm != "HS256":
        fail(f"JWT_ALGORITHM is {settings.jwt_algorithm}: another service signs the tokens")
    print_record({"token": sign_token(settings, user_id, hours=hours, version=version)}, json)


@users.command("ban")
def users_ban(user_id: int, reason: Reason = "", json: Json = False) -> None:
    """Refuses the user's credentials from now on. Tokens issued before stay invalid after an unban."""
    _set_status(user_id, "banned", reason, json)


@users.command("unban")
def users_unban(user_id: int, reason: Reason = "", json: Json = False) -> None:
    """Accepts the user again. The user needs a new token."""
    _set_status(user_id, "active", reason, json)


def _set_status(user_id: int, status: str, reason: str, as_json: bool) -> None:
    from app.admin.actions import COMMAND_LINE
    from app.admin.users import set_status

    run_with_database(lambda database: set_status(database, COMMAND_LINE, user_id, status, reason=reason))
    _end_streams(user_id)
    print_record({"userId": user_id, "status": status}, as_json)


@users.command("role")
def users_role(
    user_id: int, role: Annotated[Literal["user", "admin"], typer.Argument()], reason: Reason = "", json: Json = False
) -> None:
    """Makes a user an admin, or an admin a user. One admin must remain."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.users import set_role

    run_with_database(lambda database: set_role(database, COMMAND_LINE, user_id, role, reason=reason))
    print_record({"userId": user_id, "role": role}, json)


@keys.command("create")
def keys_create(
    user_id: int,
    name: Annotated[str, typer.Option()] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Also allow /admin, while the user is an admin")] = False,
    scope: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all but admin")] = None,
    daily_cap: Annotated[int | None, typer.Option(min=0, help="Points a day")] = None,
    monthly_cap: Annotated[int | None, typer.Option(min=0, help="Points a month")] = None,
    total_cap: Annotated[int | None, typer.Option(min=0, help="Points in total")] = None,
    max_tasks: Annotated[int | None, typer.Option(min=0, help="Tasks in flight")] = None,
    json: Json = False,
) -> None:
    """Creates an API key. It is shown only now."""
    from app.accounts.api_keys import ADMIN_SCOPE, ALL_SCOPES, create_key
    from app.accounts.keys.caps import Caps

    if unknown := set(scope or ()) - set(ALL_SCOPES):
        fail(f"no scope {min(unknown)}; there are {', '.join(ALL_SCOPES)}")
    scopes = (*(scope or ALL_SCOPES), *([ADMIN_SCOPE] if admin else []))
    caps = Caps(daily_cap, monthly_cap, total_cap, max_tasks)

    async def work(database: "Database") -> str:
        await _require_user(database, user_id)
        return await create_key(database, user_id, name=name, scopes=scopes, caps=caps)

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
    ref: Annotated[str, typer.Option(help="Number of the top-up; each number is applied once")],
    expires: Annotated[str | None, typer.Option(metavar="ISO", help="When the points expire; default: never")] = None,
    remark: Annotated[str, typer.Option()] = "",
    json: Json = False,
) -> None:
    """Grants points to a user, once per reference."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.points import grant

    expires_at = parse_time_option("--expires", expires)
    applied, balance = run_with_database(
        lambda database: grant(
            database, COMMAND_LINE, user_id=user_id, points=amount, ref=ref, remark=remark, expires=expires_at
        )
    )
    print_record({"userId": user_id, "balance": balance, "applied": applied}, json)


@points.command("adjust", context_settings={"ignore_unknown_options": True})  # -50 is a number
def points_adjust(
    user_id: int,
    amount: Annotated[int, typer.Argument(metavar="POINTS", help="More points, or fewer: 50 or -50")],
    ref: Annotated[str, typer.Option(help="Number of the correction; each number is applied once")],
    reason: Annotated[str, typer.Option(help="Why; the user reads it in the ledger")],
    json: Json = False,
) -> None:
    """Corrects a user's points, once per reference and never below zero."""
    from app.admin.actions import COMMAND_LINE
    from app.admin.users import adjust
    from app.points.balance import get_balance

    async def work(database: "Database") -> tuple[bool, int]:
        result = await adjust(database, COMMAND_LINE, user_id, amount, reason=reason, ref=ref)
        return result.applied, (await get_balance(database, user_id)).available

    applied, balance = run_with_database(work)
    print_record({"userId": user_id, "balance": balance, "applied": applied}, json)


@points.command("expire")
def points_expire(json: Json = False) -> None:
    """Expires points, as the workers do every hour. Exit 1 where an account's ledger is inconsistent."""
    from app.points.expiry import expire_lots

    result = run_with_database(expire_lots)
    print_record(asdict(result), json)
    if result.failed_users:
        fail(f"the points of {result.failed_users} users were not expired: `gateway audit` shows why")


@tasks.command("show")
def tasks_show(task_no: str, json: Json = False) -> None:
    """Shows the whole row of a task, with its history and SEE2AI's last answer."""
    from app.tasks.queries import get_task_for_operator

    row = run_with_database(lambda database: get_task_for_operator(database, task_no))
    history = row.pop("history")
    print_record(row | ({"history": history} if json else {}), json)
    for step in () if json else history:
        print(f"  {step['at']}  {step['step']:<11} {step['note']}")


async def _require_user(database: "Database", user_id: int) -> None:
    from app.accounts.users import user_exists

    if not await user_exists(database, user_id):
        raise NotFound(f"no user {user_id}")


def _read_password() -> str:
    """The first line of standard input."""
    return sys.stdin.readline().rstrip("\r\n")


def _end_streams(user_id: int) -> None:
    """Makes the user's open streams check their credentials. Without Redis they do so at their next ping."""
    settings = settings_or_exit()
    if settings.is_redis_embedded:  # no other process hears of it
        return
    import asyncio

    from app.messaging.pubsub import CHANNEL, TaskPubSub
    from app.messaging.redis import open_redis

    async def publish() -> None:
        async with open_redis(settings) as redis:
            pubsub = TaskPubSub(redis, settings.redis_name(CHANNEL))
            pubsub.recheck(user_id)
            await pubsub.close()

    asyncio.run(publish())


async def _enrol(database: "Database", user_id: int) -> dict[str, Any]:
    from app.admin.actions import COMMAND_LINE
    from app.admin.log_in import enrol

    enrolment, codes = await enrol(database, COMMAND_LINE, user_id)
    return {"userId": user_id, "totpUrl": enrolment.url, "recoveryCodes": codes}
