"""docs/pricing.md is run unchanged: its migration, its commands and their output, and its numbers."""

import asyncio
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from typer.testing import CliRunner

import migrations
from app.catalog.models import Model, list_models
from app.catalog.pricing import compute_price
from app.cli.commands import app
from app.database import open_database
from app.settings import Settings
from app.upstreams.action import merge_params
from app.upstreams.see2ai.actions import ACTIONS
from tests.support.database_contents import run_script

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "pricing.md").read_text("utf-8")
MIGRATIONS = Path(migrations.__file__).parent
WIDE, SQUARE, VIDEO, TALL = (
    "sc_soraimg_img2img_16x9",
    "sc_soraimg_text_1x1",
    "sc_video_text_standard",
    "sc_soraimg_text_2x3",
)


def block(language: str, like_contains: str) -> str:
    """The only code block of the document in that language with these words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOC, flags=re.MULTILINE | re.DOTALL)
    (found,) = [text for named, text in blocks if named == language and like_contains in text]
    return str(found)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The project's Alembic configuration, and a folder with the document's migration, made as the document says."""
    config = Config(toml_file=ROOT / "pyproject.toml")
    before = ScriptDirectory.from_config(config).get_current_head()
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", os.pathsep.join([str(MIGRATIONS / "versions"), str(tmp_path)]))
    message = re.search(r'`alembic revision -m "(.*?)"`', DOC)
    assert message is not None
    script = command.revision(config, message[1], version_path=tmp_path)
    assert isinstance(script, Script)
    source = block("python", "def upgrade")
    for name, value in (("revision", script.revision), ("down_revision", script.down_revision)):
        source, replaced = re.subn(rf'^{name} = "…"', f"{name} = {value!r}", source, flags=re.MULTILINE)
        assert replaced == 1
    Path(script.path).write_text(source, "utf-8")
    config.attributes |= {"before": before, "example": script.revision}
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
    """All columns except those set by the database's clock."""
    return {
        name: {field: getattr(row, field) for field in Model.__slots__ if field != "now"} for name, row in rows.items()
    }


def cost(model: Model, requested: dict[str, Any], references: int) -> int:
    """The price as a submit computes it."""
    params = merge_params(ACTIONS[model.action], model.task_type, model.fixed, model.defaults, requested)
    return compute_price(model.points_cost, model.rules, params.model_dump(by_alias=True), references)


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
    sentence = re.search(r"three reference images then costs .* = (\d+) points, in 1K .* = (\d+)\.", DOC)
    assert sentence is not None
    assert [cost(wide, {}, 3), cost(wide, {"resolution": "1K"}, 3)] == [int(points) for points in sentence.groups()]


def test_the_migration_does_what_the_document_says_and_its_downgrade_reverts_it(config: Config, url: str) -> None:
    upgrade(config, url, config.attributes["before"])
    before = rows_of(url)
    upgrade(config, url, "head")
    command.check(config)
    check_effects(before, rows_of(url))
    command.downgrade(config, "-1")
    assert columns(rows_of(url)) == columns(before)
    upgrade(config, url, "head")
    check_effects(before, rows_of(url))


def test_its_sql_does_the_same(config: Config, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    upgrade(config, url, config.attributes["before"])
    before = rows_of(url)
    capsys.readouterr()
    command.upgrade(config, f"{config.attributes['before']}:{config.attributes['example']}", sql=True)
    script = capsys.readouterr().out
    run_script(url, script)
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
    upgrade(config, url, config.attributes["before"])
    before = rows_of(url)
    assert gateway("gateway models diff") == (0, "equal: points_config is what the migrations seed\n")
    for line in block("bash", "gateway models disable").splitlines():
        assert gateway(line)[0] == 0, line
    after = rows_of(url)
    check_effects(before, after)
    code, printed = gateway("gateway models check")
    assert (code, printed) == (0, f"ok: {sum(row.enabled for row in after.values())} models can be sold\n")
    code, printed = gateway("gateway models diff")
    assert code == 1
    assert sorted(printed.splitlines()) == sorted(block("", "added ").splitlines())
    migrated = f"sqlite+aiosqlite:///{tmp_path / 'migrated.db'}"
    upgrade(config, migrated, "head")
    assert columns(after) == columns(rows_of(migrated))


def test_the_worked_numbers_are_those_of_the_seeded_rows(migrated_sqlite: Path) -> None:
    rows = rows_of(f"sqlite+aiosqlite:///{migrated_sqlite}")
    examples = re.findall(r"^\| `(sc_\w+)` \| `(\{.*?\})` \| (\d+) \| (\d+) \|", DOC, flags=re.MULTILINE)
    assert len(examples) == 11
    for name, requested, references, points in examples:
        assert cost(rows[name], json.loads(requested), int(references)) == int(points), name
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
    quote = await api.post("/user/ai/tasks/quote", json=json.loads(body[1]), headers=user.headers)
    assert quote.json()["data"] == json.loads(answer[1])
    submitted = await api.post("/user/ai/tasks/submit", json=json.loads(body[1]), headers=user.headers)
    assert submitted.json()["data"]["pointsCost"] == json.loads(answer[1])["pointsCost"]
