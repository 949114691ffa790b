"""The upload action: one multipart file of up to 50 MB, no WebP, stored and served back at its URL."""

import mimetypes
import re
from pathlib import Path, PurePath

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive

from app.sandbox.action_names import UPLOAD
from app.sandbox.error_responses import error_response, field_error
from app.sandbox.faults.faulty_responses import apply_fault, failure_response
from app.sandbox.faults.misbehaviour import misbehave
from app.sandbox.routes.fault_matching import match_fault
from app.sandbox.state import get_entry, get_origin, get_state, require_key

UPLOAD_PATH = f"/api/v1/actions/{UPLOAD}"
MAX_FILE_BYTES = 50 << 20
MAX_BODY_BYTES = MAX_FILE_BYTES + (1 << 20)
MAX_DISCARDED_BYTES = 4 * MAX_FILE_BYTES
"""So much of a too large body is read before the response: a client that still sends would not read the response."""
EXTENSION = re.compile(r"\.[a-z0-9]{1,8}")
SAFE_TYPES = ("image/", "video/", "audio/")

upload_routes = APIRouter()


@upload_routes.post(UPLOAD_PATH, dependencies=[Depends(require_key)])
async def upload(request: Request) -> Response:
    """Stores the form's `file` and answers with its URL."""
    state, entry = get_state(request), get_entry(request)
    entry.outcome = "refused"
    try:
        form = await Request(request.scope, _LimitedReceive(request.receive)).form()
    except _TooLargeError:
        return error_response(413)
    rule = await match_fault(request, "upload", state.control)
    if rule is not None and rule.kind == "fail":
        return failure_response(rule)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        return JSONResponse({"detail": [field_error("missing", ["body", "file"], "Field required")]}, 422)
    size_bytes, name = file.size or 0, file.filename or ""
    entry.upload = {"filename": name, "size": size_bytes, "content_type": file.content_type}
    if size_bytes > MAX_FILE_BYTES:
        return error_response(413)
    if reason := await _rejection_reason(file):
        return error_response(422, reason)
    extension = PurePath(name).suffix.lower()
    extension = extension if EXTENSION.fullmatch(extension) else ""
    path = await anyio.to_thread.run_sync(state.file_store.put, file.file, extension)
    state.jobs.requests[UPLOAD] += 1
    entry.outcome = "stored"
    url = f"{get_origin(request)}/uploads/{path.name}"
    return apply_fault(rule, JSONResponse({"status": "success", "url": url, "filename": name, "size": size_bytes}))


@upload_routes.api_route("/uploads/{name}", methods=["GET", "HEAD"])
async def read_upload(request: Request, name: str) -> Response:
    """The file as it came, to everyone who knows its name; never with a type that a browser would run."""
    state, entry = get_state(request), get_entry(request)
    entry.action, entry.outcome = UPLOAD, "refused"
    rule = await match_fault(request, "result", state.control)
    if rule is not None and rule.kind == "fail":
        return failure_response(rule)
    path = state.file_store.find(name)
    if path is None:
        return error_response(404, "Not found")
    entry.outcome = "served"
    guessed = mimetypes.guess_type(name)[0] or ""
    is_safe = guessed.startswith(SAFE_TYPES) and "svg" not in guessed
    headers = {
        "content-type": guessed if is_safe else "application/octet-stream",
        "x-content-type-options": "nosniff",
    }
    if rule is None:
        return FileResponse(path, headers=headers)
    return misbehave(rule, Response(await anyio.to_thread.run_sync(Path.read_bytes, path), headers=headers))


class _TooLargeError(Exception):
    """More was sent than any file may have."""


class _LimitedReceive:
    """A request's `receive` that counts bytes, and raises _TooLargeError for a body beyond the limit."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive_and_count()
        if self._bytes <= MAX_BODY_BYTES:
            return message
        while message.get("more_body") and self._bytes <= MAX_DISCARDED_BYTES:
            message = await self._receive_and_count()
        raise _TooLargeError

    async def _receive_and_count(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        return message


async def _rejection_reason(file: UploadFile) -> str:
    """Why the file is refused; empty where it is accepted."""
    start = await file.read(12)
    await file.seek(0)
    if not start:
        return "File is empty."
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    if is_webp or (file.filename or "").lower().endswith(".webp") or file.content_type == "image/webp":
        return "WebP is not supported; upload JPEG or PNG."
    return ""
