"""Migrations on both databases: up, no drift, down, up again, and as SQL for a DBA."""

import asyncio
import re
import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

import migrations
from app.cli.migrate import migrate
from app.tables import metadata
from migrations.versions import __path__ as versions
from tests.support.sql import run_sql

pytestmark = pytest.mark.both_worlds

SEEDED = {
    "sc_soraimg_text_auto": ("速创生图 文生图-自动比例", 30, "text_to_image", '{"aspectRatio":"auto"}'),
    "sc_soraimg_text_1x1": ("速创生图 文生图-正方形(1:1)", 30, "text_to_image", '{"aspectRatio":"1:1"}'),
    "sc_soraimg_text_2x3": ("速创生图 文生图-竖图(2:3)", 30, "text_to_image", '{"aspectRatio":"2:3"}'),
    "sc_soraimg_text_3x2": ("速创生图 文生图-横图(3:2)", 30, "text_to_image", '{"aspectRatio":"3:2"}'),
    "sc_soraimg_img2img_auto": ("速创生图 图生图-自动比例", 35, "image_to_image", '{"aspectRatio":"auto"}'),
    "sc_soraimg_img2img_1x1": ("速创生图 图生图-正方形(1:1)", 35, "image_to_image", '{"aspectRatio":"1:1"}'),
    "sc_soraimg_img2img_2x3": ("速创生图 图生图-竖图(2:3)", 35, "image_to_image", '{"aspectRatio":"2:3"}'),
    "sc_soraimg_img2img_3x2": ("速创生图 图生图-横图(3:2)", 35, "image_to_image", '{"aspectRatio":"3:2"}'),
    "sc_uniworld_text_1x1": ("UniWorld 文生图-正方形(1:1)", 80, "text_to_image", '{"canvasW":1024,"canvasH":1024}'),
    "sc_uniworld_text_2x3": ("UniWorld 文生图-竖图(2:3)", 80, "text_to_image", '{"canvasW":832,"canvasH":1248}'),
    "sc_uniworld_text_3x2": ("UniWorld 文生图-横图(3:2)", 80, "text_to_image", '{"canvasW":1248,"canvasH":832}'),
    "sc_uniworld_text_16x9": ("UniWorld 文生图-横屏(16:9)", 80, "text_to_image", '{"canvasW":1344,"canvasH":756}'),
    "sc_uniworld_text_9x16": ("UniWorld 文生图-竖屏(9:16)", 80, "text_to_image", '{"canvasW":756,"canvasH":1344}'),
    "sc_video_text_standard": ("速创视频 文生视频-标准版", 0, "text_to_video", '{"version":"standard"}'),
    "sc_video_text_fast": ("速创视频 文生视频-快速版", 0, "text_to_video", '{"version":"fast"}'),
    "sc_video_img2video_standard": ("速创视频 图生视频-标准版", 0, "image_to_video", '{"version":"standard"}'),
    "sc_video_img2video_fast": ("速创视频 图生视频-快速版", 0, "image_to_video", '{"version":"fast"}'),
    "sc_image_normalize": ("图片标准化", 1, "image_normalize", "{}"),
}
"""The first eight as the guide lists them; what videos cost is in their price rules."""
ROWS = "SELECT model_name, description, points_cost, task_type, params FROM points_config ORDER BY sort"


def config_of(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database_url"] = url
    return config


@pytest.fixture
def url(empty_database_url: str) -> str:
    return empty_database_url


def tables_of(url: str) -> set[str]:
    """The names of all tables, with the database's own left out."""

    async def look() -> set[str]:
        engine = create_async_engine(url)
        async with engine.connect() as connection:
            names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        await engine.dispose()
        return set(names)

    return asyncio.run(look())


def count(url: str, query: str) -> int:
    return int(asyncio.run(run_sql(url, query)) or 0)


def test_up_without_drift_down_and_up_again(url: str) -> None:
    config = config_of(url)
    command.upgrade(config, "head")
    command.check(config)  # raises where tables.py and the migrations disagree
    assert count(url, "SELECT COUNT(*) FROM points_config") == len(SEEDED)
    command.downgrade(config, "base")
    command.upgrade(config, "head")
    command.check(config)


def test_each_step_down_undoes_exactly_its_step_up(url: str) -> None:
    config = config_of(url)
    command.upgrade(config, "head")
    steps = len(list(Path(versions[0]).glob("0*.py")))
    for _ in range(steps):
        command.downgrade(config, "-1")
        before = tables_of(url)
        command.upgrade(config, "+1")
        command.downgrade(config, "-1")
        assert tables_of(url) == before
    assert tables_of(url) == {"alembic_version"}


def test_the_models_are_seeded(tmp_path: Path) -> None:
    migrate(f"sqlite+aiosqlite:///{tmp_path / 'm.db'}")
    rows = sqlite3.connect(tmp_path / "m.db").execute(ROWS).fetchall()
    assert {row[0]: row[1:] for row in rows} == SEEDED
    assert [row[0] for row in rows] == list(SEEDED)


def test_offline_sql_can_be_run_by_a_dba(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What `--sql` prints for an empty database builds the same database, with the models in it."""
    migrate(url, sql=True)
    script = capsys.readouterr().out
    assert script.count("INSERT INTO points_config") == len(SEEDED)
    if url.startswith("sqlite"):
        database = url.removeprefix("sqlite+aiosqlite:///")
        connection = sqlite3.connect(database)
        connection.executescript(script)
        connection.close()
    else:
        statements = [part.strip() for part in re.split(r";\s*\n", re.sub(r"^--.*$", "", script, flags=re.MULTILINE))]
        asyncio.run(run_sql(url, *[statement for statement in statements if statement]))
    command.check(config_of(url))
    assert count(url, "SELECT SUM(points_cost) FROM points_config") == 4 * 30 + 4 * 35 + 5 * 80 + 1


def test_seeding_again_changes_nothing_and_repricing_changes_one(tmp_path: Path) -> None:
    """The helper is an upsert: `created_at` stays, nothing is doubled."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    from migrations import seeding

    migrate(f"sqlite+aiosqlite:///{tmp_path / 'm.db'}")
    engine = create_engine(f"sqlite:///{tmp_path / 'm.db'}")
    row = {
        "model_name": "sc_soraimg_text_1x1",
        "description": "新",
        "points_cost": 31,
        "task_type": "text_to_image",
        "action": "see2ai_image_generation_fast_v1",
    }
    with engine.begin() as connection:
        before = connection.execute(text("SELECT id, created_at FROM points_config WHERE sort = 20")).one()
        with Operations.context(MigrationContext.configure(connection)):
            seeding.upsert_models([row | {"params": {"aspectRatio": "1:1"}}])
            seeding.reprice_model("sc_soraimg_text_2x3", 40)
            seeding.disable_model("sc_soraimg_text_3x2")
            with pytest.raises(Exception, match=r"params\.aspectRatio"):
                seeding.upsert_models([row | {"params": {"aspectRatio": "7:5"}}])
            with pytest.raises(Exception, match=r"params\.resolution"):
                seeding.upsert_models([row | {"defaults": {"resolution": "9K"}}])
            with pytest.raises(ValueError, match="negative"):
                seeding.reprice_model("sc_soraimg_text_2x3", -1)
        after = connection.execute(
            text("SELECT id, created_at, points_cost FROM points_config WHERE model_name = 'sc_soraimg_text_1x1'")
        ).one()
        assert tuple(after) == (*before, 31)
        prices = dict(connection.execute(text("SELECT model_name, points_cost FROM points_config")).all())
        assert prices["sc_soraimg_text_2x3"] == 40
        assert len(prices) == len(SEEDED)
        off = connection.execute(text("SELECT model_name FROM points_config WHERE enabled = 0")).scalars().all()
        assert off == ["sc_soraimg_text_3x2"]


def test_the_floor_plan_names_what_the_database_has(tmp_path: Path) -> None:
    """CHECKs and triggers are not compared by Alembic: here they are."""
    migrate(f"sqlite+aiosqlite:///{tmp_path / 'm.db'}")
    engine = create_engine(f"sqlite:///{tmp_path / 'm.db'}")
    found = inspect(engine)
    for table in metadata.sorted_tables:
        planned = {str(c.name) for c in table.constraints if c.__class__.__name__ == "CheckConstraint"}
        built = {str(c["name"]) for c in found.get_check_constraints(table.name)}
        assert planned == built, table.name
    with engine.connect() as connection:
        triggers = set(connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars())
    assert triggers == {"points_ledger_no_update", "points_ledger_no_delete"}
