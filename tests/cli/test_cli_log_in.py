"""`gateway users` and the log-in: passwords, tokens with a version, second factors of admins."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from app.accounts.log_in import sessions
from app.accounts.log_in.sessions import Session
from app.cli.commands import app
from app.cli.output import run_with_database, settings_or_exit
from app.database import Database
from app.errors import GatewayError, SecondFactorRequired, Unauthenticated
from app.messaging.pubsub import CHANNEL, RECHECK
from tests.support.log_ins import LAPTOP, PASSWORD

Run = Callable[..., Result]


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def typed(gateway: Run) -> Run:
    """Runs a command with a text on its standard input."""

    def run(text: str, *words: str) -> Result:
        result = CliRunner().invoke(app, list(words), input=text)
        if isinstance(result.exception, GatewayError):
            result.exit_code = 1
        return result

    return run


def log_in(username: str, password: str, code: str | None = None) -> Session:
    async def work(database: Database) -> Session:
        user = await sessions.verify_log_in(database, username, password, LAPTOP)
        return await sessions.begin_session(database, settings_or_exit(), user, code, LAPTOP, is_cookie=False)

    return run_with_database(work)


def test_a_user_with_a_password_logs_in(typed: Run) -> None:
    words = ("users", "create", "--username", "alice", "--password-stdin", "--json")
    user_id = said(typed(f"{PASSWORD}\n", *words))["userId"]
    assert log_in("alice", PASSWORD).user_id == user_id
    changed = typed("another-long-password\r\n", "users", "password", str(user_id), "--password-stdin", "--json")
    assert said(changed) == {"userId": user_id}
    with pytest.raises(Unauthenticated):
        log_in("alice", PASSWORD)
    assert log_in("alice", "another-long-password").user_id == user_id
    prompted = typed("a third long password\n", "users", "password", str(user_id))
    assert prompted.exit_code == 0
    assert "a third long password" not in prompted.stdout
    assert log_in("alice", "a third long password").user_id == user_id


def test_a_bad_password_makes_no_user(typed: Run, gateway: Run) -> None:
    for password in ("", "short", "password123"):
        words = ("users", "create", "--username", "alice", "--password-stdin")
        assert typed(f"{password}\n", *words).exit_code == 1
    assert gateway("users", "create", "--username", "alice").exit_code == 0
    assert typed("short\n", "users", "password", "1", "--password-stdin").exit_code == 1
    assert typed(f"{PASSWORD}\n", "users", "password", "424242", "--password-stdin").exit_code == 1


def test_a_ban_ends_the_token_and_a_new_one_of_the_same_second_works_after_the_unban(gateway: Run) -> None:
    from app.accounts.authentication import authenticate
    from app.accounts.users import get_token_version
    from app.runtime import open_runtime

    user_id = said(gateway("users", "create", "--json"))["userId"]

    def token() -> str:
        return str(said(gateway("users", "token", str(user_id), "--json"))["token"])

    def works(credential: str) -> bool:
        import asyncio

        async def run() -> bool:
            async with open_runtime(settings_or_exit()) as runtime:
                try:
                    await authenticate(runtime, credential)
                except Unauthenticated:
                    return False
                return True

        return asyncio.run(run())

    before = token()
    assert works(before)
    said(gateway("users", "ban", str(user_id), "--json"))
    assert not works(before)
    assert run_with_database(lambda database: get_token_version(database, user_id)) == 1
    said(gateway("users", "unban", str(user_id), "--json"))
    assert not works(before)
    assert works(token())


@pytest.mark.worlds("real")
def test_a_ban_reaches_the_streams_of_other_processes(gateway: Run) -> None:
    import redis

    user_id = said(gateway("users", "create", "--json"))["userId"]
    settings = settings_or_exit()
    with redis.Redis.from_url(settings.redis_url) as client, client.pubsub() as listener:
        listener.subscribe(settings.redis_name(CHANNEL))
        assert listener.get_message(timeout=30)["type"] == "subscribe"
        said(gateway("users", "ban", str(user_id), "--json"))
        assert listener.get_message(timeout=30)["data"].decode() == f"{user_id} {RECHECK}"


def test_an_admin_in_production_is_enrolled(typed: Run, gateway: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("users", "create", "--admin", "--username", "root", "--password-stdin", "--json")
    assert set(said(typed(f"{PASSWORD}\n", *words))) == {"userId"}
    for name, value in {
        "ENVIRONMENT": "production",
        "JWT_SECRET": "s" * 40,
        "SEE2AI_API_KEY": "k" * 20,
        "SEE2AI_BASE_URL": "https://see2ai.com",
        "PUBLIC_URL": "https://api.example.com",
    }.items():
        monkeypatch.setenv(name, value)
    made = said(gateway("users", "create", "--admin", "--username", "boss", "--json"))
    secret = parse_qs(urlsplit(made["totpUrl"]).query)["secret"]
    assert made["totpUrl"].startswith("otpauth://totp/1818ai:boss?")
    assert (len(secret), len(made["recoveryCodes"])) == (1, 10)
    said(typed(f"{PASSWORD}\n", "users", "password", str(made["userId"]), "--password-stdin", "--json"))
    with pytest.raises(SecondFactorRequired):
        log_in("boss", PASSWORD)
    assert log_in("boss", PASSWORD, made["recoveryCodes"][0]).user_id == made["userId"]
    again = said(gateway("users", "totp", str(made["userId"]), "--json"))
    assert again["totpUrl"] != made["totpUrl"]
    assert set(said(gateway("users", "create", "--json"))) == {"userId"}
    assert set(said(gateway("users", "create", "--totp", "--json"))) == {"userId", "totpUrl", "recoveryCodes"}
    assert gateway("users", "totp", "424242").exit_code == 1
