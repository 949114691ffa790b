"""One call of the Python client. Input: a JSON object in argv. Output: lines of JSON. See `programs.py`."""

import asyncio
import json
import re
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

from gateway_client import Gateway, GatewayError, Login, verify_webhook


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


async def call(order: dict[str, Any]) -> Any:
    """Names are in camelCase, as in JSON."""
    options = {
        re.sub("[A-Z]", lambda one: f"_{one[0].lower()}", name): value for name, value in order["options"].items()
    }
    if order["call"] == "verify":
        return verify_webhook(*order["args"], **options)
    if order["call"] in {"run", "wait"}:
        options["on_progress"] = lambda task: say(progress=task)
    args = [Path(arg) for arg in order["args"]] if order["call"] == "upload" else order["args"]
    credentials = iter(order["credentials"])

    async def next_credential() -> str:
        return next(credentials)

    login = order["login"] and Login(order["url"], **order["login"])
    credential = login or (next_credential if len(order["credentials"]) > 1 else order["credentials"][0])
    async with Gateway(order["url"], credential, websocket=order["by"] == "websocket") as gateway:
        async with asyncio.timeout(order["abortAfter"]):
            return await attrgetter(order["call"])(gateway)(*args, **options)


try:
    say(result=asyncio.run(call(json.loads(sys.argv[1]))))
except GatewayError as error:
    payload = {"code": error.code, "errorCode": error.error_code, "message": error.message}
    say(error=payload | {"requestId": error.request_id, "retryAfter": error.retry_after})
except TimeoutError:
    say(error={"errorCode": "ABORTED"})
