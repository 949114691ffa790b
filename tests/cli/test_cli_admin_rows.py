"""Each command that changes something leaves a row in the list of what admins did, without an admin's id."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.admin.actions import ActionFilters, list_actions
from app.cli.commands import app
from app.database import open_database
from app.settings import Settings
from tests.support.log_ins import PASSWORD
from tests.support.makers import TEXT_MODEL
from tests.support.worlds import World

pytestmark = pytest.mark.both_worlds
Run = Callable[..., Result]


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def acts(world: World) -> list[dict[str, Any]]:
    """Oldest first."""

    async def work() -> list[dict[str, Any]]:
        database = open_database(Settings(_env_file=None, **world.settings))
        try:
            return (await list_actions(database, 1, ActionFilters(), page=1, size=100))[0]
        finally:
            await database.close()

    return asyncio.run(work())[::-1]


def test_every_change_leaves_a_row(gateway: Run, world: World) -> None:
    said(gateway("users", "create", "--id", "1", "--admin", "--json"))
    said(gateway("users", "create", "--id", "2", "--points", "50", "--json"))
    said(gateway("users", "role", "2", "admin", "--reason", "值班", "--json"))
    said(gateway("users", "ban", "2", "--reason", "滥用", "--json"))
    said(gateway("users", "unban", "2", "--json"))
    with_password = CliRunner().invoke(app, ["users", "password", "2", "--password-stdin", "--json"], input=PASSWORD)
    said(with_password)
    recovery_code = said(gateway("users", "totp", "2", "--json"))["recoveryCodes"][0]
    said(gateway("points", "grant", "2", "20", "--ref", "order-1", "--json"))
    said(gateway("points", "adjust", "2", "-30", "--ref", "fix-1", "--reason", "重复充值", "--json"))
    said(gateway("codes", "create", "--count", "1", "--points", "5", "--batch", "b", "--json"))
    said(gateway("codes", "void", "--batch", "b", "--reason", "泄露", "--json"))
    said(gateway("models", "set", TEXT_MODEL, "--points-cost", "28", "--reason", "促销", "--json"))
    said(gateway("models", "disable", TEXT_MODEL, "--json"))
    rows = acts(world)
    assert [(row["action"], row["target"], row["reason"]) for row in rows] == [
        ("user.create", "1", ""),
        ("user.create", "2", ""),
        ("user.role", "2", "值班"),
        ("user.ban", "2", "滥用"),
        ("user.unban", "2", ""),
        ("user.password", "2", ""),
        ("user.totp", "2", ""),
        ("points.grant", "2", ""),
        ("user.adjust", "2", "重复充值"),
        ("codes.create", "b", ""),
        ("codes.void", "b", "泄露"),
        ("model.set", TEXT_MODEL, "促销"),
        ("model.disable", TEXT_MODEL, ""),
    ]
    assert {(row["admin_id"], row["request_id"]) for row in rows} == {(None, "")}
    assert [secret for secret in (PASSWORD, recovery_code) if secret in str(rows)] == []
    assert said(gateway("audit", "--json"))["ok"]


def test_a_correction_happens_once(gateway: Run, world: World) -> None:
    said(gateway("users", "create", "--id", "2", "--points", "50", "--json"))
    less = ("points", "adjust", "2", "-30", "--ref", "fix-1", "--reason", "x", "--json")
    assert said(gateway(*less)) == {"userId": 2, "balance": 20, "applied": True}
    assert said(gateway(*less)) == {"userId": 2, "balance": 20, "applied": False}
    more = ("points", "adjust", "2", "5", "--ref", "fix-2", "--reason", "x", "--json")
    assert said(gateway(*more)) == {"userId": 2, "balance": 25, "applied": True}
    for words in (("-26", "--ref", "fix-3"), ("-1", "--ref", "fix-2"), ("0", "--ref", "fix-3")):
        assert gateway("points", "adjust", "2", *words, "--reason", "x").exit_code == 1
    assert gateway("points", "adjust", "99", "5", "--ref", "fix-3", "--reason", "x").exit_code == 1
    assert len(acts(world)) == 3


@pytest.mark.parametrize(
    "words",
    [
        ("points", "adjust", "2", "5", "--ref", "x"),
        ("points", "adjust", "2", "5", "--reason", "x"),
        ("points", "adjust", "2", "x", "--ref", "x", "--reason", "x"),
        ("points", "adjust", "2", "5", "--ref", "x", "--reason", "x", "--unknown"),
        ("users", "role", "2", "root"),
    ],
)
@pytest.mark.worlds("embedded")
def test_bad_usage_is_exit_2(gateway: Run, words: tuple[str, ...]) -> None:
    assert gateway(*words).exit_code == 2


def test_one_admin_must_remain(gateway: Run, world: World) -> None:
    said(gateway("users", "create", "--id", "1", "--admin", "--json"))
    assert gateway("users", "ban", "1").exit_code == 1
    assert gateway("users", "role", "1", "user").exit_code == 1
    assert len(acts(world)) == 1
