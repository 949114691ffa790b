"""One hostile caller, and what others notice of it: nothing fails, and little takes longer than in the calm before.

Real processes: `gateway serve`, `gateway worker`, MariaDB, Redis, S3, the attacker. Each attack is one that succeeded.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.accounts.credentials import sign_token
from app.accounts.users import create_user
from app.points import ledger
from app.runtime import Runtime, open_runtime
from app.settings import Settings
from tests.support.hostile.attacks import ATTACKS
from tests.support.hostile.innocents import Innocents, faults, p95
from tests.support.ports import free_port
from tests.support.processes import slow_names_node
from tests.support.processes.books import environment
from tests.support.processes.process import Process, Processes, script
from tests.support.sandbox_server import Server
from tests.support.services import RealServices, own_database
from tests.support.waiting import until
from tests.support.worlds import execute

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]
INNOCENTS, POINTS = 4, 1_000_000
CALM_TASKS, ATTACK_SECONDS = 3 * INNOCENTS, 10.0
FEW_FILES = 300  # as many distributions give a process; what we need beyond it the gateway has to ask for
MAX_GROWTH_MB = 200
MANY_TASKS = 8192  # of the hostile user, with long prompts
# The attacker and the machine have two cores between them, so that some seconds more prove nothing.
REQUESTS, TASKS = ("read", "submit"), ("upload", "task")
LONGER, MORE_SECONDS = 3.0, {REQUESTS: 1.0, TASKS: 10.0}


@contextmanager
def a_gateway(services: RealServices, sandbox: Server, url: str, folder: Path) -> Iterator[tuple[Processes, Any, int]]:
    receiver_port = free_port()
    named = sandbox.origin.replace("127.0.0.1", "localhost")  # results have a name to be looked up
    env = environment(services, sandbox, url) | {"see2ai_base_url": named}
    env["egress_allow"] = f"{named.removeprefix('http://')},127.0.0.1:{receiver_port}"
    del env["submit_rate_per_minute"], env["read_rate_per_minute"]  # the real ones
    with Processes(folder, env) as processes:
        yield processes, env, receiver_port


async def a_user(runtime: Runtime) -> tuple[int, str]:
    user_id = await create_user(runtime.database)
    await ledger.grant(runtime.database, user_id=user_id, points=POINTS, ref=f"test:{user_id}")
    return user_id, sign_token(runtime.settings, user_id)


async def give_many_tasks(runtime: Runtime, user_id: int) -> None:
    """Ended ones, of no price, by doubling."""
    columns = (
        "user_id, model_name, task_type, action, prompt, params, upstream_request, points_cost, status, step,"
        " deadline_at, history, error_code, error_message, created_at, updated_at, completed_at"
    )
    await execute(
        runtime,
        f"INSERT INTO tasks (task_no, {columns}) SELECT UUID(), {user_id}, 'sc_soraimg_text_1x1', 'text_to_image',"
        " 'see2ai_image_generation_fast_v1', REPEAT('长', 4000), '{}', '{}', 0, 'failed', 'done', NOW(3), '[]',"
        " 'TIMED_OUT', '', NOW(3), NOW(3), NOW(3)",
    )
    for _ in range(MANY_TASKS.bit_length() - 1):
        again = f"INSERT INTO tasks (task_no, {columns}) SELECT UUID(), {columns} FROM tasks WHERE user_id = {user_id}"
        await execute(runtime, again)


def tasks_of(innocents: Innocents) -> int:
    return sum(one.kind == "task" for one in innocents.experiences)


def memory_mb(process: Process, field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1000


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_others_notice_nothing_of_one_hostile_caller(
    real_services: RealServices, sandbox_server: Server, tmp_path: Path, attack: str
) -> None:
    sandbox_server.control()
    with own_database() as url, a_gateway(real_services, sandbox_server, url, tmp_path) as (processes, env, receiver):
        port = free_port()
        # The soft limit only, as a service manager sets it.
        serve = f"ulimit -Sn {FEW_FILES}; exec {script('gateway')} serve"
        api = processes.start("bash", "-c", serve, name="gateway-serve", port=port)
        worker = processes.fork(slow_names_node.__file__, "worker")
        api.answers(f"http://127.0.0.1:{port}/healthz")
        worker.says("worker_started")
        asyncio.run(_prove(Settings(_env_file=None, **env), processes, api, port, receiver, attack))
        assert (api.code, worker.code) == (None, None)


async def _prove(
    settings: Settings, processes: Processes, api: Process, port: int, receiver_port: int, attack: str
) -> None:
    async with open_runtime(settings) as runtime:
        users = [{"Authorization": f"Bearer {(await a_user(runtime))[1]}"} for _ in range(INNOCENTS)]
        hostile_id, token = await a_user(runtime)
        if attack == "keywords":
            await give_many_tasks(runtime, hostile_id)
    origin = f"http://127.0.0.1:{port}"
    innocents = Innocents(origin, users)
    async with innocents.living():
        await until("they know what is usual", lambda: tasks_of(innocents) >= CALM_TASKS, 180)
        before_mb, attacked_at = memory_mb(api, "VmRSS"), time.monotonic()
        options = ["--origin", origin, "--token", token, "--receiver-port", str(receiver_port)]
        options += ["--seconds", str(ATTACK_SECONDS), attack]
        hostile = processes.start("nice", sys.executable, "-m", "tests.support.hostile", *options, cwd=ROOT)
        assert await asyncio.to_thread(hostile.ends, 120) == 0, hostile.log()
    story = json.loads(hostile.log().splitlines()[-1])
    calm = [one for one in innocents.experiences if one.began + one.seconds < attacked_at]
    storm = [one for one in innocents.experiences if one.began + one.seconds >= attacked_at]
    print(json.dumps(story))
    assert faults(calm) == {}
    assert faults(storm) == {}
    for kinds, more_seconds in MORE_SECONDS.items():
        usual, attacked = (p95(those, kinds.__contains__) for those in (calm, storm))
        print(f"{attack}: p95 of {'/'.join(kinds)}: {usual:.3f} s in the calm, {attacked:.3f} s under attack")
        assert attacked <= LONGER * usual + more_seconds, f"{kinds}: {usual:.3f} s became {attacked:.3f} s"
    growth_mb = memory_mb(api, "VmHWM") - before_mb
    print(f"{attack}: the API grew by {growth_mb:.0f} MB")
    assert growth_mb < MAX_GROWTH_MB
    assert story["facts"].get("posts_per_move", 0) < 10, "a move makes few deliveries due"
    assert story["facts"].get("largest_head", 0) < 10_000_000, "a head has an end"
    assert story["facts"].get("largest_task", 0) < 100_000, "a task is no larger than what it says"
