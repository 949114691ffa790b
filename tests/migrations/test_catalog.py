"""The catalog that the migrations create, and the functions that a migration uses to change it."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import IntegrityError

from app.catalog.model_diff import find_invalid
from app.catalog.models import Model, read_models
from app.database import open_database
from app.settings import Settings
from migrations import seeding

ROOT = Path(__file__).parents[2]
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
"""The first eight are in the order of the guide. The prices of videos are in their price rules."""
ROWS = "SELECT model_name, description, points_cost, task_type, params FROM points_config ORDER BY sort"
SQUARE = {
    "model_name": "sc_soraimg_text_1x1",
    "description": "新",
    "points_cost": 31,
    "task_type": "text_to_image",
    "action": "see2ai_image_generation_fast_v1",
}
RULES = [{"param": "references", "each": 2}]


@pytest.fixture
def connection(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Connection]:
    """A connection to a migrated database, within a migration."""
    path = tmp_path / "catalog.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    with (
        create_engine(f"sqlite:///{path}").begin() as opened,
        Operations.context(MigrationContext.configure(opened)),
    ):
        yield opened


def test_the_18_models_of_the_first_release_are_seeded(tmp_path: Path) -> None:
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["database_url"] = f"sqlite+aiosqlite:///{tmp_path / 'first.db'}"
    command.upgrade(config, "v1_models")
    rows = sqlite3.connect(tmp_path / "first.db").execute(ROWS).fetchall()
    assert {row[0]: row[1:] for row in rows} == SEEDED
    assert [row[0] for row in rows] == list(SEEDED)


def test_every_seeded_model_can_be_sold(migrated_sqlite: Path) -> None:
    """The migrations themselves do not check today's rules."""
    models, unreadable = asyncio.run(_read(migrated_sqlite))
    assert models
    assert find_invalid(models, unreadable) == []


async def _read(path: Path) -> tuple[list[Model], dict[str, str]]:
    database = open_database(Settings(_env_file=None, database_url=f"sqlite+aiosqlite:///{path}"))
    try:
        return await read_models(database)
    finally:
        await database.close()


def test_an_upsert_overwrites_the_row_and_keeps_its_id_and_its_creation(connection: Connection) -> None:
    kept = text("SELECT id, created_at FROM points_config WHERE model_name = 'sc_soraimg_text_1x1'")
    before, models = connection.execute(kept).one(), set(read(connection))
    seeding.upsert_models([SQUARE | {"params": {"aspectRatio": "1:1"}, "price_rules": RULES}])
    assert connection.execute(kept).one() == before
    row = read(connection)["sc_soraimg_text_1x1"]
    assert (row.description, row.points_cost, row.params) == ("新", 31, '{"aspectRatio":"1:1"}')
    assert (row.price_rules, row.enabled, row.sort) == ('[{"param":"references","each":2}]', 1, 0)
    assert set(read(connection)) == models


def test_a_new_price_changes_nothing_else(connection: Connection) -> None:
    before = read(connection)
    seeding.reprice_model("sc_soraimg_text_1x1", 40)
    seeding.reprice_model("sc_video_text_fast", price_rules=None)
    seeding.reprice_model("sc_image_normalize", 0, RULES)
    after = read(connection)
    assert {name: changes(before[name], after[name]) for name in after if before[name] != after[name]} == {
        "sc_soraimg_text_1x1": {"points_cost": 40},
        "sc_video_text_fast": {"price_rules": None},
        "sc_image_normalize": {"points_cost": 0, "price_rules": '[{"param":"references","each":2}]'},
    }


def test_models_are_disabled_enabled_and_deleted(connection: Connection) -> None:
    before = read(connection)
    seeding.disable_model("sc_soraimg_text_3x2")
    after = read(connection)
    assert {name for name in before if before[name] != after[name]} == {"sc_soraimg_text_3x2"}
    assert not after["sc_soraimg_text_3x2"].enabled
    seeding.enable_model("sc_soraimg_text_3x2")
    assert read(connection) == before
    seeding.delete_models(["sc_image_normalize"])
    assert set(before) - set(read(connection)) == {"sc_image_normalize"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: seeding.upsert_models([SQUARE | {"cost": 3}]), r"sc_soraimg_text_1x1: unknown columns \['cost'\]"),
        (lambda: seeding.upsert_models([{"model_name": "a", "points_cost": 3}]), r"missing columns \['action'"),
        (lambda: seeding.reprice_model("sc_soraimg_text_1x1"), "sc_soraimg_text_1x1: nothing to change"),
    ],
)
def test_a_mistake_in_a_migration_stops_it(connection: Connection, change: Callable[[], None], words: str) -> None:
    before = read(connection)
    with pytest.raises(ValueError, match=words):
        change()
    assert read(connection) == before


def test_a_negative_price_is_refused_by_the_database(connection: Connection) -> None:
    with pytest.raises(IntegrityError, match="points_cost"):
        seeding.reprice_model("sc_soraimg_text_1x1", -1)


def read(connection: Connection) -> dict[str, Any]:
    """The rows by model name, without the times of creation and change."""
    columns = "model_name, description, points_cost, task_type, action, params, defaults, price_rules, enabled, sort"
    return {row.model_name: row for row in connection.execute(text(f"SELECT {columns} FROM points_config"))}


def changes(before: Any, after: Any) -> dict[str, Any]:
    return {name: value for name, value in after._mapping.items() if before._mapping[name] != value}
