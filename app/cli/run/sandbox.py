"""`gateway sandbox`: SEE2AI's actions on a port of this machine."""

from typing import Literal

import uvicorn

from app.cli.output import settings_or_exit
from app.cli.run.process import exit_zero_on_sigterm
from app.sandbox import create_sandbox
from app.telemetry.logs import configure_logs


def sandbox(port: int, api_key: str, host: str, video_fields: Literal["seed", "2026-04"] | None) -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = settings_or_exit()
    configure_logs(settings)
    print(f"sandbox: http://{host}:{port}  (Authorization: Bearer {api_key})", flush=True)
    exit_zero_on_sigterm()
    uvicorn.run(
        create_sandbox(api_key=api_key, video_fields=video_fields or settings.see2ai_video_fields),
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=1,  # a response that hangs on purpose must not delay the shutdown
    )
