"""The process: whether its settings fit each other, free disk, and how many files it may open."""

import resource
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.cli.doctor.checks import Check, Group, Outcome, run_blocking
from app.known_secrets import DEVELOPMENT_JWT_SECRET
from app.settings import Settings

GIGABYTE = 1024**3
LOW_BYTES = 5 * GIGABYTE
MIN_BYTES = GIGABYTE  # the largest result
LOW_FILES = 10_000
MIN_FILES = 1024


def process_group(settings: Settings) -> Group[Settings]:
    @asynccontextmanager
    async def use() -> AsyncIterator[Settings]:
        yield settings

    checks: list[Check[Settings]] = [
        Check("settings", _check_settings, ""),
        Check("temporary folder", _check_temporary_folder, "Let TMPDIR be a folder that the processes may write to."),
        Check("open files", _check_open_files, ""),
    ]
    return Group(use, checks)


async def _check_settings(settings: Settings) -> Outcome:
    if settings.environment != "production":
        text = f"ENVIRONMENT={settings.environment}: unsafe settings are accepted"
        return Outcome("warning", text, "Set ENVIRONMENT=production where real users are served.")
    doubts = []
    if settings.is_sqlite:
        doubts.append("DATABASE_URL is SQLite, which has one writer and one machine")
    if settings.is_redis_embedded:
        doubts.append("REDIS_URL=memory:// works within one process only")
    if settings.log_format == "console":
        doubts.append("LOG_FORMAT=console is for people; collectors read json")
    if settings.jwt_algorithm != "HS256" and DEVELOPMENT_JWT_SECRET in settings.jwt_secrets:
        doubts.append("JWT_SECRET is the known default, and it also protects the tickets of streams in Redis")
    if doubts:
        return Outcome("warning", "; ".join(doubts), "docs/deployment.md says what production needs.")
    return Outcome("ok", "all values are usable, for production")


async def _check_temporary_folder(_: Settings) -> Outcome:
    return await check_disk(Path(tempfile.gettempdir()), "results pass through it")


async def check_disk(folder: Path, use: str) -> Outcome:
    """How much is free on the disk of this folder. `use` says what needs it."""
    free_bytes = (await run_blocking(lambda: shutil.disk_usage(folder))).free
    text = f"{free_bytes / GIGABYTE:.1f} GB free in {folder}: {use}"
    remedy = "Free some space, or use another disk. A video may have up to 1 GB."
    if free_bytes < MIN_BYTES:
        return Outcome("failed", text, remedy)
    return Outcome("warning", text, remedy) if free_bytes < LOW_BYTES else Outcome("ok", text)


async def _check_open_files(_: Settings) -> Outcome:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY:
        return Outcome("ok", "a process may open any number of files")
    text = f"a process may open {limit} files; each connection is one"
    remedy = "Raise the hard limit: LimitNOFILE=65536 in systemd, or ulimits in Compose."
    if limit < MIN_FILES:
        return Outcome("failed", text, remedy)
    return Outcome("warning", text, remedy) if limit < LOW_FILES else Outcome("ok", text)
