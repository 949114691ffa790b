"""The upload action: one multipart file of up to 50 MB, no WebP, put on the shelf and served back at its URL."""

import mimetypes
import re
from pathlib import Path, PurePath

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive

from app.sandbox.answers import bend, fail
from app.sandbox.desk import get_desk, get_entry, get_origin, require_key
from app.sandbox.names import UPLOAD
from app.sandbox.refusals import fault, refusal
from app.sandbox.trouble import misbehave

UPLOAD_PATH = f"/api/v1/actions/{UPLOAD}"
LARGEST_FILE_BYTES = 50 << 20
LARGEST_BODY_BYTES = LARGEST_FILE_BYTES + (1 << 20)
PATIENCE_BYTES = 4 * LARGEST_FILE_BYTES
"""As much of a body that is too large is read all the same: a client that still sends would not see the answer."""
ENDING = re.compile(r"\.[a-z0-9]{1,8}")
HARMLESS = ("image/", "video/", "audio/")

uploads = APIRouter()


@uploads.post(UPLOAD_PATH, dependencies=[Depends(require_key)])
async def upload(request: Request) -> Response:
    """Keeps the form's `file` and answers where it lies."""
    desk, entry = get_desk(request), get_entry(request)
    entry.outcome = "refused"
    try:
        form = await Request(request.scope, _Capped(request.receive)).form()
    except _TooLargeError:
        return refusal(413)
    delay_seconds, trouble = desk.control.strike("upload", UPLOAD)
    await anyio.sleep(delay_seconds)
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return fail(trouble)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        return JSONResponse({"detail": [fault("missing", ["body", "file"], "Field required")]}, 422)
    size_bytes, name = file.size or 0, file.filename or ""
    entry.upload = {"filename": name, "size": size_bytes, "content_type": file.content_type}
    if size_bytes > LARGEST_FILE_BYTES:
        return refusal(413)
    if reason := await _objection(file):
        return refusal(422, reason)
    ending = PurePath(name).suffix.lower()
    kept = await anyio.to_thread.run_sync(desk.shelf.put, file.file, ending if ENDING.fullmatch(ending) else "")
    desk.jobs.requests[UPLOAD] += 1
    entry.outcome = "stored"
    url = f"{get_origin(request)}/uploads/{kept.name}"
    return bend(trouble, JSONResponse({"status": "success", "url": url, "filename": name, "size": size_bytes}))


@uploads.api_route("/uploads/{name}", methods=["GET", "HEAD"])
async def read_upload(request: Request, name: str) -> Response:
    """The file as it came, to everyone who knows its name; nothing that a browser would run."""
    desk, entry = get_desk(request), get_entry(request)
    entry.action, entry.outcome = UPLOAD, "refused"
    delay_seconds, trouble = desk.control.strike("result", UPLOAD)
    await anyio.sleep(delay_seconds)
    if trouble is not None:
        entry.trouble = trouble.name
        if trouble.kind == "fail":
            return fail(trouble)
    path = desk.shelf.find(name)
    if path is None:
        return refusal(404, "Not found")
    entry.outcome = "served"
    guessed = mimetypes.guess_type(name)[0] or ""
    is_harmless = guessed.startswith(HARMLESS) and "svg" not in guessed
    headers = {
        "content-type": guessed if is_harmless else "application/octet-stream",
        "x-content-type-options": "nosniff",
    }
    if trouble is None:
        return FileResponse(path, headers=headers)
    return misbehave(trouble, Response(await anyio.to_thread.run_sync(Path.read_bytes, path), headers=headers))


class _TooLargeError(Exception):
    """More was sent than any file may have."""


class _Capped:
    """A request's `receive` that counts, and gives up on a body beyond the limit."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._take()
        if self._bytes <= LARGEST_BODY_BYTES:
            return message
        while message.get("more_body") and self._bytes <= PATIENCE_BYTES:
            message = await self._take()
        raise _TooLargeError

    async def _take(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        return message


async def _objection(file: UploadFile) -> str:
    """Why the file is not taken; empty where it is."""
    start = await file.read(12)
    await file.seek(0)
    if not start:
        return "File is empty."
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    if is_webp or (file.filename or "").lower().endswith(".webp") or file.content_type == "image/webp":
        return "WebP is not supported; upload JPEG or PNG."
    return ""
