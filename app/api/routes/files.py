"""`/files/...`: serves the files of `file://` storage. With `s3://` storage the bucket serves them.

Ranges follow RFC 9110: browsers need them to seek in a video, and Safari needs them to play one. Starlette's
`FileResponse` does not fit: it reads a path instead of the object store, answers several ranges as multipart, and
answers errors without the envelope.
"""

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from app.api.access.callers import PublicRuntime
from app.api.errors import error_response
from app.errors import NotFound, RangeNotSatisfiable, Unavailable
from app.runtime import Runtime
from app.storage import StorageError, StoredObject

router = APIRouter(tags=["文件"])

# The gateway serves nothing that a browser executes, so SVG and HTML are missing. Every response has `nosniff`.
TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mp3": "audio/mpeg",
    "m4a": "audio/mp4",
    "wav": "audio/wav",
    "aac": "audio/aac",
}
MAX_KEY_LENGTH = 200  # our keys have about 70 characters; file systems refuse names above 255
IMMUTABLE_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "Accept-Ranges": "bytes"}
PARTIAL_CONTENT = 206
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
RESPONSES: dict[int | str, dict[str, Any]] = {
    PARTIAL_CONTENT: {"description": "Range 所请求的部分"},
    RangeNotSatisfiable.status: {"description": "Range 超出文件"},
}


@router.get("/files/{key:path}", summary="读取结果或上传的文件", response_class=Response, responses=RESPONSES)
async def get_file(key: str, request: Request, runtime: PublicRuntime) -> Response:
    stored, content_type = await _open(runtime, key)
    byte_range = _parse_range(request, stored.size)
    if byte_range is None:
        headers = IMMUTABLE_HEADERS | {"Content-Length": str(stored.size)}
        return StreamingResponse(stored.content, media_type=content_type, headers=headers)
    start, end = byte_range
    if start >= end:
        return error_response(request, RangeNotSatisfiable(), headers={"Content-Range": f"bytes */{stored.size}"})
    stored, _ = await _open(runtime, key, start, end)
    headers = IMMUTABLE_HEADERS | {
        "Content-Length": str(stored.end - stored.start),
        "Content-Range": f"bytes {stored.start}-{stored.end - 1}/{stored.size}",
    }
    return StreamingResponse(stored.content, PARTIAL_CONTENT, media_type=content_type, headers=headers)


@router.head("/files/{key:path}", include_in_schema=False)
async def head_file(key: str, runtime: PublicRuntime) -> Response:
    """RFC 9110 defines ranges for GET only."""
    stored, content_type = await _open(runtime, key)
    return Response(media_type=content_type, headers=IMMUTABLE_HEADERS | {"Content-Length": str(stored.size)})


async def _open(runtime: Runtime, key: str, start: int = 0, end: int | None = None) -> tuple[StoredObject, str]:
    content_type = TYPES.get(key.rpartition(".")[2])
    if content_type is None or len(key) > MAX_KEY_LENGTH or not runtime.store.is_local:
        raise NotFound("文件不存在")
    try:
        stored = await runtime.store.open(key, start=start, end=end)
    except StorageError as error:
        raise Unavailable from error
    if stored is None:
        raise NotFound("文件不存在")
    return stored, content_type


def _parse_range(request: Request, size: int) -> tuple[int, int] | None:
    """The requested range as [start, end), empty where it lies behind the end; None to send the whole file.

    The whole file also answers several ranges, other units, an invalid range and any `If-Range`. `If-Range` never
    matches, because the gateway sends no validators: a stored file never changes.
    """
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    if match is None or "if-range" in request.headers:
        return None
    first, last = match.groups()
    if not first:
        return (max(size - int(last), 0), size) if last else None
    if not last:
        return int(first), size
    return (int(first), min(int(last) + 1, size)) if int(first) <= int(last) else None
