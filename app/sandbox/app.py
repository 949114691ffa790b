"""Builds the sandbox: one FastAPI application with its own desk, which notes every request before it acts."""

import hashlib

from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from app.sandbox.actions import VideoFields, make_actions
from app.sandbox.actions.routes import actions
from app.sandbox.desk import ENTRY, Desk
from app.sandbox.journal import Entry
from app.sandbox.operators import operators
from app.sandbox.results import results
from app.sandbox.tenant import tenant
from app.sandbox.trouble import TRANSPORT
from app.sandbox.uploads import UPLOAD_PATH, uploads

BODY_LIMIT_BYTES = 2 << 20
UNRECORDED = ("/journal", "/control")


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
    three to six seconds a job takes, but not a marker's `take`. `signing_secret` signs result URLs (default:
    derived from the key). `video_fields` is the form in which the video action takes its input.
    """
    sandbox = Sandbox(title="SEE2AI sandbox", docs_url=None, redoc_url=None)
    sandbox.state.desk = Desk(
        api_key=api_key,
        signing_secret=signing_secret or hashlib.sha256(f"results:{api_key}".encode()).hexdigest(),
        public_url=(public_url or "").rstrip("/"),
        seconds_scale=seconds_scale,
    )
    sandbox.state.actions = make_actions(video_fields)
    # The upload goes before the actions, whose path would take its name for one of theirs.
    for router in (uploads, actions, tenant, operators, results):
        sandbox.include_router(router)
    return sandbox


class Sandbox(FastAPI):
    """FastAPI that notes every request in the journal first, and keeps the connection at hand for trouble."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(UNRECORDED):
            await super().__call__(scope, receive, send)
            return
        # An upload is read as it comes, and never as a whole.
        is_upload = scope["path"] == UPLOAD_PATH
        body = b"" if is_upload else await _read_body(receive)
        if body is None:
            refused = JSONResponse({"detail": "Request body too large"}, 413, {"connection": "close"})
            await refused(scope, receive, send)
            return
        entry: Entry = self.state.desk.journal.write(scope, body)
        # uvicorn's send is bound to its request cycle, which holds the connection: the way to a real reset.
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        scope = {**scope, ENTRY: entry, TRANSPORT: transport}
        receive = receive if is_upload else _replay(body, receive)
        await super().__call__(scope, receive, _noting(entry, send))


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None where it is beyond all reason, or the client left halfway."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _noting(entry: Entry, send: Send) -> Send:
    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            entry.status = message["status"]
        await send(message)

    return note
