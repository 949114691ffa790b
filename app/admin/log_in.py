"""Passwords and second factors that an operator sets. Each leaves a row of what admins did, without the secret."""

from app.accounts.log_in import sessions, totp
from app.accounts.log_in.totp import Enrolment
from app.accounts.users import Then
from app.admin.actions import Action, Admin, record
from app.database import Connection, Database


async def set_password(database: Database, admin: Admin, user_id: int, password: str) -> None:
    """Sets a password in place of any other, and ends every token of the user. Raises NotFound."""
    await sessions.set_password(database, user_id, password, then=_recording(admin, "user.password"))


async def enrol(database: Database, admin: Admin, user_id: int) -> tuple[Enrolment, list[str]]:
    """Enrols a second factor in place of any other. Returns it with its recovery codes. Raises NotFound."""
    return await totp.enrol(database, user_id, then=_recording(admin, "user.totp"))


def _recording(admin: Admin, name: str) -> Then:
    async def write(connection: Connection, user_id: int) -> None:
        await record(connection, admin, Action(name, "user", str(user_id)))

    return write
