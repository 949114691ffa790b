"""`gateway serve`: the API alone, in one process or several."""

import uvicorn

from app.api.server.options import OPTIONS
from app.cli.output import fail, settings_or_exit
from app.cli.run.process import exit_zero_on_sigterm, prepare_process
from app.cli.run.server import bind_socket, run_server

SHUTDOWN_TIMEOUT_SECONDS = 20  # for requests after SIGTERM; streams and waiting requests end at once


def serve(workers: int) -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = settings_or_exit()
    if workers > 1 and settings.is_redis_embedded:
        fail("REDIS_URL=memory:// works in one process only: use redis:// for more")
    if workers > 1 and settings.metrics_port:
        fail("METRICS_PORT shows one process only: start `gateway serve` several times, each with its own port")
    prepare_process(settings)
    exit_zero_on_sigterm()
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        workers=workers,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
        **OPTIONS,
    )
    with bind_socket(settings.host, settings.port) as sock:
        run_server(config, sock)
