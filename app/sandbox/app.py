"""Builds the sandbox: one FastAPI application with its own state, which records every request before it acts."""

import hashlib

from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from app.sandbox.actions import VideoFields, make_actions
from app.sandbox.faults.misbehaviour import TRANSPORT
from app.sandbox.request_log import Entry
from app.sandbox.routes.account import account_routes
from app.sandbox.routes.actions import action_routes
from app.sandbox.routes.control import control_routes
from app.sandbox.routes.results import result_routes
from app.sandbox.routes.uploads import UPLOAD_PATH, upload_routes
from app.sandbox.state import ENTRY, SandboxState

MAX_BODY_BYTES = 2 << 20
UNRECORDED_PATHS = ("/journal", "/control")


def create_sandbox(
    *,
    api_key: str,
    public_url: str | None = None,
    seconds_scale: float = 1.0,
    signing_secret: str | None = None,
    video_fields: VideoFields = "seed",
) -> FastAPI:
    """SEE2AI's actions on this machine, to be served by uvicorn in one process.

    `public_url` is the origin of result URLs (default: the request's own Host). `seconds_scale` scales the
    three to six seconds a job takes, but not a rule's `take_seconds`. `signing_secret` signs result URLs (default:
    derived from the key). `video_fields` is the form in which the video action takes its input.
    """
    sandbox = Sandbox(title="SEE2AI sandbox", docs_url=None, redoc_url=None)
    sandbox.state.sandbox = SandboxState(
        api_key=api_key,
        signing_secret=signing_secret or hashlib.sha256(f"results:{api_key}".encode()).hexdigest(),
        public_url=(public_url or "").rstrip("/"),
        seconds_scale=seconds_scale,
    )
    sandbox.state.actions = make_actions(video_fields)
    # The path of the upload also fits the pattern of the actions, so it is routed first.
    for router in (upload_routes, action_routes, account_routes, control_routes, result_routes):
        sandbox.include_router(router)
    return sandbox


class Sandbox(FastAPI):
    """FastAPI that records every request first, and keeps the connection at hand for faults."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(UNRECORDED_PATHS):
            await super().__call__(scope, receive, send)
            return
        # An upload is read in chunks as it arrives, never as a whole.
        is_upload = scope["path"] == UPLOAD_PATH
        body = b"" if is_upload else await _read_body(receive)
        if body is None:
            too_large = JSONResponse({"detail": "Request body too large"}, 413, {"connection": "close"})
            await too_large(scope, receive, send)
            return
        entry: Entry = self.state.sandbox.request_log.record(scope, body)
        # uvicorn's send is bound to its request cycle, which holds the connection. A real reset needs it.
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        scope = {**scope, ENTRY: entry, TRANSPORT: transport}
        receive = receive if is_upload else _replay(body, receive)
        await super().__call__(scope, receive, _recording_status(entry, send))


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large, or the client left before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _recording_status(entry: Entry, send: Send) -> Send:
    async def record_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            entry.status = message["status"]
        await send(message)

    return record_and_send
