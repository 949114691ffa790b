"""`/files/...`: what is kept in `file://` storage, served by the gateway itself. Elsewhere the bucket serves it.

Ranges are answered by RFC 9110, because browsers play and seek films with them, and Safari plays none without.
"""

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from app.api.access import AnyRuntime
from app.api.errors import error_response
from app.errors import NotFound, RangeNotSatisfiable, Unavailable
from app.runtime import Runtime
from app.storage import StorageError, StoredObject

router = APIRouter(tags=["文件"])

# Nothing a browser would run is ever served: no SVG, no HTML, and `nosniff` on every answer.
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
MAX_KEY_LENGTH = 200  # ours have about 70; a file system refuses names above 255
IMMUTABLE_HEADERS = {"Cache-Control": "public, max-age=31536000, immutable", "Accept-Ranges": "bytes"}
PARTIAL_CONTENT = 206
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
RESPONSES: dict[int | str, dict[str, Any]] = {
    PARTIAL_CONTENT: {"description": "Range 所请求的部分"},
    RangeNotSatisfiable.status: {"description": "Range 超出文件"},
}


@router.get("/files/{key:path}", summary="读取结果或上传的文件", response_class=Response, responses=RESPONSES)
async def get_file(key: str, request: Request, runtime: AnyRuntime) -> Response:
    found, content_type = await _open(runtime, key)
    part = _parse_range(request, found.size)
    if part is None:
        headers = IMMUTABLE_HEADERS | {"Content-Length": str(found.size)}
        return StreamingResponse(found.content, media_type=content_type, headers=headers)
    start, end = part
    if start >= end:
        return error_response(request, RangeNotSatisfiable(), headers={"Content-Range": f"bytes */{found.size}"})
    found, _ = await _open(runtime, key, start, end)
    headers = IMMUTABLE_HEADERS | {
        "Content-Length": str(found.end - found.start),
        "Content-Range": f"bytes {found.start}-{found.end - 1}/{found.size}",
    }
    return StreamingResponse(found.content, PARTIAL_CONTENT, media_type=content_type, headers=headers)


@router.head("/files/{key:path}", include_in_schema=False)
async def head_file(key: str, runtime: AnyRuntime) -> Response:
    """Ranges are for GET alone."""
    found, content_type = await _open(runtime, key)
    return Response(media_type=content_type, headers=IMMUTABLE_HEADERS | {"Content-Length": str(found.size)})


async def _open(runtime: Runtime, key: str, start: int = 0, end: int | None = None) -> tuple[StoredObject, str]:
    content_type = TYPES.get(key.rpartition(".")[2])
    if content_type is None or len(key) > MAX_KEY_LENGTH or not runtime.store.is_local:
        raise NotFound("文件不存在")
    try:
        found = await runtime.store.open(key, start=start, end=end)
    except StorageError as error:
        raise Unavailable from error
    if found is None:
        raise NotFound("文件不存在")
    return found, content_type


def _parse_range(request: Request, size: int) -> tuple[int, int] | None:
    """[start, end) of the one range asked for, empty where it cannot be given; None where all is to be sent.

    All is sent, too, for several ranges, other units, what is no range, and under an If-Range, which cannot match:
    we send no validators, as nothing under a key ever changes.
    """
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or "if-range" in request.headers:
        return None
    first, last = asked.groups()
    if not first:
        return (max(size - int(last), 0), size) if last else None
    if not last:
        return int(first), size
    return (int(first), min(int(last) + 1, size)) if int(first) <= int(last) else None
