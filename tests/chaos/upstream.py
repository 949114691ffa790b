"""The sandbox as a separate process, with a request log that keeps all requests of a storm."""

import argparse

import uvicorn

from app.sandbox import create_sandbox
from app.sandbox.request_log import RequestLog

ENTRIES, BODY_BYTES = 2_000_000, 1 << 30
JOB_SCALE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-key", required=True)
    options = parser.parse_args()
    sandbox = create_sandbox(api_key=options.api_key, seconds_scale=JOB_SCALE)
    sandbox.state.sandbox.request_log = RequestLog(ENTRIES, BODY_BYTES)
    uvicorn.run(
        sandbox, host="127.0.0.1", port=options.port, access_log=False, log_config=None, timeout_graceful_shutdown=1
    )


if __name__ == "__main__":
    main()
