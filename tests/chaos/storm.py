"""One storm: starts the servers, injects faults, waits for all ends, and compares the records."""

import asyncio
import io
import json
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from sqlalchemy import func, select

from app.accounts.api_keys import create_key
from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.aio import cancel_and_wait
from app.cli.migrate import migrate
from app.errors import Unavailable
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from app.tables import tasks
from tests.chaos.bank import Bank
from tests.chaos.books import Story, differences, read_story
from tests.chaos.callers import Callers, User
from tests.chaos.fleet import Fleet, Quiet
from tests.chaos.hostile import HostileUser, complaints, notice
from tests.chaos.report import Storm
from tests.chaos.servers import (
    Server,
    open_database_server,
    open_redis_server,
    open_storage_server,
    storage_settings,
    stored_file,
)
from tests.chaos.strikes import Striker, World
from tests.chaos.weather import draw
from tests.support.ports import free_port
from tests.support.processes.process import Processes
from tests.support.sql import run_sql

API_KEY, DATABASE = "sk-of-the-storm", "gateway_chaos"
USERS, FIRST_POINTS = 12, 600
HOSTILE_POINTS = 1_000_000
LEASE_SECONDS, TASK_SECONDS, VIDEO_SECONDS, HOSTING_SECONDS = 5, 75, 120, 60
GRACE_SECONDS = 60.0
CALM_SECONDS = VIDEO_SECONDS + HOSTING_SECONDS + GRACE_SECONDS  # after the last fault everything has ended
MAX_WORKERS = 2
REPORTED = ("suspected_orphan", "lease_lost", "circuit_open", "storage_failed", "result_rejected", "database_away")
REPORTED += ("lease_renewal_failed", "release_failed", "wakeup_failed", "arq_restarted", "task_cancelled")
BUGS = ("step_failed", "request_failed", "claim_failed", "expiry_failed", "Traceback (most recent call last)")


@dataclass(frozen=True)
class Plan:
    """The options of the run."""

    seed: int
    seconds: float
    target: int
    gap_seconds: float
    command: str


async def run_storm(plan: Plan, folder: Path) -> tuple[Storm, Story]:
    settings: dict[str, Any] = {}
    with Quiet(folder, settings) as processes:
        servers = await asyncio.to_thread(_start_servers, processes, folder)
        receiver_port = free_port()
        settings = _settings(*servers, receiver_port)
        processes.environment |= {name.upper(): str(value) for name, value in settings.items()}
        await run_sql(f"mysql+asyncmy://root:@127.0.0.1:{servers[0].port}/", f"CREATE DATABASE `{DATABASE}`")
        await asyncio.to_thread(migrate, settings["database_url"])
        async with AsyncExitStack() as opened:
            runtime = await opened.enter_async_context(open_runtime(Settings(_env_file=None, **settings)))
            ports = [free_port(), free_port()]
            fleet = await asyncio.to_thread(lambda: opened.enter_context(Fleet(processes, ports, MAX_WORKERS)))
            upstream = f"http://127.0.0.1:{servers[3].port}"
            headers = {"Authorization": f"Bearer {API_KEY}"}
            control = opened.enter_context(httpx.Client(base_url=upstream, headers=headers, timeout=60))
            world = World(fleet, *servers, control)
            return await _storm(plan, folder, runtime, world, processes, receiver_port)


def _start_servers(processes: Processes, folder: Path) -> tuple[Server, Server, Server, Server]:
    port = free_port()
    command = (sys.executable, "-m", "tests.chaos.upstream", "--port", str(port), "--api-key", API_KEY)
    processes.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    servers = (
        open_database_server(processes, folder),
        open_redis_server(processes),
        open_storage_server(processes, folder),
        Server(processes, "upstream", *command, port=port),
    )
    for server in servers:
        server.start()
    return servers


def _settings(database: Server, redis: Server, storage: Server, upstream: Server, receiver_port: int) -> dict[str, Any]:
    return storage_settings(storage) | {
        "database_url": f"mysql+asyncmy://root:@127.0.0.1:{database.port}/{DATABASE}",
        "redis_url": f"redis://127.0.0.1:{redis.port}/0",
        "see2ai_base_url": f"http://127.0.0.1:{upstream.port}",
        "see2ai_api_key": API_KEY,
        "egress_allow": f"127.0.0.1:{upstream.port},127.0.0.1:{receiver_port}",
        "jwt_secret": "a-secret-of-the-storm-and-of-nothing-else",
        "lease_seconds": LEASE_SECONDS,
        "task_deadline_seconds": TASK_SECONDS,
        "video_deadline_seconds": VIDEO_SECONDS,
        "hosting_deadline_seconds": HOSTING_SECONDS,
        "circuit_max_pause_seconds": 8,
        "submit_rate_per_minute": 1000,
        "read_rate_per_minute": 100_000,
    }


async def _storm(
    plan: Plan, folder: Path, runtime: Runtime, world: World, processes: Processes, receiver_port: int
) -> tuple[Storm, Story]:
    run = f"s{plan.seed}"
    began = datetime.now(UTC)
    bank = Bank(runtime, seed=plan.seed, run=run)
    users = await _open_accounts(runtime, bank, world.fleet.apis[0].origin)
    origins = [post.origin for post in world.fleet.apis]
    callers = Callers(origins, users, seed=plan.seed, run=run, poor=bank.order)
    hostile_id = await create_user(runtime.database, username="hostile")
    await bank.grant(hostile_id, HOSTILE_POINTS)
    hostile = HostileUser(processes, origins, sign_token(runtime.settings, hostile_id), receiver_port)
    world.set_trouble()
    striker = Striker(world)
    schedule = draw(plan.seed, 2 * plan.seconds, gap_seconds=plan.gap_seconds, lease_seconds=LEASE_SECONDS)
    started = time.monotonic()
    storming = asyncio.create_task(asyncio.to_thread(striker.run, schedule))
    beside = [asyncio.create_task(work) for work in (_report(callers, striker), hostile.run())]
    await callers.run(plan.target, plan.seconds)
    striker.is_over.set()
    await storming
    await cancel_and_wait(*beside)
    striker.failures += [f"beside the storm: {one.exception()!r}" for one in beside if not one.cancelled()]
    striker.failures += [] if hostile.answers else ["the hostile user did nothing"]
    await asyncio.to_thread(world.set_trouble, storming=False)
    await bank.close()
    storm_seconds, calm = time.monotonic() - started, time.monotonic()
    print(f"the storm is over after {storm_seconds:.0f} s: {callers.diary.accepted} tasks accepted", flush=True)
    await _wait_for_ends(runtime)
    calm_seconds = time.monotonic() - calm
    journal = await asyncio.to_thread(lambda: world.control.get("/journal").json())
    await asyncio.to_thread(world.fleet.settle)
    story = await read_story(runtime, journal, callers.diary, orders=bank.orders, run=run, hostile_id=hostile_id)
    notices = {
        name: notice(callers.diary.timings, hostile.periods, is_hostile=is_hostile)
        for name, is_hostile in (("without", False), ("with", True))
    }
    storm = Storm(
        command=plan.command,
        seed=plan.seed,
        began=began.strftime("%Y-%m-%d %H:%M UTC"),
        storm_seconds=storm_seconds,
        calm_seconds=calm_seconds,
        struck=striker.struck,
        trouble=Counter(entry["fault"] for entry in journal),
        starts=world.fleet.starts(),
        events=_events(folder),
        notices=notices,
        hostile=hostile.answers,
    )
    storm.differences = differences(story, is_stored=lambda key: stored_file(folder, key).is_file())
    storm.differences += complaints(*notices.values())
    storm.differences += world.fleet.unexpected() + striker.failures + _too_few(plan, story)
    storm.differences += await asyncio.to_thread(_audit_by_command, processes)
    storm.differences += [f"log: {storm.events[bug]} × {bug}" for bug in BUGS if storm.events[bug]]
    return storm, story


def _audit_by_command(processes: Processes) -> list[str]:
    try:
        processes.command("audit")
    except AssertionError as error:
        return [str(error)]
    return []


def _too_few(plan: Plan, story: Story) -> list[str]:
    accepted = story.diary.accepted
    return [f"only {accepted} of {plan.target} tasks were accepted"] if accepted < plan.target else []


async def _open_accounts(runtime: Runtime, bank: Bank, origin: str) -> list[User]:
    """Half of the users have a token, half an API key. Each has uploaded a picture."""
    users = []
    image = _image()
    for number in range(USERS):
        user_id = await create_user(runtime.database, username=f"caller-{number}")
        await bank.grant(user_id, FIRST_POINTS)
        token, key = sign_token(runtime.settings, user_id), await create_key(runtime.database, user_id)
        headers = {"Authorization": f"Bearer {token}"} if number % 2 else {"X-API-Key": key}
        users.append(User(user_id, headers))
    async with httpx.AsyncClient(base_url=origin, timeout=30, trust_env=False) as client:
        for user in users:
            answer = await client.post("/user/files/upload", files={"file": ("a.png", image)}, headers=user.headers)
            user.images.append(answer.raise_for_status().json()["data"]["url"])
    return users


def _image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), "teal").save(file, "PNG")
    return file.getvalue()


async def _report(callers: Callers, striker: Striker) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(30)
        passed = time.monotonic() - began
        print(f"  {passed:5.0f} s  {callers.diary.accepted} tasks, {striker.struck.total()} faults", flush=True)


async def _wait_for_ends(runtime: Runtime) -> None:
    """Waits until every task has ended, or until the last deadline has passed."""
    end = time.monotonic() + CALM_SECONDS
    live = select(func.count()).select_from(tasks).where(tasks.c.completed_at.is_(None))
    while time.monotonic() < end:
        try:
            async with runtime.database.read() as connection:
                if not await connection.scalar(live):
                    return
        except Unavailable:
            pass
        await asyncio.sleep(0.5)


def _events(folder: Path) -> Counter[str]:
    """How often the gateway logged events that are worth attention, and events that are bugs."""
    found: Counter[str] = Counter()
    for path in folder.glob("*gateway-*.log"):
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if any(bug in line for bug in BUGS[-1:]) and not line.startswith("{"):
                    found[BUGS[-1]] += 1
                elif line.startswith("{"):
                    event = _event(line)
                    if event in REPORTED or event in BUGS:
                        found[event] += 1
    return found


def _event(line: str) -> str:
    try:
        return str(json.loads(line).get("event"))
    except ValueError:
        return ""
