"""`gateway`: the commands that run something. What changes users and points is in `admin.py`, models in `models.py`."""

import asyncio
import signal
import sys
from typing import Annotated, Literal

import structlog
import typer
import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from app.cli import admin
from app.cli.codes import codes
from app.cli.console import Json, answer, finish_badly, open_for_command, settings_or_exit
from app.cli.listening import OPTIONS, listen
from app.cli.listening import run as run_server
from app.cli.migrate import migrate as run_migrations
from app.cli.models import models
from app.cli.proof import prove_or_exit
from app.cli.see2ai import see2ai
from app.cli.up import up as run_up
from app.database import DatabaseUnfit
from app.errors import GatewayError, SettingsError
from app.logs import set_up_logs
from app.metrics import serve_metrics
from app.points.audit import audit as run_audit
from app.sandbox import create_sandbox
from app.settings import SANDBOX_API_KEY, Settings
from app.storage import StorageError
from worker.main import serve_worker

HELP = "A points gateway for generative media. Settings come from the environment or `.env`."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
admin.add_to(app)
app.add_typer(codes, name="codes")
app.add_typer(models, name="models")
app.add_typer(see2ai, name="see2ai")

log = structlog.get_logger()

LAST_ANSWERS_SECONDS = 20  # after SIGTERM: for requests under way; streams and waits end at once


def main() -> None:
    """The console script. Errors become one line on standard error."""
    if any("\udc80" <= letter <= "\udcff" for word in sys.argv for letter in word):  # bytes that Python could not read
        finish_badly("the arguments are not UTF-8")
    try:
        app()
    except DatabaseUnfit as error:
        finish_badly(error.reason)
    except (GatewayError, SettingsError, StorageError) as error:
        finish_badly(str(error))
    except SQLAlchemyError as error:
        finish_badly(f"database: {getattr(error, 'orig', None) or error} (is it migrated? `gateway migrate`)")


@app.command()
def up() -> None:
    """Everything in one process on embedded defaults: API, worker, sandbox upstream, SQLite, files under var/."""
    asyncio.run(run_up())


@app.command()
def serve(workers: Annotated[int, typer.Option(min=1, help="API processes")] = 1) -> None:
    """The API alone."""
    settings = settings_or_exit()
    if workers > 1 and settings.is_redis_embedded:
        finish_badly("REDIS_URL=memory:// lives in one process: use redis:// for more than one")
    if workers > 1 and settings.metrics_port:
        finish_badly("METRICS_PORT shows one process: start `gateway serve` several times, each with a port of its own")
    set_up_logs(settings)
    prove_or_exit(settings)
    _show_metrics(settings)
    _end_well_on_sigterm()
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        workers=workers,
        proxy_headers=False,  # nothing here asks for the caller's address
        timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
        **OPTIONS,
    )
    with listen(settings.host, settings.port) as sock:
        run_server(config, sock)


def _show_metrics(settings: Settings) -> None:
    try:
        serve_metrics(settings)
    except OSError as error:
        finish_badly(f"METRICS_PORT {settings.metrics_port} cannot be had: {error.strerror}")


def _end_well_on_sigterm() -> None:
    """Uvicorn winds down on SIGTERM and then raises it again; to a supervisor that is an end like any other: 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


@app.command()
def worker() -> None:
    """A worker alone. Start as many as you like, on as many machines."""
    settings = settings_or_exit()
    if settings.is_redis_embedded:
        finish_badly("REDIS_URL=memory:// lives in one process: use `gateway up`, or redis:// for a worker of its own")
    set_up_logs(settings)
    prove_or_exit(settings)
    _show_metrics(settings)
    asyncio.run(serve_worker(settings))


@app.command()
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements for a DBA instead")] = False,
) -> None:
    """Brings the database to the newest schema, models and prices."""
    settings = settings_or_exit()
    run_migrations(settings.database_url, sql=sql)
    if not sql:
        set_up_logs(settings)
        prove_or_exit(settings)


@app.command()
def sandbox(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8091,
    api_key: Annotated[str, typer.Option()] = SANDBOX_API_KEY,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    video_fields: Annotated[
        Literal["seed", "2026-04"] | None, typer.Option(help="The form it takes video in; default: SEE2AI_VIDEO_FIELDS")
    ] = None,
) -> None:
    """SEE2AI's actions on this machine, for development and tests."""
    settings = settings_or_exit()
    set_up_logs(settings)
    print(f"sandbox: http://{host}:{port}  (Authorization: Bearer {api_key})", flush=True)
    _end_well_on_sigterm()
    uvicorn.run(
        create_sandbox(api_key=api_key, video_fields=video_fields or settings.see2ai_video_fields),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,  # a client that is kept hanging on purpose must not hold up the end
    )


@app.command()
def audit(json: Json = False) -> None:
    """Proves the books: exit 0 where every invariant holds, 1 with the rows where one does not."""

    async def work() -> bool:
        async with open_for_command() as runtime:
            violations = await run_audit(runtime.sessions)
        if json:
            found = [{"invariant": v.invariant, "meaning": v.meaning, "row": v.row} for v in violations]
            answer({"ok": not violations, "violations": found}, json)
        for violation in () if json else violations:
            print(f"{violation.invariant}  {violation.meaning}\n    {violation.row}")
        if not json:
            print("ok: the books are proved" if not violations else f"{len(violations)} violations")
        return not violations

    sys.exit(0 if asyncio.run(work()) else 1)
