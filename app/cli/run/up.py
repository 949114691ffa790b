"""`gateway up`: API, worker and sandbox in one process and one loop, on embedded defaults."""

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from app.accounts.api_keys import create_key, revoke_named
from app.accounts.credentials import sign_token
from app.accounts.log_in.sessions import set_password
from app.accounts.users import create_user, find_user_id, get_token_version
from app.api.server.options import OPTIONS
from app.cli.migrate import migrate
from app.cli.output import fail, settings_or_exit
from app.cli.run.server import bind_socket
from app.known_secrets import SANDBOX_API_KEY
from app.main import create_app
from app.points import ledger
from app.runtime import Runtime, open_runtime
from app.sandbox import create_sandbox
from app.settings import Settings, load_settings
from app.telemetry.logs import configure_logs
from app.telemetry.metrics import serve_metrics
from worker.main import run_worker

DEMO_NAME = "demo"
DEMO_POINTS = 1000
SANDBOX_PORT = 8091
LOCK = Path("var/up.lock")


class ServerWithoutSignals(uvicorn.Server):
    """A server without signal handlers: `up` handles the signals for both servers and the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def up() -> None:
    """Runs until SIGINT or SIGTERM. With SEE2AI_API_KEY set it calls the real SEE2AI instead of the sandbox."""
    settings = settings_or_exit()
    with _single_instance(), contextlib.ExitStack() as sockets:
        api_socket = sockets.enter_context(bind_socket(settings.host, settings.port))
        servers = []
        if settings.see2ai_api_key in {"", SANDBOX_API_KEY}:
            sandbox_socket = sockets.enter_context(bind_socket("127.0.0.1", SANDBOX_PORT, or_any_port=True))
            settings = _with_sandbox(settings, sandbox_socket.getsockname()[1])
            sandbox = create_sandbox(api_key=SANDBOX_API_KEY, video_fields=settings.see2ai_video_fields)
            servers.append((_server(sandbox), sandbox_socket))
        configure_logs(settings)
        serve_metrics(settings)
        await asyncio.to_thread(migrate, settings.full_database_url)
        async with open_runtime(settings) as runtime:
            await runtime.database.verify()
            servers.append((_server(create_app(settings, runtime)), api_socket))
            await _print_demo_credentials(runtime)
            await _run(runtime, servers)


async def _run(runtime: Runtime, servers: list[tuple[ServerWithoutSignals, socket.socket]]) -> None:
    """Runs the servers and the worker. The worker ends first, because its tasks may need the sandbox."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in servers]
    working = asyncio.create_task(run_worker(runtime, stop))
    try:
        await asyncio.wait([*serving, working], return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await working
    finally:
        runtime.pubsub.close_subscriptions()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*serving)


def _server(app: object) -> ServerWithoutSignals:
    return ServerWithoutSignals(uvicorn.Config(app, timeout_graceful_shutdown=2, **OPTIONS))  # type: ignore[arg-type]


def _with_sandbox(settings: Settings, port: int) -> Settings:
    origin = f"127.0.0.1:{port}"
    return load_settings(
        see2ai_base_url=f"http://{origin}",
        see2ai_api_key=SANDBOX_API_KEY,
        egress_allow=",".join(filter(None, [settings.egress_allow, origin])),
    )


@contextlib.contextmanager
def _single_instance() -> Iterator[None]:
    """Holds a file lock, because the embedded Redis works in one process only."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fail("another `gateway up` runs in this folder")
        yield


async def _print_demo_credentials(runtime: Runtime) -> None:
    """Prints a demo user with points, a new password, a token, a key and a curl command."""
    user_id = await find_user_id(runtime.database, DEMO_NAME)
    if user_id is None:
        user_id = await create_user(runtime.database, username=DEMO_NAME)
    ref = f"demo:{user_id}"
    await ledger.grant(runtime.database, user_id=user_id, points=DEMO_POINTS, ref=ref, remark="演示积分")
    await revoke_named(runtime.database, user_id, DEMO_NAME)
    api_key = await create_key(runtime.database, user_id, name=DEMO_NAME)
    settings = runtime.settings
    password, token = "(elsewhere)", "(signed elsewhere)"
    if settings.jwt_algorithm == "HS256":
        password = secrets.token_urlsafe(12)
        await set_password(runtime.database, user_id, password, keeps_tokens=True)  # a page stays logged in
        token = sign_token(settings, user_id, version=await get_token_version(runtime.database, user_id))
    upstream = "the sandbox at " if settings.see2ai_api_key == SANDBOX_API_KEY else ""
    body = '{"modelName": "sc_soraimg_text_1x1", "prompt": "一个可爱的橘猫在窗台上晒太阳"}'
    print(
        f"""
  gateway    {settings.own_url}   (interactive docs: {settings.own_url}/docs)
  upstream   {upstream}{settings.see2ai_base_url}
  user       {DEMO_NAME} (id {user_id})
  password   {password}
  JWT        {token}
  API key    {api_key}

  curl -X POST "{settings.own_url}/user/ai/tasks/submit" \\
       -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\
       -d '{body}'

  Stop with Ctrl-C. (process {os.getpid()})
""",
        flush=True,
    )
