"""docs/pricing.md is run word for word: its migration, its commands, what they print, and its numbers."""

import asyncio
import json
import os
import re
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from typer.testing import CliRunner

import migrations
from app.catalog.models import Model, list_models
from app.catalog.pricing import compute_price
from app.cli.commands import app
from app.database import open_database
from app.errors import InvalidParameter
from app.settings import Settings
from app.upstreams.action import merge_params
from app.upstreams.see2ai.actions import ACTIONS
from migrations.seeding import reprice_model
from tests.support.sql import run_sql

DOC = (Path(__file__).parents[1] / "docs" / "pricing.md").read_text("utf-8")
MIGRATIONS = Path(migrations.__file__).parent
WIDE, SQUARE, VIDEO, TALL = (
    "sc_soraimg_img2img_16x9",
    "sc_soraimg_text_1x1",
    "sc_video_text_standard",
    "sc_soraimg_text_2x3",
)


def block(language: str, like_contains: str) -> str:
    """The one code block of the document in that language that holds these words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOC, flags=re.MULTILINE | re.DOTALL)
    (found,) = [text for named, text in blocks if named == language and like_contains in text]
    return str(found)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Alembic's own folder and the document's migration as it stands there: it must follow the newest of ours."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    head = ScriptDirectory.from_config(config).get_current_head()
    versions = tmp_path / "versions"
    versions.mkdir()
    source = block("python", "def upgrade")
    numbers = dict(re.findall(r'^(revision|down_revision) = "(\d+)"$', source, flags=re.MULTILINE))
    assert numbers == {"revision": f"{int(head or 0) + 1:04}", "down_revision": head}
    assert f"--rev-id {numbers['revision']}`" in DOC
    assert f"alembic upgrade {head}:{numbers['revision']} --sql " in DOC
    (versions / f"{numbers['revision']}.py").write_text(source, "utf-8")
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", os.pathsep.join([str(MIGRATIONS / "versions"), str(versions)]))
    config.attributes |= {"head": head, "example": numbers["revision"]}
    return config


@pytest.fixture
def url(empty_database_url: str) -> str:
    return empty_database_url


def rows_of(url: str) -> dict[str, Model]:
    async def read() -> list[Model]:
        database = open_database(Settings(_env_file=None, database_url=url))
        try:
            return await list_models(database, only_enabled=False)
        finally:
            await database.close()

    return {model.model_name: model for model in asyncio.run(read())}


def columns(rows: dict[str, Model]) -> dict[str, Any]:
    """All but the database's clock."""
    return {
        name: {field: getattr(row, field) for field in Model.__slots__ if field != "now"} for name, row in rows.items()
    }


def cost(model: Model, asked: dict[str, Any], references: int) -> int:
    """As a submit has it."""
    params = merge_params(ACTIONS[model.action], model.task_type, model.fixed, model.defaults, asked)
    return compute_price(model.points_cost, model.price_rules, params.model_dump(by_alias=True), references)


def upgrade(config: Config, url: str, revision: str) -> None:
    config.attributes["database_url"] = url
    command.upgrade(config, revision)


def check_effects(before: dict[str, Model], after: dict[str, Model]) -> None:
    assert set(after) - set(before) == {WIDE}
    changed = {name for name in before if columns(before)[name] != columns(after)[name]}
    assert changed == {SQUARE, VIDEO, TALL}
    assert (before[SQUARE].points_cost, after[SQUARE].points_cost) == (30, 28)
    assert (before[TALL].enabled, after[TALL].enabled) == (True, False)
    assert [cost(rows[VIDEO], {"duration": 10}, 0) for rows in (before, after)] == [800, 720]
    wide = after[WIDE]
    assert (wide.description, wide.sort, wide.enabled) == ("速创生图 图生图-宽屏(16:9)", 85, True)
    told = re.search(r"three reference images then costs .* = (\d+) points, in 1K .* = (\d+)\.", DOC)
    assert told is not None
    assert [cost(wide, {}, 3), cost(wide, {"resolution": "1K"}, 3)] == [int(points) for points in told.groups()]


def test_the_migration_does_what_is_said_and_undoes_it(config: Config, url: str) -> None:
    upgrade(config, url, config.attributes["head"])
    before = rows_of(url)
    upgrade(config, url, "head")
    command.check(config)
    check_effects(before, rows_of(url))
    command.downgrade(config, "-1")
    assert columns(rows_of(url)) == columns(before)
    upgrade(config, url, "head")
    check_effects(before, rows_of(url))


def test_its_sql_does_the_same(config: Config, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    upgrade(config, url, config.attributes["head"])
    before = rows_of(url)
    capsys.readouterr()
    command.upgrade(config, f"{config.attributes['head']}:{config.attributes['example']}", sql=True)
    script = capsys.readouterr().out
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///")) as connection:
            connection.executescript(script)
    else:
        statements = [part.strip() for part in re.split(r";\s*\n", re.sub(r"^--.*$", "", script, flags=re.MULTILINE))]
        asyncio.run(run_sql(url, *[statement for statement in statements if statement]))
    check_effects(before, rows_of(url))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> Callable[[str], tuple[int, str]]:
    """Runs a line of the document; (exit code, standard output)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url)

    def run(line: str) -> tuple[int, str]:
        name, *words = shlex.split(line, comments=True)
        assert name == "gateway"
        result = CliRunner().invoke(app, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout

    return run


def test_the_commands_do_the_same_as_the_migration(
    config: Config, url: str, gateway: Callable[[str], tuple[int, str]], tmp_path: Path
) -> None:
    upgrade(config, url, config.attributes["head"])
    before = rows_of(url)
    assert gateway("gateway models diff") == (0, "equal: points_config is what the migrations seed\n")
    for line in block("bash", "gateway models disable").splitlines():
        assert gateway(line)[0] == 0, line
    after = rows_of(url)
    check_effects(before, after)
    code, told = gateway("gateway models diff")
    assert code == 1
    assert sorted(told.splitlines()) == sorted(block("", "added ").splitlines())
    migrated = f"sqlite+aiosqlite:///{tmp_path / 'migrated.db'}"
    upgrade(config, migrated, "head")
    assert columns(after) == columns(rows_of(migrated))


def test_the_worked_numbers_are_those_of_the_seeded_rows(empty_sqlite: Path) -> None:
    rows = rows_of(f"sqlite+aiosqlite:///{empty_sqlite}")
    told = re.findall(r"^\| `(sc_\w+)` \| `(\{.*?\})` \| (\d+) \| (\d+) \|", DOC, flags=re.MULTILINE)
    assert len(told) == 11
    for name, asked, references, points in told:
        assert cost(rows[name], json.loads(asked), int(references)) == int(points), name
    assert {row.points_cost for name, row in rows.items() if "soraimg" in name} == {30, 35}


@pytest.mark.anyio
@pytest.mark.worlds("embedded")
async def test_the_quote_is_answered_as_shown(api: Any, make: Any) -> None:
    user = await make.user(points=1000)
    shown = block("bash", "/tasks/quote")
    body = re.search(r"-d '(.*)'", shown)
    answer = re.search(r'"data":(\{.*\})', shown)
    assert body is not None
    assert answer is not None
    told = await api.post("/user/ai/tasks/quote", json=json.loads(body[1]), headers=user.headers)
    assert told.json()["data"] == json.loads(answer[1])
    submitted = await api.post("/user/ai/tasks/submit", json=json.loads(body[1]), headers=user.headers)
    assert submitted.json()["data"]["pointsCost"] == json.loads(answer[1])["pointsCost"]


def test_a_migration_with_bad_rules_stops_before_it_writes() -> None:
    of_the_row = {"action": "see2ai_image_generation_fast_v1", "task_type": "text_to_image"}
    rules = [{"param": "resolution", "points": {"1K": 30, "2K": 45}}]
    for told, words in (
        ("action and task_type", {"price_rules": rules}),
        ("action and task_type", {"price_rules": rules, "action": of_the_row["action"]}),
        ("action and task_type", {"price_rules": rules, "action": "see2ai_nonsense", "task_type": "text_to_image"}),
        ("缺少取值 2K", {"price_rules": [{"param": "resolution", "points": {"1K": 30}}], **of_the_row}),
        ("最高价格", {"points_cost": 2**53, "price_rules": [{"param": "references", "each": 1}], **of_the_row}),
        ("neither", {}),
        ("beyond", {"points_cost": 2**53 + 1}),
    ):
        with pytest.raises((ValueError, InvalidParameter), match=told):
            reprice_model("sc_any", **words)
