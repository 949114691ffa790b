"""`gateway`: the root command and the commands that run processes. Each command imports its module when it runs."""

import atexit
import gc
import io
import sys
from typing import Annotated, Literal

import typer

from app import read_version
from app.cli.admin.codes import codes
from app.cli.admin.models import models
from app.cli.admin.see2ai import see2ai
from app.cli.admin.users import add_to
from app.cli.output import Json, fail, print_record, run_with_database, settings_or_exit
from app.errors import GatewayError, SettingsError
from app.known_secrets import SANDBOX_API_KEY

GC_THRESHOLD = 50_000  # new objects
HELP = "A points gateway for generative media. Settings come from the environment or `.env`."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
add_to(app)
app.add_typer(codes, name="codes")
app.add_typer(models, name="models")
app.add_typer(see2ai, name="see2ai")


def main() -> None:
    """The console script. It prints an error as one line on standard error."""
    if any(
        "\udc80" <= letter <= "\udcff" for word in sys.argv for letter in word
    ):  # Python maps undecodable bytes to these surrogates
        fail("the arguments are not UTF-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 must not end a command
    _freeze_gc()
    try:
        app()
    except Exception as error:
        fail(_reason(error))


def _freeze_gc() -> None:
    """Imports create little garbage, but collecting it during them and at exit costs a third more time."""
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)


def _reason(error: Exception) -> str:
    """The message for the operator. An error that no operator can fix is raised again."""
    from sqlalchemy.exc import SQLAlchemyError

    from app.database import UnsafeDatabase
    from app.storage import StorageError

    if isinstance(error, UnsafeDatabase):
        return error.reason
    if isinstance(error, GatewayError | SettingsError | StorageError):
        return str(error)
    if isinstance(error, SQLAlchemyError):
        return f"database: {getattr(error, 'orig', None) or error} (is it migrated? `gateway migrate`)"
    raise error


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"gateway {read_version()}")
        raise typer.Exit


@app.callback()
def set_options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def up() -> None:
    """Everything in one process on embedded defaults: API, worker, sandbox upstream, SQLite, files under var/."""
    import asyncio

    from app.cli.run.up import up

    asyncio.run(up())


@app.command()
def serve(workers: Annotated[int, typer.Option(min=1, help="API processes")] = 1) -> None:
    """The API alone."""
    from app.cli.run.serve import serve

    serve(workers)


@app.command()
def worker() -> None:
    """A worker alone. Any number of workers may run, on any number of machines."""
    import asyncio

    from app.cli.run.process import prepare_process
    from worker.main import serve_worker

    settings = settings_or_exit()
    if settings.is_redis_embedded:
        fail("REDIS_URL=memory:// works in one process only: use `gateway up`, or redis:// for a separate worker")
    prepare_process(settings)
    asyncio.run(serve_worker(settings))


@app.command()
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements for a DBA instead")] = False,
) -> None:
    """Migrates the database to the newest schema, models and prices."""
    from app.cli.migrate import migrate
    from app.cli.run.process import check_database_or_exit
    from app.telemetry.logs import configure_logs

    settings = settings_or_exit()
    configure_logs(settings)
    migrate(settings.full_database_url, sql=sql)
    if not sql:
        check_database_or_exit(settings)


@app.command()
def sandbox(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8091,
    api_key: Annotated[str, typer.Option()] = SANDBOX_API_KEY,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    video_fields: Annotated[
        Literal["seed", "2026-04"] | None,
        typer.Option(help="Field names of its video API; default: SEE2AI_VIDEO_FIELDS"),
    ] = None,
) -> None:
    """A stand-in for SEE2AI on this machine, for development and tests."""
    from app.cli.run.sandbox import sandbox

    sandbox(port, api_key, host, video_fields)


@app.command()
def doctor(json: Json = False) -> None:
    """Tries everything that the gateway needs: exit 0 where nothing failed, 1 with what to do."""
    from app.cli.doctor import doctor

    doctor(as_json=json)


@app.command()
def audit(json: Json = False) -> None:
    """Checks the invariants of points and tasks: exit 0 where all hold, 1 with the rows that break one."""
    from app.points.audit.checks import audit

    violations = run_with_database(audit)
    if json:
        rows = [{"invariant": v.invariant, "meaning": v.meaning, "row": v.row} for v in violations]
        print_record({"ok": not violations, "violations": rows}, json)
    for violation in () if json else violations:
        print(f"{violation.invariant}  {violation.meaning}\n    {violation.row}")
    if not json:
        print("ok: the books are proved" if not violations else f"{len(violations)} violations")
    sys.exit(1 if violations else 0)
