"""`gateway serve`: the API alone, in one process or several."""

import uvicorn

from app.cli.output import fail, settings_or_exit
from app.cli.run.process import begin_process, exit_zero_on_sigterm
from app.cli.run.server import OPTIONS, bind_socket, run_server

SHUTDOWN_TIMEOUT_SECONDS = 20  # after SIGTERM: for requests under way; streams and waits end at once


def serve(workers: int) -> None:
    """Until SIGTERM or SIGINT."""
    settings = settings_or_exit()
    if workers > 1 and settings.is_redis_embedded:
        fail("REDIS_URL=memory:// lives in one process: use redis:// for more than one")
    if workers > 1 and settings.metrics_port:
        fail("METRICS_PORT shows one process: start `gateway serve` several times, each with a port of its own")
    begin_process(settings)
    exit_zero_on_sigterm()
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        workers=workers,
        proxy_headers=False,  # nothing here asks for the caller's address
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_SECONDS,
        **OPTIONS,
    )
    with bind_socket(settings.host, settings.port) as sock:
        run_server(config, sock)
